"""One function body (or the main graph), as far as control edges can be added to it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

import networkx as nx

from moirai_tf.fusion.ops import FRAME_OPS, IDENTITIES, VARIABLE_READS, VIEWS
from moirai_tf.model.validate import BACK_EDGE_SOURCES, input_node

_PREPARES = IDENTITIES | {*VIEWS, "Cast", "Transpose"}
"""Ops between a weight and the contraction that reads it."""

Edge = tuple[str, str]
"""(node that comes first, node that waits)."""


class Body:
    """The nodes of a body with all their inputs, calls as nodes like any other.

    Attributes:
      nodes: by name.
      has_frames: whether there is TF1 control flow: a control edge there may cross frames, or come
        from a branch that is not taken.
    """

    def __init__(
        self,
        nodes: Iterable[Any],
        returned: Collection[str],
        elsewhere: Sequence[Set[str]] = (),
    ) -> None:
        """Reads a body.

        Args:
          nodes: its `NodeDef`s.
          returned: nodes whose outputs leave the body.
          elsewhere: for the main graph, the nodes that each other signature needs.
        """
        self.nodes = {node.name: node for node in nodes}
        self.has_frames = any(node.op in FRAME_OPS for node in self.nodes.values())
        self._returned = frozenset(returned)
        self._elsewhere = elsewhere
        self._sources = {name: self._inputs_of(node) for name, node in self.nodes.items()}
        self._readers: dict[str, set[str]] = {name: set() for name in self.nodes}
        for node in self.nodes.values():
            for text in node.input:
                if not text.startswith("^") and input_node(text) in self.nodes:
                    self._readers[input_node(text)].add(node.name)

    def gate(self, name: str) -> str | None:
        """A variable read or constant whose only reader is the node: if it waits, so does the node.

        A control input of the node itself would keep Grappler from fusing it.
        """
        inputs = (text for text in self.nodes[name].input if not text.startswith("^"))
        found = [leaf for text in inputs if (leaf := self._leaf(input_node(text))) is not None]
        reads = [leaf for leaf in found if self.nodes[leaf].op != "Const"]
        return next(iter((*reads, *found)), None)

    def needed_alike(self, edge: Edge) -> bool:
        """Whether every other signature that needs the waiting node needs the first one as well.

        Else the edge would make that signature run, and want inputs for, what it does not need.
        """
        first, second = edge
        return all(first in needed or second not in needed for needed in self._elsewhere)

    def without_cycles(self, edges: Sequence[Edge]) -> list[Edge]:
        """The edges, in their order, without those that would close a cycle."""
        with_all = self._graph()
        with_all.add_edges_from(edges)
        if nx.is_directed_acyclic_graph(with_all):
            return list(edges)
        graph = self._graph()
        found = []
        for first, second in edges:
            if not nx.has_path(graph, second, first):
                graph.add_edge(first, second)
                found.append((first, second))
        return found

    def _graph(self) -> nx.DiGraph[str]:
        """What waits for what, from a node to its readers."""
        graph = nx.DiGraph()
        graph.add_nodes_from(self.nodes)
        graph.add_edges_from((s, name) for name in self.nodes for s in self._sources[name])
        return graph

    def _leaf(self, name: str) -> str | None:
        while name in self.nodes and len(self._readers[name]) == 1 and name not in self._returned:
            node = self.nodes[name]
            if node.op == "Const" or (node.op in VARIABLE_READS and node.op != "VarHandleOp"):
                return name
            if node.op not in _PREPARES:
                return None
            name = input_node(node.input[0])
        return None

    def _inputs_of(self, node: Any) -> frozenset[str]:
        names = {input_node(text) for text in node.input}
        return frozenset(
            n for n in names if n in self.nodes and self.nodes[n].op not in BACK_EDGE_SOURCES
        )


def needed_by(nodes: Mapping[str, Any], roots: Iterable[str], feeds: Set[str]) -> frozenset[str]:
    """The nodes of a main graph that must run to compute some of them, none behind the feeds."""
    pending = [name for name in roots if name in nodes]
    seen = set(pending)
    while pending:
        name = pending.pop()
        texts = () if name in feeds else nodes[name].input
        new = {input_node(text) for text in texts} - seen
        seen |= new
        pending.extend(n for n in new if n in nodes)
    return frozenset(seen)

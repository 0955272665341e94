"""One function body (or the main graph), as far as control edges can be added to it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

from moirai_tf.fusion.ops import FRAME_OPS, IDENTITIES, VARIABLE_READS, VIEWS
from moirai_tf.model.validate import BACK_EDGE_SOURCES, input_node

_PREPARES = IDENTITIES | {*VIEWS, "Cast", "Transpose"}
"""Ops between a weight and the contraction that reads it."""

Edge = tuple[str, str]
"""(node that comes first, node that waits)."""


class Body:
    """The nodes of a body with all their inputs, calls as nodes like any other."""

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
        self._returned = frozenset(returned)
        self._elsewhere = elsewhere
        self._sources = {name: self._inputs_of(node) for name, node in self.nodes.items()}
        self._readers: dict[str, set[str]] = {name: set() for name in self.nodes}
        for node in self.nodes.values():
            for text in node.input:
                if not text.startswith("^") and input_node(text) in self.nodes:
                    self._readers[input_node(text)].add(node.name)

    def has_frames(self) -> bool:
        """Whether it holds TF1 control flow: a control edge there may cross frames, or come from
        a branch that is not taken."""
        return any(node.op in FRAME_OPS for node in self.nodes.values())

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
        waits: dict[str, set[str]] = {}
        for first, second in edges:
            waits.setdefault(second, set()).add(first)
        if self._is_acyclic(waits):
            return list(edges)
        kept: dict[str, set[str]] = {}
        found = []
        for first, second in edges:
            if not self._reaches(second, first, kept):
                kept.setdefault(second, set()).add(first)
                found.append((first, second))
        return found

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

    def _is_acyclic(self, waits: Mapping[str, Set[str]]) -> bool:
        waiting = {name: set(self._sources[name]) | waits.get(name, set()) for name in self.nodes}
        followers: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, sources in waiting.items():
            for source in sources:
                followers[source].append(name)
        done = [name for name, sources in waiting.items() if not sources]
        for name in done:
            for follower in followers[name]:
                waiting[follower].discard(name)
                if not waiting[follower]:
                    done.append(follower)
        return len(done) == len(self.nodes)

    def _reaches(self, source: str, target: str, waits: Mapping[str, Set[str]]) -> bool:
        """Whether the target depends on the source, or is it."""
        seen = {target}
        pending = [target]
        while pending:
            name = pending.pop()
            new = (self._sources[name] | waits.get(name, set())) - seen
            seen |= new
            pending.extend(new)
        return source in seen


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

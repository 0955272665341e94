"""The flat graph against the graph that TensorFlow executed: operators and what they read.

TensorFlow's graph has some nodes more, which are looked through: `_Arg` and `_Retval`, one
`Identity` for each argument and result of a call (`Func/...`), one `NoOp` or `IdentityN` for each
call. Loops, branches and calls that one loader takes apart count as the one operator that they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moirai_tf.graph.graph import CALL_OPS, CLIENT_OPS, LOWERED_OPS, Graph, Operator
from tests.inliner_oracle import Node

_FEED = re.compile(r"_arg_(?P<node>.+)_(?P<port>\d+)_\d+")
_HANDLES = frozenset({"VarHandleOp", "HashTableV2", "MutableHashTableV2"})
"""Made outside the function that the TF2 loader runs."""

Edge = tuple[str, int | None]
"""Producer and port; no port where the producer may be taken apart."""


@dataclass(frozen=True)
class Executed:
    """One graph, and what the import says of it."""

    graph: Graph
    """Pruned for a Session, whole for the TF2 loader, which prunes nothing."""
    nodes: Mapping[str, Node]
    call: str = ""
    """The main graph's call that the TF2 loader runs; empty in a Session."""
    arguments: Sequence[str] = ()
    """What the main graph gives to it."""

    def short(self, operator: Operator) -> str:
        """The name of an operator in the loader."""
        return operator.name.removeprefix(f"{self.call}/") if self.call else operator.name

    @cached_property
    def mine(self) -> dict[str, Operator]:
        """The operators that should have run."""
        return {
            self.short(o): o
            for o in self.graph.operators
            if o.op not in CLIENT_OPS
            and not (self.call and (o.op in _HANDLES or o.scope.parent is None))
        }

    @cached_property
    def divided(self) -> frozenset[str]:
        """Those that TensorFlow may take apart."""
        ops = LOWERED_OPS | CALL_OPS | self.graph.functions.keys()
        return frozenset(name for name, o in self.mine.items() if o.op in ops)

    @cached_property
    def calls(self) -> frozenset[str]:
        """Names of the calls that operators came through."""
        found = set()
        for operator in self.graph.operators:
            scope = operator.scope
            while scope.parent is not None:
                prefix = scope.prefix.removeprefix(f"{self.call}/") if self.call else scope.prefix
                found.add(prefix.removesuffix("/"))
                scope = scope.parent
        return frozenset(found)

    def owner(self, name: str) -> str | None:
        """The divided operator that a node is a part of."""
        inside = name.removeprefix("Func/")
        return next((k for k in self.divided if inside.startswith(f"{k}/")), None)

    def source(self, text: str) -> Edge:
        """What a node really reads, through arguments and results of calls."""
        name, _, port = text.partition(":")
        node = self.nodes[name]
        if name in self.mine:
            return name, None if name in self.divided else int(port or 0)
        if node["argument"] is not None:
            return self._argument(node), 0
        owner = self.owner(name)
        if owner is not None and not self._is_end(name, owner):
            return owner, None
        if name.startswith("Func/") or self._is_isolation(node):
            return self.source(node["inputs"][0])
        return name, int(port or 0)

    def theirs(self) -> dict[str, Node]:
        """The nodes that should be operators."""
        return {
            name: node
            for name, node in self.nodes.items()
            if node["op"] not in ("_Arg", "_Retval")
            and not name.startswith("Func/")
            and name not in self.calls
            and not self._is_isolation(node)
            and (name in self.mine or self.owner(name) is None)
        }

    def parts(self, name: str) -> list[Node]:
        """The node of a divided operator, or what became of it."""
        if name in self.nodes and self.nodes[name]["op"] == self.mine[name].op:
            return [self.nodes[name]]
        return [n for k, n in self.nodes.items() if k not in self.mine and self.owner(k) == name]

    def needed(self) -> set[str]:
        """Nodes that a result or an operator reads, directly or not."""
        pending = [n for n, node in self.nodes.items() if node["op"] == "_Retval" or n in self.mine]
        seen = set(pending)
        while pending:
            new = {t.partition(":")[0] for t in _data(self.nodes[pending.pop()])} - seen
            seen |= new
            pending.extend(new)
        return seen

    def _is_end(self, name: str, owner: str) -> bool:
        """Whether a node hands a tensor to a call, outside of it."""
        return self.mine[owner].op in CALL_OPS and name.startswith(f"Func/{owner}/input/")

    def _is_isolation(self, node: Node) -> bool:
        """Whether TensorFlow put a node between a call that gives a resource and its reader
        (`IsolatePlacerInspectionRequiredOps`)."""
        if node["op"] != "Identity" or node["name"] in self.mine:
            return False
        source = _data(node)[0].partition(":")[0]
        return source in self.divided and node["name"].startswith(f"{source}_")

    def _argument(self, node: Node) -> str:
        if self.call:
            return self.arguments[node["argument"]].partition(":")[0]
        feed = _FEED.fullmatch(node["name"])
        assert feed is not None
        return feed["node"]


def differences(ran: Executed) -> list[str]:
    """What TensorFlow executed that the import has not, the other way round, or wired otherwise."""
    theirs = ran.theirs()
    if not ran.call:
        needed = ran.needed()
        theirs = {n: node for n, node in theirs.items() if n in needed or n in ran.mine}
    found = [f"missing: {n} ({node['op']})" for n, node in theirs.items() if n not in ran.mine]
    for name, operator in ran.mine.items():
        if name not in theirs and not (ran.parts(name) if name in ran.divided else []):
            if not _in_function(ran, operator):
                found.append(f"too many: {name} ({operator.op})")
        elif not ran.call and operator.op in CALL_OPS and _op(theirs, name) != operator.op:
            found.append(f"inlined: {name}")
        else:
            found.extend(f"{name}: {fault}" for fault in _faults(ran, name, operator))
    return found


def _op(nodes: Mapping[str, Node], name: str) -> str:
    return nodes[name]["op"] if name in nodes else ""


def main_call(meta_graph: Any, graph: Graph) -> tuple[str, tuple[str, ...]]:
    """The main graph's call that a TF2 signature is, and its inputs."""
    (call,) = {o.name.partition("/")[0] for o in graph.operators if o.scope.parent is not None}
    (node,) = (n for n in meta_graph.graph_def.node if n.name == call)
    return call, tuple(text for text in node.input if not text.startswith("^"))


def _faults(ran: Executed, name: str, operator: Operator) -> Iterator[str]:
    producers = [ran.graph.operators[ref.producer] for ref in operator.inputs]
    expected: list[Edge] = [
        (ran.short(p), None if ran.short(p) in ran.divided else ref.port)
        for p, ref in zip(producers, operator.inputs, strict=True)
    ]
    if name not in ran.divided:
        node = ran.nodes[name]
        if node["op"] != operator.op:
            yield f"is a {node['op']}, not a {operator.op}"
        read = [ran.source(text) for text in _data(node)]
        # The back edges of loops are not in the flat graph.
        read = [e for e in read if ran.nodes.get(e[0], {}).get("op") != "NextIteration"]
        if read != expected:
            yield f"reads {read}, not {expected}"
        return
    seen = {ran.source(text)[0] for part in ran.parts(name) for text in _data(part)} - {name}
    wanted = {producer for producer, _ in expected}
    known = {ran.short(p) for p in producers if not _in_function(ran, p)}
    # A call that is taken apart may have arguments that its body does not read.
    optional = operator.op not in LOWERED_OPS
    if not seen <= wanted or (not optional and seen != wanted) or not (optional or known <= seen):
        yield f"reads {sorted(seen)}, not {sorted(wanted)}"


def _in_function(ran: Executed, operator: Operator) -> bool:
    """Whether a Session's inliner put a constant into the functions that read it."""
    index = ran.graph.index[operator.name]
    readers = [ran.graph.operators[i] for i in ran.graph.consumers[index]]
    return not ran.call and operator.op == "Const" and all(r.op in CALL_OPS for r in readers)


def _data(node: Mapping[str, Any]) -> list[str]:
    return [text for text in node["inputs"] if not text.startswith("^")]

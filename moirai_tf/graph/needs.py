"""Which inputs of lowered control flow a Session needs.

TensorFlow lowers a loop or branch into one chain of `Switch`es and `Merge`s for each input and
output (common_runtime/lower_while_op.cc, lower_if_op.cc, lower_case_op.cc). A Session then drops
what its fetches do not reach: what feeds a loop variable, or an argument of a branch, that nothing
needed reads. The TF2 loader drops nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorflow.core.framework import types_pb2

from moirai_tf.graph.calls import Calls, compiled
from moirai_tf.graph.graph import LOOPS, LOWERED_OPS
from moirai_tf.model.op_types import attr_of, definition, outputs_of
from moirai_tf.model.validate import function_attrs, input_node

Ports = frozenset[int]


def lowered(node: Any) -> bool:
    """Whether TensorFlow takes a loop or branch apart; if not, it is one node with all inputs."""
    marked = bool(attr_of(node, "_lower_using_switch_merge").b)
    return node.op in LOWERED_OPS and marked and not compiled(node)


@dataclass
class _Wanted:
    """What is known to run of one body."""

    ports: dict[str, set[int]] = field(default_factory=dict)
    """Node -> its outputs that are read."""
    awaited: set[str] = field(default_factory=set)
    """Nodes that something waits for without data."""
    arguments: set[int] = field(default_factory=set)
    pending: list[str] = field(default_factory=list)


class Needs:
    """Needed inputs of the nodes of one library."""

    def __init__(self, functions: Mapping[str, Any]) -> None:
        self._functions = functions
        self._calls = Calls(functions)
        self._known: dict[tuple[str, Ports, bool, bool], Ports] = {}

    def inputs(self, node: Any, ports: Ports, *, awaited: bool, strict: bool) -> Ports:
        """The positions of the data inputs that a node needs.

        Args:
          node: a `NodeDef`.
          ports: its outputs that are read.
          awaited: whether something waits for it without data.
          strict: whether Grappler lowers it, which happens inside inlined functions: a node with
            resources and no control input then waits for all of its inputs
            (`AddStrictInputSemantics`).
        """
        data = [text for text in node.input if not text.startswith("^")]
        everything = frozenset(range(len(data)))
        if not lowered(node):
            return everything
        types = attr_of(node, "T" if node.op in LOOPS else "Tin").list.type
        if strict and len(data) == len(node.input) and types_pb2.DT_RESOURCE in types:
            return everything
        if node.op in LOOPS:
            return self._loop(node, list(types), ports, awaited=awaited, strict=strict)
        found = {0}
        for _, _, function in function_attrs(node):
            read = self._arguments(function.name, ports, awaited=awaited, strict=strict)
            found.update(1 + k for k in read)
        return frozenset(found)

    def _loop(
        self, node: Any, types: list[int], ports: Ports, *, awaited: bool, strict: bool
    ) -> Ports:
        """Every turn waits for the whole body, and the end of a loop for all of its variables."""
        variables = frozenset(k for k, t in enumerate(types) if t != types_pb2.DT_RESOURCE)
        cond, body = attr_of(node, "cond").func.name, attr_of(node, "body").func.name
        found = frozenset(sorted(variables)[:1])  # the functions wait for the first variable
        found |= variables if awaited else ports
        found |= self._arguments(cond, frozenset({0}), awaited=False, strict=strict)
        while True:
            read = self._arguments(body, found & variables, awaited=True, strict=strict)
            if read <= found:
                return found
            found |= read

    def _arguments(self, name: str, ports: Ports, *, awaited: bool, strict: bool) -> Ports:
        """The arguments that an inlined function needs for some of its results."""
        function = self._functions[name]
        if not self._calls.inlinable(function):
            return frozenset(range(len(function.signature.input_arg)))
        key = (name, ports, awaited, strict)
        if key not in self._known:
            self._known[key] = frozenset()  # a function may call itself
            self._known[key] = self._reached(function, ports, awaited, strict)
        return self._known[key]

    def _reached(self, function: Any, ports: Ports, awaited: bool, strict: bool) -> Ports:
        positions = {a.name: k for k, a in enumerate(function.signature.input_arg)}
        nodes = {node.name: node for node in function.node_def}
        controlling = self._calls.controlling(function, controls=awaited)
        wanted = _Wanted()
        results = [function.ret[a.name] for a in function.signature.output_arg]
        for text in (results[k] for k in ports if k < len(results)):
            self._want(text, wanted, positions, nodes)
        for name in function.control_ret.values() if awaited else ():
            self._want(f"^{name}", wanted, positions, nodes)
        while wanted.pending:
            node = nodes[wanted.pending.pop()]
            data = [text for text in node.input if not text.startswith("^")]
            read = self._inner(node, wanted, controls=node.name in controlling, strict=strict)
            for text in (*(data[k] for k in read), *node.input[len(data) :]):
                self._want(text, wanted, positions, nodes)
        return frozenset(wanted.arguments)

    def _inner(self, node: Any, wanted: _Wanted, *, controls: bool, strict: bool) -> Ports:
        ports = frozenset(wanted.ports.get(node.name, ()))
        awaited = node.name in wanted.awaited
        called = self._calls.inlined(node, controls=controls)
        data = sum(not text.startswith("^") for text in node.input)
        if called is None:
            return self.inputs(node, ports, awaited=awaited, strict=strict)
        types = attr_of(node, "Tin").list.type
        if data == len(node.input) and types_pb2.DT_RESOURCE in types and strict:
            return frozenset(range(data))
        return self._arguments(called.signature.name, ports, awaited=awaited, strict=strict)

    def _want(
        self, text: str, wanted: _Wanted, positions: Mapping[str, int], nodes: Mapping[str, Any]
    ) -> None:
        source = input_node(text)
        if source in positions:
            wanted.arguments.add(positions[source])
            return
        if text.startswith("^"):
            new = source not in wanted.awaited
            wanted.awaited.add(source)
        else:
            node = nodes[source]
            port = outputs_of(node, definition(node, self._functions)).port(text)
            read = wanted.ports.setdefault(source, set())
            new = port not in read
            read.add(port)
        if new:
            wanted.pending.append(source)

"""Drops what one inference does not need, and control edges that order nothing.

TensorFlow lowers a loop or branch into one chain of `Switch`es and `Merge`s for each input and
output (common_runtime/lower_while_op.cc, lower_if_op.cc, lower_case_op.cc). A Session then drops
what its fetches do not reach: what feeds a loop variable, or an argument of a branch, that nothing
needed reads. The TF2 loader drops nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tensorflow.core.framework import types_pb2

from moirai_tf.graph.calls import Calls, compiled, stateful_op
from moirai_tf.graph.colocation import Union, class_names
from moirai_tf.graph.graph import (
    CLIENT_OPS,
    LOOPS,
    LOWERED_OPS,
    MERGE_OPS,
    ColocationGroup,
    Graph,
    Operator,
    TensorRef,
    Unread,
)
from moirai_tf.model.op_types import attr_of, definition, outputs_of
from moirai_tf.model.validate import BACK_EDGE_SOURCES, function_attrs, input_node

_STATEFUL_WITHOUT_EFFECT = frozenset({
    "VarHandleOp", "ReadVariableOp", "VariableV2", "Variable", "ResourceGather", "ResourceGatherNd",
    "HashTableV2", "HashTable", "LookupTableFindV2", "LookupTableSizeV2", "VarIsInitializedOp",
    "VariableShape", "_Retval", "_Arg",
    "RandomUniform", "RandomStandardNormal", "RandomUniformInt", "TruncatedNormal",
    "ParameterizedTruncatedNormal", "RandomShuffle", "Multinomial", "RandomGamma",
    "RandomGammaGrad", "RandomPoisson", "RandomPoissonV2",
})  # fmt: skip
"""Ops that TensorFlow calls stateful because they read state; running them changes nothing."""

_DEADNESS_OPS = frozenset({"Switch", "RefSwitch", "Merge", "RefMerge", "Enter", "RefEnter"})


def has_side_effect(node: Any, functions: Mapping[str, Any], harmless: set[str]) -> bool:
    """Whether running a node can be seen by anything but its readers.

    Args:
      node: a `NodeDef`; one with functions does what they do.
      functions: function name -> `FunctionDef`.
      harmless: functions that are known to do nothing of the kind; more are added.
    """
    seen: set[str] = set()
    pending = [node]
    while pending:
        inner = pending.pop()
        named = (inner.op, *(function.name for _, _, function in function_attrs(inner)))
        bodies = {name for name in named if name in functions}
        if not bodies and stateful_op(inner.op) and inner.op not in _STATEFUL_WITHOUT_EFFECT:
            return True
        new = bodies - seen - harmless
        seen |= new
        pending.extend(each for name in sorted(new) for each in functions[name].node_def)
    harmless |= seen
    return False


def prune(graph: Graph) -> Graph:
    """What the outputs and the side effects of a graph need, and nothing else.

    Of control flow that TensorFlow lowers, only those inputs are needed that a Session needs: what
    feeds a loop variable that nobody reads goes. A control edge is kept if its source has a side
    effect, or if the graph holds TF1 control flow, where control edges carry deadness. `NoOp`s are
    replaced by what they wait for. The model itself keeps all of it: this is the graph that is
    placed, not the one that is written.
    """
    carries_deadness = any(o.op in _DEADNESS_OPS for o in graph.operators)
    harmless: set[str] = set()
    effects = frozenset(
        i
        for i, o in enumerate(graph.operators)
        if has_side_effect(o.node, graph.functions, harmless)
    )
    orders = frozenset(range(len(graph))) if carries_deadness else effects
    waits: list[tuple[int, ...]] = []
    for operator in graph.operators:
        waits.append(_controls(operator, graph.operators, waits, orders))
    search = _Search(graph, waits)
    search.run(effects)
    position = {old: new for new, old in enumerate(sorted(search.needed))}
    operators = tuple(
        _moved(graph, graph.operators[old], position, waits[old], search.positions(old))
        for old in position
    )
    return replace(
        graph,
        operators=operators,
        inputs={name: position[i] for name, i in graph.inputs.items()},
        outputs={name: position[i] for name, i in graph.outputs.items()},
        colocation=_groups(graph, position),
    )


def _controls(
    operator: Operator,
    operators: Sequence[Operator],
    waits: Sequence[tuple[int, ...]],
    orders: frozenset[int],
) -> tuple[int, ...]:
    """The control inputs that order something, `NoOp`s looked through."""
    found: dict[int, None] = {}
    for control in operator.controls:
        if operators[control].op == "NoOp":
            found.update(dict.fromkeys(waits[control]))
        elif control in orders:
            found[control] = None
    return tuple(sorted(found))


class _Search:
    """Which operators run, and which of their outputs are read."""

    def __init__(self, graph: Graph, waits: Sequence[tuple[int, ...]]) -> None:
        self._graph = graph
        self._waits = waits
        self._needs = Needs(graph.functions)
        self._ports: dict[int, set[int]] = {}
        self._awaited = {i for i, o in enumerate(graph.operators) if o.awaited}
        self._loop_ends = {
            (o.scope, o.node.name): i
            for i, o in enumerate(graph.operators)
            if o.op in BACK_EDGE_SOURCES
        }
        self.needed: set[int] = set()

    def run(self, effects: frozenset[int]) -> None:
        """Goes back from the outputs, the inputs and the side effects."""
        self._awaited |= effects
        pending = [*self._graph.outputs.values(), *self._graph.inputs.values(), *effects]
        while pending:
            i = pending.pop()
            self.needed.add(i)
            pending.extend(self._sources(i))

    def positions(self, i: int) -> Ports:
        """The data inputs that an operator needs for what is read of it."""
        operator = self._graph.operators[i]
        if not lowered(operator.node):
            return frozenset(range(len(operator.inputs) + len(operator.unread)))
        in_function = operator.scope.parent is not None
        awaited = i in self._awaited
        # TensorFlow keeps all outputs together of what is fetched by its own name.
        fetched = operator.awaited and not in_function
        ports = range(len(operator.outputs)) if fetched else self._ports.get(i, ())
        return self._needs.inputs(
            operator.node, frozenset(ports), awaited=awaited, strict=in_function
        )

    def _sources(self, i: int) -> Iterator[int]:
        """What becomes needed, or needed for more than before, since an operator is."""
        operator = self._graph.operators[i]
        arguments = list(operator.arguments())
        for argument in (arguments[k] for k in self.positions(i)):
            if isinstance(argument, Unread):
                continue
            producer, port = argument
            read = self._ports.setdefault(producer, set())
            if producer not in self.needed or (
                port not in read and lowered(self._graph.operators[producer].node)
            ):
                yield producer
            read.add(port)
        for control in self._waits[i]:
            new = control not in self._awaited
            self._awaited.add(control)
            if new or control not in self.needed:
                yield control
        for text in operator.node.input if operator.op in MERGE_OPS else ():
            end = self._loop_ends.get((operator.scope, input_node(text)))
            if end is not None and end not in self.needed:
                yield end


def _moved(
    graph: Graph,
    operator: Operator,
    position: dict[int, int],
    controls: Sequence[int],
    needed: Ports,
) -> Operator:
    kept: list[TensorRef] = []
    unread: list[Unread] = []
    for k, argument in enumerate(operator.arguments()):
        if isinstance(argument, Unread):
            unread.append(argument)
        elif k in needed:
            kept.append(TensorRef(position[argument.producer], argument.port))
        else:
            source = graph.operators[argument.producer]
            unread.append(Unread(k, source.scope, source.node.name, graph.spec(argument)))
    return replace(
        operator,
        inputs=tuple(kept),
        controls=tuple(position[c] for c in controls),
        unread=tuple(unread),
    )


def _groups(graph: Graph, position: dict[int, int]) -> tuple[ColocationGroup, ...]:
    """What is left of the groups.

    A dropped operator is given no device, and Python's loaders then take that of whatever asks to
    be near it (`_class`): it ends on the default device, the client's.
    """
    union = Union(len(position))
    client = next((i for i in sorted(position) if graph.operators[i].op in CLIENT_OPS), None)
    for group in graph.colocation:
        kept = [m for m in group.members if m in position]
        dropped = {graph.operators[m].name for m in group.members if m not in position}
        together = [client, *kept] if client is not None and _near(graph, kept, dropped) else kept
        for member in together[1:]:
            union.join(position[together[0]], position[member], group.reason)
    return union.groups()


def _near(graph: Graph, members: Sequence[int], names: set[str]) -> bool:
    """Whether one of the members asks to be near an operator of one of the names."""
    operators = (graph.operators[m] for m in members) if names else ()
    return any(o.scope.prefix + name in names for o in operators for name in class_names(o.node))


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

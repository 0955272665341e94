"""The part of a graph that treats rows independently, where an operator behind it mixes them.

Each share computes the first part, the head. The rest runs once, on the joined rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensorflow.core.framework import function_pb2, node_def_pb2

from moirai_tf.graph.graph import Graph, Operator, TensorRef
from moirai_tf.graph.shapes import enum_of
from moirai_tf.model.op_types import definition, outputs_of
from moirai_tf.model.validate import BACK_EDGE_SOURCES
from moirai_tf.split.rows import Rows, State


@dataclass(frozen=True)
class Cut:
    """Which operators of a flat graph make up the head, and which the rest."""

    graph: Graph
    head: tuple[int, ...]
    rest: tuple[int, ...]
    joined: tuple[TensorRef, ...]
    """What the head gives: rows, which are joined."""
    outputs: Mapping[str, TensorRef]
    """The tensor of every signature output; of the head if it is in `joined`."""

    @property
    def names(self) -> frozenset[str]:
        """The operators of the head."""
        return frozenset(self.graph.operators[i].name for i in self.head)

    @property
    def read(self) -> frozenset[str]:
        """What the head reads of the main graph, variables among it."""
        inputs = (ref.producer for i in self.head for ref in self.graph.operators[i].inputs)
        return frozenset(self.graph.operators[i].name for i in inputs)


def cut_of(graph: Graph, states: Sequence[tuple[State, ...]], whole: frozenset[int]) -> Cut | None:
    """Finds the largest head.

    Args:
      graph: the flat graph, unpruned: all of it is written.
      states: what every output holds of the batch.
      whole: operators that mix rows, or come behind one that does.

    Returns:
      None if there is no head, or the graph cannot be taken apart.
    """
    if any(operator.op in BACK_EDGE_SOURCES for operator in graph.operators):
        return None
    outputs = {name: graph.operators[i].inputs[0] for name, i in graph.outputs.items()}
    given = {i for i, operator in enumerate(graph.operators) if not operator.scope.function}

    def shared(ref: TensorRef) -> bool:
        """Whether it can be joined of what shares give."""
        at_front = states[ref.producer][ref.port] == Rows()
        return at_front and ref.producer not in whole and ref.producer not in given

    rest = {i for i, operator in enumerate(graph.operators) if operator.awaited} - given
    rest |= {ref.producer for ref in outputs.values() if not shared(ref)} - given
    for i in reversed(range(len(graph))):
        if i in rest:
            inputs = graph.operators[i].inputs
            rest |= {ref.producer for ref in inputs if not shared(ref)} - given
    wanted = [*outputs.values(), *(ref for i in sorted(rest) for ref in graph.operators[i].inputs)]
    joined = tuple(dict.fromkeys(r for r in wanted if r.producer not in rest and shared(r)))
    head = _ancestors(graph, (ref.producer for ref in joined)) - given
    return Cut(graph, tuple(sorted(head)), tuple(sorted(rest)), joined, outputs) if head else None


def _ancestors(graph: Graph, of: Iterable[int]) -> set[int]:
    found: set[int] = set()
    pending = list(of)
    while pending:
        i = pending.pop()
        if i not in found:
            found.add(i)
            pending.extend(ref.producer for ref in graph.operators[i].inputs)
    return found


def _rewired(operator: Operator, inputs: Sequence[str], before: Sequence[str]) -> Any:
    """The node of an operator, with its inputs in a function."""
    node = node_def_pb2.NodeDef()
    node.CopyFrom(operator.node)
    node.name = operator.name
    for attribute in ("_class", "_output_shapes"):
        node.attr.pop(attribute, None)
    del node.input[:]
    node.input.extend([*inputs, *(f"^{name}" for name in before)])
    return node


def function_of(
    name: str,
    graph: Graph,
    members: Sequence[int],
    arguments: Sequence[Any],
    given: Mapping[TensorRef, str],
    results: Sequence[TensorRef],
) -> Any:
    """Operators of a flat graph as a `FunctionDef`, under their own names.

    Args:
      name: of the function.
      graph: the flat graph.
      members: the operators, ascending.
      arguments: an `ArgDef` for each argument.
      given: tensors that are arguments, and which.
      results: what the function gives; outputs of members, or given.
    """
    made = function_pb2.FunctionDef()
    made.signature.name, made.signature.is_stateful = name, True
    made.signature.input_arg.extend(arguments)
    inside = frozenset(members)

    def text(ref: TensorRef) -> str:
        if ref in given:
            return given[ref]
        operator = graph.operators[ref.producer]
        outputs = outputs_of(operator.node, definition(operator.node, graph.functions))
        argument, ports = next(a for a in outputs.arguments.items() if ref.port in a[1])
        return f"{operator.name}:{argument}:{ref.port - ports.start}"

    for operator in map(graph.operators.__getitem__, members):
        before = [graph.operators[c].name for c in operator.controls if c in inside]
        inputs = [text(ref) for ref in operator.inputs]
        made.node_def.add().CopyFrom(_rewired(operator, inputs, before))
        if operator.awaited:
            made.signature.control_output.append(operator.name)
            made.control_ret[operator.name] = operator.name
    for k, ref in enumerate(results):
        made.signature.output_arg.add(name=f"result_{k}", type=enum_of(graph.spec(ref).dtype))
        made.ret[f"result_{k}"] = text(ref)
    return made

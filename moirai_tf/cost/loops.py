"""Functions inside one operator as flat graphs of their own, and how often a loop's body runs.

The graph says so of `for i in range(constant)` in all its forms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import node_def_pb2
from tensorflow.python.framework import tensor_util

from moirai_tf.graph import shapes
from moirai_tf.graph.flatten import Flattener
from moirai_tf.graph.graph import LOOPS, LOWERED_OPS, Graph, Operator, TensorRef, TensorSpec, Unread
from moirai_tf.graph.graphdef import to_graph_def
from moirai_tf.graph.importer import operator_of

_FORWARDS = frozenset({"Identity", "Cast", "Squeeze", "Reshape", "LoopCond"})


def trip_count(graph: Graph, loop: Operator) -> int | None:
    """Iterations of a `While`, or None if its inputs do not decide it statically.

    The condition must be, or begin with, `counter < limit` (several joined by a logical and): the
    counter starts at a constant, the body adds a constant to it, and the limit is a constant or a
    loop input that the body hands on. `tf.range` loops, `maximum_iterations` and Keras' recurrent
    layers are of that form.
    """
    condition = body_of(graph, loop, loop.node.attr["cond"].func.name)
    body = body_of(graph, loop, loop.node.attr["body"].func.name)
    counts = [
        count
        for counter, limit in _comparisons(condition.graph, condition.results[0])
        if (count := _count(graph, loop, condition, body, counter, limit)) is not None
    ]
    return min(counts, default=None)


def static_value(graph: Graph, ref: TensorRef) -> Fraction | None:
    """The number that constants and static shapes decide; None if it is none, or not finite."""
    wanted = _ancestors(graph, ref.producer)
    names = {graph.operators[i].name for i in wanted}
    graph_def = to_graph_def(graph)
    kept = [node for node in graph_def.node if node.name in names]
    del graph_def.node[:]
    graph_def.node.extend(kept)
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph_def, name="")
        name = f"{graph.operators[ref.producer].name}:{ref.port}"
        tensor = imported.get_tensor_by_name(name)
        value: Any = tensor_util.try_evaluate_constant(tensor)
    if value is None or value.size != 1:
        return None
    number = value.reshape(-1)[0]
    if tensor.dtype.is_integer:
        return Fraction(int(number))
    is_finite = tensor.dtype.is_floating and math.isfinite(number)
    return Fraction(float(number)) if is_finite else None


def _comparisons(graph: Graph, ref: TensorRef) -> Iterator[tuple[TensorRef, TensorRef]]:
    """Every (smaller, larger) that must hold for the condition to hold."""
    pending = [ref.producer]
    for index in pending:
        operator = graph.operators[index]
        if operator.op in _FORWARDS:
            pending.append(operator.inputs[0].producer)
        elif operator.op == "LogicalAnd":
            pending.extend(part.producer for part in operator.inputs)
        elif operator.op == "Less":
            yield operator.inputs[0], operator.inputs[1]
        elif operator.op == "Greater":
            yield operator.inputs[1], operator.inputs[0]


def _count(
    graph: Graph,
    loop: Operator,
    condition: FlatBody,
    body: FlatBody,
    counter: TensorRef,
    limit: TensorRef,
) -> int | None:
    """How often `counter < limit` holds, if counter, step and limit are static."""
    arguments = list(loop.arguments())

    def given(position: int) -> Fraction | None:
        """The value that a loop variable starts with."""
        argument = arguments[position]
        return static_value(graph, argument) if isinstance(argument, TensorRef) else None

    def unchanging(function: FlatBody, ref: TensorRef) -> Fraction | None:
        """The value of a constant in a function, or of an input that the body hands on."""
        position = _argument(function, ref)
        if position is None:
            return static_value(function.graph, ref)
        if _argument(body, body.results[position]) != position:
            return None
        return given(position)

    position = _argument(condition, counter)
    added = None if position is None else _added(body, position)
    if position is None or added is None:
        return None
    start = given(position)
    step, end = unchanging(body, added), unchanging(condition, limit)
    if start is None or end is None or step is None or step <= 0:
        return None
    return max(0, math.ceil((end - start) / step))


def _added(body: FlatBody, position: int) -> TensorRef | None:
    """What the body adds to one of its arguments."""
    source = body.graph.operators[_source(body.graph, body.results[position]).producer]
    if source.op not in ("Add", "AddV2"):
        return None
    for this, other in (source.inputs, source.inputs[::-1]):
        if _argument(body, this) == position:
            return other
    return None


def _argument(body: FlatBody, ref: TensorRef) -> int | None:
    """The position of the argument that a tensor is, if it is one."""
    source = _source(body.graph, ref)
    return body.arguments.index(source) if source in body.arguments else None


def _source(graph: Graph, ref: TensorRef) -> TensorRef:
    while graph.operators[ref.producer].op in _FORWARDS:
        ref = graph.operators[ref.producer].inputs[0]
    return ref


def _ancestors(graph: Graph, index: int) -> set[int]:
    seen, pending = {index}, [index]
    while pending:
        operator = graph.operators[pending.pop()]
        sources = {ref.producer for ref in operator.inputs} | set(operator.controls)
        pending.extend(sources - seen)
        seen |= sources
    return seen


BRANCHES = LOWERED_OPS - LOOPS


@dataclass(frozen=True)
class FlatBody:
    """A function with the arguments that one operator gives it."""

    graph: Graph
    arguments: tuple[TensorRef, ...]
    results: tuple[TensorRef, ...]


def arguments_of(operator: Operator) -> tuple[TensorRef | Unread, ...]:
    """What an operator gives to its functions: a branch's selector stays outside."""
    arguments = tuple(operator.arguments())
    return arguments[1:] if operator.op in BRANCHES else arguments


def body_of(graph: Graph, operator: Operator, function: str) -> FlatBody:
    """A function that an operator of a flat graph holds, with calls inside it inlined.

    Arguments have the static shapes that the operator is given; variables stay variables.

    Raises:
      ShapeError: the function does not suit these shapes, as a branch that is not taken need not.
    """
    definition = next(f for f in graph.library.function if f.signature.name == function)
    names = [argument.name for argument in definition.signature.input_arg]
    given = arguments_of(operator)
    nodes = [_argument_node(graph, name, ref) for name, ref in zip(names, given, strict=True)]
    results = [definition.ret[a.name] for a in definition.signature.output_arg]
    flattener = Flattener(graph.library)
    fed = frozenset(node.name for node in nodes if node.op == "Placeholder")
    wired = flattener.flatten(
        [*nodes, *definition.node_def], fed, [*names, *results], definition.control_ret.values()
    )
    fixed = {
        argument.producer: shape
        for argument, ref, node in zip(wired, given, nodes, strict=False)
        if node.op == "Placeholder" and (shape := _spec(graph, ref).shape) is not None
    }
    specs = shapes.infer(flattener.nodes, fixed, graph.library)
    operators = tuple(
        operator_of(flat, spec, flattener.functions)
        for flat, spec in zip(flattener.nodes, specs, strict=True)
    )
    inner = Graph(function, operators, {}, {}, library=graph.library)
    return FlatBody(inner, tuple(wired[: len(names)]), tuple(wired[len(names) :]))


def _argument_node(graph: Graph, name: str, ref: TensorRef | Unread) -> node_def_pb2.NodeDef:
    """A variable's handle as itself, so that its readers know its shape; else a placeholder."""
    node = node_def_pb2.NodeDef(name=name, op="Placeholder")
    if isinstance(ref, TensorRef) and graph.operators[ref.producer].op == "VarHandleOp":
        node.CopyFrom(graph.operators[ref.producer].node)
        node.name = name
    else:
        node.attr["dtype"].type = shapes.enum_of(_spec(graph, ref).dtype)
    return node


def _spec(graph: Graph, ref: TensorRef | Unread) -> TensorSpec:
    return ref.spec if isinstance(ref, Unread) else graph.spec(ref)

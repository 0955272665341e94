"""How often a loop's body runs: the graph says so of all forms of `for i in range(constant)`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import tensor_util

from moirai_tf.graph.bodies import FlatBody, body_of
from moirai_tf.graph.graph import Graph, Operator, TensorRef
from moirai_tf.graph.graphdef import to_graph_def

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
    graph_def = to_graph_def(graph, only=_ancestors(graph, ref.producer))
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

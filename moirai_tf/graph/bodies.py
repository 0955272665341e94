"""Functions inside one operator, such as bodies of loops, as flat graphs of their own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tensorflow.core.framework import node_def_pb2

from moirai_tf.graph import shapes
from moirai_tf.graph.flatten import FlatNode, Flattener
from moirai_tf.graph.graph import (
    LOOPS,
    LOWERED_OPS,
    RESULT,
    Graph,
    Operator,
    Scope,
    TensorRef,
    TensorSpec,
    Unread,
)
from moirai_tf.graph.importer import operator_of

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


def with_shapes(graph: Graph, known: Mapping[int, tuple[int, ...]]) -> Graph:
    """The graph with shapes that are known of operators' only outputs, and what follows of them.

    Raises:
      ShapeError: they do not suit what reads them.
    """
    unread = [argument for operator in graph.operators for argument in operator.unread]
    places = itertools.count(len(graph))
    nodes, fixed = [], dict(known)
    for k, operator in enumerate(graph.operators):
        sources = [
            TensorRef(next(places), 0) if isinstance(argument, Unread) else argument
            for argument in operator.arguments()
        ]
        types = tuple(shapes.enum_of(spec.dtype) for spec in operator.outputs)
        node = FlatNode(
            operator.name, operator.node, operator.scope, sources, list(operator.controls), types
        )
        if operator.op == RESULT:
            node = _source(f"result_{k}", shapes.enum_of("float32"))
        elif k in known:
            node = _source(operator.name, *types)
        elif operator.op == "Placeholder" and operator.outputs[0].shape is not None:
            fixed[k] = operator.outputs[0].shape
        nodes.append(node)
    for k, argument in enumerate(unread):
        nodes.append(_source(f"unread_{k}", shapes.enum_of(argument.spec.dtype)))
        if argument.spec.shape is not None:
            fixed[len(graph) + k] = argument.spec.shape
    specs = shapes.infer(nodes, fixed, graph.library)
    operators = (
        operator if operator.op == RESULT else replace(operator, outputs=spec)
        for operator, spec in zip(graph.operators, specs, strict=False)
    )
    return replace(graph, operators=tuple(operators))


def _source(name: str, dtype: int) -> FlatNode:
    """A node without inputs."""
    node = node_def_pb2.NodeDef(op="Placeholder")
    node.attr["dtype"].type = dtype
    return FlatNode(name, node, Scope("", ""), [], [], (dtype,))

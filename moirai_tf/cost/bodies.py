"""Functions that stay inside one operator, as flat graphs of their own: bodies of control flow."""

from __future__ import annotations

from dataclasses import dataclass

from tensorflow.core.framework import node_def_pb2

from moirai_tf.graph import shapes
from moirai_tf.graph.flatten import Flattener
from moirai_tf.graph.graph import LOOPS, LOWERED_OPS, Graph, Operator, TensorRef, TensorSpec, Unread
from moirai_tf.graph.importer import operator_of

BRANCHES = LOWERED_OPS - LOOPS


@dataclass(frozen=True)
class Body:
    """A function with the arguments that one operator gives it."""

    graph: Graph
    arguments: tuple[TensorRef, ...]
    results: tuple[TensorRef, ...]


def arguments_of(operator: Operator) -> tuple[TensorRef | Unread, ...]:
    """What an operator gives to its functions: a branch's selector stays outside."""
    arguments = tuple(operator.arguments())
    return arguments[1:] if operator.op in BRANCHES else arguments


def body_of(graph: Graph, operator: Operator, function: str) -> Body:
    """A function that an operator of a flat graph holds, with calls inside it inlined.

    Arguments have the static shapes that the operator is given; variables stay variables.
    """
    definition = next(f for f in graph.library.function if f.signature.name == function)
    names = [argument.name for argument in definition.signature.input_arg]
    given = arguments_of(operator)
    nodes = [_argument(graph, name, ref) for name, ref in zip(names, given, strict=True)]
    results = [definition.ret[a.name] for a in definition.signature.output_arg]
    flattener = Flattener(graph.library)
    fed = frozenset(node.name for node in nodes if node.op == "Placeholder")
    wired = flattener.flatten(
        [*nodes, *definition.node_def], fed, [*names, *results], definition.control_ret.values()
    )
    fixed = {
        argument.producer: _spec(graph, ref).shape or ()
        for argument, ref, node in zip(wired, given, nodes, strict=False)
        if node.op == "Placeholder"
    }
    specs = shapes.infer(flattener.nodes, fixed, graph.library)
    operators = tuple(
        operator_of(flat, spec, flattener.functions)
        for flat, spec in zip(flattener.nodes, specs, strict=True)
    )
    inner = Graph(function, operators, {}, {}, library=graph.library)
    return Body(inner, tuple(wired[: len(names)]), tuple(wired[len(names) :]))


def _argument(graph: Graph, name: str, ref: TensorRef | Unread) -> node_def_pb2.NodeDef:
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

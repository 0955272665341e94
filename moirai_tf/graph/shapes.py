"""Static types, shapes and resident bytes of the flat graph, by TensorFlow's own shape functions.

Control flow declares the shapes that it had when it was traced, mostly for any batch size. Its
bodies tell more: a loop whose body keeps the shapes of what it is given gives just these, and so
does a branch if all branches agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cache
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import graph_pb2, types_pb2
from tensorflow.python.framework import dtypes
from tensorflow.python.framework.errors_impl import OpError

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.flatten import FlatNode
from moirai_tf.graph.graph import LOOPS, LOWERED_OPS, TensorSpec
from moirai_tf.graph.graphdef import (
    called_functions,
    flat_node,
    keep_from_running,
    set_shape,
)
from moirai_tf.model.op_types import attr_of
from moirai_tf.model.validate import function_attrs

_STRING_BYTES = 32
"""Length of a string is not static; this stands for one."""

_ENTER = {"Enter": "Identity", "RefEnter": "RefIdentity"}
"""Entrances of TF1 loops; their variables keep their shapes unless told otherwise."""

_SCALAR_TABLES = frozenset({"HashTableV2", "MutableHashTableV2"})

_Shapes = Mapping[str, list[Any]]
"""Node -> `tf.TensorShape` of every output."""


class ShapeError(MoiraiError):
    """TensorFlow refuses the shapes of a graph."""


def infer(
    nodes: Sequence[FlatNode],
    placeholders: Mapping[int, Sequence[int]],
    library: Any,
    producer: int = tf.version.GRAPH_DEF_VERSION,
) -> list[tuple[TensorSpec, ...]]:
    """The outputs of every node.

    Args:
      nodes: the flat nodes, in topological order.
      placeholders: index of a node that is fed -> its shape (-1: unknown dimension).
      library: the `FunctionDefLibrary`.
      producer: version of the `GraphDef` that the nodes come from; old ops need an old one.

    Raises:
      ShapeError: TensorFlow refuses the graph; its own message is passed on.
    """

    @cache
    def shapes_with(opened: frozenset[str]) -> _Shapes:
        return _shapes(_graph_def(nodes, placeholders, library, producer, opened))

    control_flow = frozenset(flat.name for flat in nodes if flat.node.op in LOWERED_OPS)
    opened = _possible(shapes_with, sorted(control_flow))
    shapes = shapes_with(opened)
    changing = {name for name in opened if not _agree(shapes, name)}
    if changing:
        shapes = shapes_with(opened - changing)
    return [
        tuple(tensor_spec(t, _sizes(s)) for t, s in zip(flat.types, shapes[flat.name], strict=True))
        for flat in nodes
    ]


def _possible(
    shapes_with: Callable[[frozenset[str]], _Shapes],
    names: Sequence[str],
    others: frozenset[str] = frozenset(),
) -> frozenset[str]:
    """The control flow that can be opened, besides others that can.

    A branch that is not taken for these inputs need not suit them (`tf.cond(tf.rank(x) > 1, ...)`).

    Raises:
      ShapeError: TensorFlow refuses the graph as it is.
    """
    try:
        shapes_with(others.union(names))
    except ShapeError:
        shapes_with(others)
    else:
        return others.union(names)
    if len(names) == 1:
        return others
    half = len(names) // 2
    return _possible(shapes_with, names[half:], _possible(shapes_with, names[:half], others))


def _graph_def(
    nodes: Sequence[FlatNode],
    placeholders: Mapping[int, Sequence[int]],
    library: Any,
    producer: int,
    opened: Set[str],
) -> Any:
    """The flat nodes, with the bodies of the opened control flow in its place."""
    graph_def = graph_pb2.GraphDef()
    graph_def.versions.producer = producer
    names = [flat.name for flat in nodes]
    for i, flat in enumerate(nodes):
        node = flat_node(graph_def, flat.node, flat.name, names, flat.inputs, flat.controls)
        if i in placeholders:
            set_shape(node, placeholders[i])
        elif flat.name in opened:
            _open(graph_def, node)
        elif node.op in _ENTER:
            _replace(node, _ENTER[node.op], node.input, T=attr_of(node, "T").type)
        elif node.op == "LookupTableFindV2" and _gives_scalars(nodes, flat):
            types = {"SrcT": attr_of(node, "Tin").type, "DstT": attr_of(node, "Tout").type}
            _replace(node, "Cast", node.input[1:2], **types)
    graph_def.library.function.extend(called_functions(graph_def.node, library))
    keep_from_running(graph_def)
    return graph_def


def _shapes(graph_def: Any) -> _Shapes:
    try:
        with tf.Graph().as_default() as graph:
            tf.graph_util.import_graph_def(graph_def, name="")
    except (OpError, TypeError, ValueError) as error:
        raise ShapeError(
            f"TensorFlow cannot infer the shapes of this graph: {error}",
            why="sizes of tensors decide the cost of transfers and the memory of devices",
            fix="check the input shapes (batch_size, input_shapes) against the signature",
        ) from error
    return {op.name: [tensor.shape for tensor in op.outputs] for op in graph.get_operations()}


def _replace(node: Any, op: str, inputs: Sequence[str], **types: int) -> None:
    """Puts in a node's place one whose shape function tells more."""
    name, data = node.name, list(inputs)
    node.Clear()
    node.name, node.op = name, op
    node.input.extend(data)
    for attribute, dtype in types.items():
        node.attr[attribute].type = dtype


def _gives_scalars(nodes: Sequence[FlatNode], lookup: FlatNode) -> bool:
    """Whether a lookup gives one value for each key, so that it keeps the shape of the keys."""
    return nodes[lookup.inputs[0].producer].node.op in _SCALAR_TABLES


def _open(graph_def: Any, node: Any) -> None:
    """Turns control flow into a call of its first body, and adds what must give the same shapes."""
    name, loop = node.name, node.op in LOOPS
    bodies = [f.name for attribute, _, f in function_attrs(node) if attribute != "cond"]
    takes = list(attr_of(node, "T" if loop else "Tin").list.type)
    gives = list(attr_of(node, "T" if loop else "Tout").list.type)
    inputs = [text for text in node.input if not text.startswith("^")][0 if loop else 1 :]
    node.Clear()
    for k, body in enumerate(bodies):
        call = node if k == 0 else graph_def.node.add()
        call.name, call.op = _alternative(name, k) if k else name, "StatefulPartitionedCall"
        call.input.extend(inputs)
        call.attr["f"].func.name = body
        call.attr["Tin"].list.type.extend(takes)
        call.attr["Tout"].list.type.extend(gives)
    if loop:
        unchanged = graph_def.node.add(name=_alternative(name, 1), op="IdentityN", input=inputs)
        unchanged.attr["T"].list.type.extend(takes)


def _agree(shapes: _Shapes, name: str) -> bool:
    """Whether all branches give the same shapes, or a loop those that it takes."""
    first, k = [_sizes(shape) for shape in shapes[name]], 1
    while (other := _alternative(name, k)) in shapes:
        if [_sizes(shape) for shape in shapes[other]] != first:
            return False
        k += 1
    return True


def _alternative(name: str, k: int) -> str:
    return f"{name}/alternative_{k}"


def _sizes(shape: Any) -> tuple[int, ...] | None:
    """A `tf.TensorShape` as sizes, -1 for an unknown one; None if the rank is unknown."""
    return None if shape.rank is None else tuple(-1 if d is None else d for d in shape.as_list())


def tensor_spec(dtype: int, sizes: tuple[int, ...] | None) -> TensorSpec:
    """A `TensorSpec` with the bytes that a transfer of it moves."""
    count = 1 if sizes is None else math.prod(abs(size) for size in sizes)
    return TensorSpec(_name(dtype), sizes, count * _item_bytes(dtype))


def enum_of(name: str) -> int:
    """The inverse of the names in `TensorSpec.dtype`."""
    return int(dtypes.as_dtype(name).as_datatype_enum)


@cache
def _name(dtype: int) -> str:
    return str(dtypes.as_dtype(dtype).name) if dtype else "invalid"


@cache
def _item_bytes(dtype: int) -> int:
    if dtype == types_pb2.DT_STRING:
        return _STRING_BYTES
    if dtype in (types_pb2.DT_INVALID, types_pb2.DT_RESOURCE, types_pb2.DT_VARIANT):
        return 0
    return max(1, int(dtypes.as_dtype(dtype).base_dtype.size))


VARIABLE_OPS = frozenset({"VarHandleOp", "VariableV2", "Variable"})

_FORWARDING_OPS = frozenset({
    "ReadVariableOp", "Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient",
    "PreventGradient", "Enter", "RefEnter", "Exit", "Merge", "Switch", "NextIteration", "Snapshot",
    "EnsureShape", "_Retval",
})  # fmt: skip
"""Ops whose outputs share the buffer of their input."""


def weight_bytes(node: Any, outputs: Sequence[TensorSpec]) -> int:
    """Bytes of the variable or constant that a node holds, 0 for any other node."""
    if node.op in VARIABLE_OPS:
        sizes = tuple(d.size for d in attr_of(node, "shape").shape.dim)
        return tensor_spec(attr_of(node, "dtype").type, sizes).nbytes
    if node.op == "Const":
        return sum(o.nbytes for o in outputs)
    return 0


def resident_bytes(op: str, weight: int, outputs: Sequence[TensorSpec]) -> int:
    """Weights once, and outputs that need memory of their own."""
    if op == "Const" or op in VARIABLE_OPS or op in _FORWARDING_OPS:
        return weight
    return weight + sum(o.nbytes for o in outputs)

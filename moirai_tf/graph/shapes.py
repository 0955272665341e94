"""Static types and shapes of the flat graph, by Grappler's own shape inference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tensorflow.core.framework import graph_pb2, types_pb2
from tensorflow.python.framework import dtypes
from tensorflow.python.framework.errors_impl import OpError
from tensorflow.python.grappler import item as grappler_item

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.flatten import FlatNode
from moirai_tf.graph.graph import TensorSpec
from moirai_tf.graph.graphdef import flat_node, make_known, meta_graph, set_shape

_STRING_BYTES = 32
"""Length of a string is not static; this stands for one."""


def infer(
    nodes: Sequence[FlatNode], placeholders: Mapping[int, Sequence[int]], library: Any
) -> list[tuple[TensorSpec, ...]]:
    """The outputs of every node.

    Args:
      nodes: the flat nodes, in topological order.
      placeholders: index of a node that is fed -> its shape (-1: unknown dimension).
      library: the `FunctionDefLibrary`.

    Raises:
      MoiraiError: TensorFlow refuses the graph; its own message is passed on.
    """
    graph_def = graph_pb2.GraphDef()
    names = [n.name for n in nodes]
    for i, flat in enumerate(nodes):
        node = flat_node(graph_def, flat.node, flat.name, names, flat.inputs, flat.controls)
        if i in placeholders:
            set_shape(node, placeholders[i])
            make_known(node)
    graph_def.library.CopyFrom(library)
    properties = _properties(graph_def, names)
    return [_specs(flat, properties.get(flat.name, ())) for flat in nodes]


def _specs(flat: FlatNode, inferred: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """Types from the op's definition, shapes as far as Grappler tells them."""
    if len(inferred) != len(flat.types):
        return tuple(tensor_spec(dtype, None) for dtype in flat.types)
    return tuple(spec(dtype, p.shape) for dtype, p in zip(flat.types, inferred, strict=True))


def _properties(graph_def: Any, names: Sequence[str]) -> Mapping[str, Any]:
    try:
        item = grappler_item.Item(
            meta_graph(graph_def, names[-1:]), ignore_colocation=True, ignore_user_placement=True
        )
        properties: Mapping[str, Any] = item.GetOpProperties()
    except (OpError, ValueError, RuntimeError) as error:
        raise MoiraiError(
            f"TensorFlow cannot infer the shapes of this graph: {error}",
            why="sizes of tensors decide the cost of transfers and the memory of devices",
            fix="check the input shapes (batch_size, input_shapes) against the signature",
        ) from error
    return properties


def spec(dtype: int, shape: Any) -> TensorSpec:
    """A `TensorSpec` from TensorFlow's enum of types and a `TensorShapeProto`."""
    sizes = None if shape.unknown_rank else tuple(max(d.size, -1) for d in shape.dim)
    return tensor_spec(dtype, sizes)


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

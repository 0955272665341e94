"""A SavedModel of any size, written as protobufs: blocks in stages in one signature, all functions.

Only the block, a transformer layer, is traced by TensorFlow; copies of it, the stages that call
them and the main graph are put together by hand, so that 100,000 operators take a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import function_pb2, node_def_pb2, types_pb2
from tensorflow.core.protobuf import saved_model_pb2

_WIDTH = 64
_TOKENS = 16
_BLOCKS_PER_STAGE = 25
_WEIGHTS = ("query", "key", "value", "projection", "up", "down")


@tf.function(
    input_signature=[tf.TensorSpec([None, _TOKENS, _WIDTH], tf.float32, name="x")]
    + [tf.TensorSpec([], tf.resource, name=name) for name in _WEIGHTS]
)
def _block(
    x: tf.Tensor,
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    projection: tf.Tensor,
    up: tf.Tensor,
    down: tf.Tensor,
) -> tf.Tensor:
    """Attention and a feed-forward layer, each with layer norm and a residual."""

    def dense(inputs: tf.Tensor, handle: tf.Tensor) -> tf.Tensor:
        weight = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
        return tf.matmul(inputs, tf.ensure_shape(weight, [_WIDTH, _WIDTH]))

    def norm(inputs: tf.Tensor) -> tf.Tensor:
        mean, variance = tf.nn.moments(inputs, axes=[-1], keepdims=True)
        return (inputs - mean) * tf.math.rsqrt(variance + 1e-5)

    y = norm(x)
    scores = tf.matmul(dense(y, query), dense(y, key), transpose_b=True)
    x += dense(tf.matmul(tf.nn.softmax(scores), dense(y, value)), projection)
    return x + dense(tf.nn.gelu(dense(norm(x), up)), down)


def write_model(path: Path, operators: int) -> None:
    """Writes a SavedModel whose signature has at least this many operators."""
    traced = _block.get_concrete_function().function_def
    per_block = len(traced.node_def) + len(_WEIGHTS)
    blocks = -(-operators // per_block)
    model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta_graph = model.meta_graphs.add()
    meta_graph.meta_info_def.tags.append("serve")
    stages = [
        _stage(meta_graph.graph_def.library, traced, k, min(_BLOCKS_PER_STAGE, blocks - first))
        for k, first in enumerate(range(0, blocks, _BLOCKS_PER_STAGE))
    ]
    _main(meta_graph, stages)
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(model.SerializeToString(deterministic=True))


def _stage(library: Any, traced: Any, number: int, blocks: int) -> Any:
    """Adds a function that calls blocks in a row, each block function twice."""
    stage = library.function.add()
    stage.signature.name = f"__inference_stage_{number}"
    handles = [f"handle_{i}" for i in range(blocks * len(_WEIGHTS))]
    _arguments(stage, handles)
    flow = "x"
    for i in range(blocks):
        if i % 2 == 0:
            block = library.function.add()
            block.CopyFrom(traced)
            block.signature.name = f"__inference_block_{number}_{i}"
        weights = handles[i * len(_WEIGHTS) : (i + 1) * len(_WEIGHTS)]
        call = _call(stage.node_def.add(), f"block_{i}", block, [flow, *weights])
        flow = f"{call.name}:output:0"
    stage.ret["y"] = flow
    return stage


def _main(meta_graph: Any, stages: list[Any]) -> None:
    """The main graph: variables, one call of a function that calls the stages, the signature."""
    graph, objects = meta_graph.graph_def, meta_graph.object_graph_def
    model = graph.library.function.add()
    model.signature.name = "__inference_model_0"
    counts = [len(stage.signature.input_arg) - 1 for stage in stages]
    handles = [f"weight_{i}" for i in range(sum(counts))]
    _arguments(model, handles)
    flow, first = "x", 0
    for stage, count in zip(stages, counts, strict=True):
        weights = handles[first : first + count]
        call = _call(model.node_def.add(), stage.signature.name, stage, [flow, *weights])
        flow, first = f"{call.name}:output:0", first + count
    model.ret["y"] = flow
    feed = graph.node.add(name="serving_default_x", op="Placeholder")
    feed.attr["dtype"].type = types_pb2.DT_FLOAT
    captured = objects.concrete_functions[model.signature.name].bound_inputs
    for handle in handles:
        _variable(graph.node.add(name=handle, op="VarHandleOp"))
        captured.append(len(objects.nodes))
        variable = objects.nodes.add().variable
        variable.name, variable.dtype = handle, types_pb2.DT_FLOAT
    call = _call(graph.node.add(), "StatefulPartitionedCall", model, [feed.name, *handles])
    signature = meta_graph.signature_def["serving_default"]
    for side, name in ((signature.inputs["x"], feed.name), (signature.outputs["y"], call.name)):
        side.name, side.dtype = f"{name}:0", types_pb2.DT_FLOAT
        for size in (-1, _TOKENS, _WIDTH):
            side.tensor_shape.dim.add().size = size


def _arguments(function: function_pb2.FunctionDef, handles: list[str]) -> None:
    signature = function.signature
    signature.input_arg.add(name="x", type=types_pb2.DT_FLOAT)
    for handle in handles:
        signature.input_arg.add(name=handle, type=types_pb2.DT_RESOURCE)
    signature.output_arg.add(name="y", type=types_pb2.DT_FLOAT)


def _call(
    node: node_def_pb2.NodeDef, name: str, function: function_pb2.FunctionDef, inputs: list[str]
) -> node_def_pb2.NodeDef:
    node.name, node.op = name, "StatefulPartitionedCall"
    node.input.extend(inputs)
    node.attr["f"].func.name = function.signature.name
    node.attr["Tin"].list.type.extend(arg.type for arg in function.signature.input_arg)
    node.attr["Tout"].list.type.append(types_pb2.DT_FLOAT)
    return node


def _variable(node: node_def_pb2.NodeDef) -> None:
    node.attr["dtype"].type = types_pb2.DT_FLOAT
    node.attr["shared_name"].s = node.name.encode()
    for _ in range(2):
        node.attr["shape"].shape.dim.add().size = _WIDTH

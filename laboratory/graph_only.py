"""SavedModels without weights: structure, shapes and types, so that any size fits a laptop.

A Keras model is made in a stateless scope, where no variable gets a value, and traced into a graph
in which every variable is a handle that nothing ever fills.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2


def write_graph_only(make: Callable[[], Any], path: Path, dtype: str = "float32") -> None:
    """Writes the SavedModel of a Keras model; no weight is ever made.

    Args:
      make: builds the model, whose inputs have full shapes.
      path: directory to write.
      dtype: of weights and activations.
    """
    keras.utils.clear_session()
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        with keras.StatelessScope(initialize_variables=False):
            model = make()
        _write(model, path)
    finally:
        keras.config.set_dtype_policy(policy)


def _write(model: Any, path: Path) -> None:
    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta_graph = saved.meta_graphs.add()
    meta_graph.meta_info_def.tags.append("serve")
    signature = meta_graph.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    graph = tf.Graph()
    with graph.as_default():
        feeds = {
            tensor.name: tf.compat.v1.placeholder(tensor.dtype, tensor.shape, tensor.name)
            for tensor in model.inputs
        }
        values = [(variable, _declared(i, variable)) for i, variable in enumerate(model.variables)]
        with keras.StatelessScope(state_mapping=values, initialize_variables=False):
            results = model(_like(model.input, feeds), training=False)
        fetches = {
            f"output_{i}": tf.identity(result, f"fetch_{i}")
            for i, result in enumerate(tf.nest.flatten(results))
        }
    for side, tensors in ((signature.inputs, feeds), (signature.outputs, fetches)):
        for name, tensor in tensors.items():
            side[name].name, side[name].dtype = tensor.name, tensor.dtype.as_datatype_enum
            side[name].tensor_shape.CopyFrom(tensor.shape.as_proto())
    meta_graph.graph_def.CopyFrom(graph.as_graph_def())
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(saved.SerializeToString(deterministic=True))


def _like(structure: Any, feeds: dict[str, Any]) -> Any:
    """The feeds as the model takes them."""
    return tf.nest.map_structure(lambda tensor: feeds[tensor.name], structure)


def _declared(number: int, variable: Any) -> tf.Tensor:
    """What is read of a variable that has a name, a type and a shape, and no value."""
    name = f"{variable.path.replace(':', '_')}_{number}"
    dtype = tf.as_dtype(variable.dtype)
    handle = tf.raw_ops.VarHandleOp(
        dtype=dtype, shape=variable.shape, shared_name=name, name=f"weights/{name}"
    )
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype, name=f"weights/{name}/Read")
    return tf.ensure_shape(value, variable.shape)

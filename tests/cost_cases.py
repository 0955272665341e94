"""Small SavedModels and their flat graphs, for the tests of costs."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from moirai_tf.cost.table import CostTable, described_inputs, fingerprint
from moirai_tf.graph.graph import Graph
from moirai_tf.graph.importer import import_graph
from moirai_tf.graph.options import ImportOptions
from moirai_tf.graph.prune import prune
from moirai_tf.model.saved_model import SavedModel, read_saved_model


def saved(function, path: Path, *variables: tf.Variable) -> SavedModel:
    """Saves a `tf.function` with an input signature as a SavedModel, and reads it."""
    module = tf.Module()
    module.held = list(variables)
    module.call = function
    tf.saved_model.save(module, str(path), signatures=module.call)
    return read_saved_model(path)


def imported(model: SavedModel, **options) -> Graph:
    """The pruned flat graph of a model."""
    return prune(import_graph(model, ImportOptions(**options)))


def tanh_sin_cos(path: Path) -> Graph:
    """x (64 floats) -> tanh -> sin -> cos, each output 256 bytes."""

    @tf.function(input_signature=[spec(1, 64)])
    def call(x):
        return {"y": tf.cos(tf.sin(tf.tanh(x)))}

    return imported(saved(call, path))


def table_of(graph: Graph, **costs) -> CostTable:
    """A cost table without operators, but with what else is given."""
    inputs = described_inputs(graph)
    return CostTable(graph.signature, inputs, fingerprint(graph), {}, {}, (), {}, **costs)


def index_of(graph: Graph, op: str) -> int:
    """The only operator of that type."""
    (index,) = [i for i, operator in enumerate(graph.operators) if operator.op == op]
    return index


def spec(*shape: int | None, dtype: tf.DType = tf.float32, name: str = "x") -> tf.TensorSpec:
    """An input of a signature."""
    return tf.TensorSpec(shape, dtype, name)

"""TensorFlow 1 SavedModels: flat graphs with dataflow control flow and reference variables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from tests.zoo import entry

_WIDTH = 32
_HIDDEN_TAGS = ("serve", "hidden")

tf1 = tf.compat.v1


@contextlib.contextmanager
def _control_flow_v1() -> Iterator[None]:
    """`cond` and `while_loop` become Switch, Merge, Enter and Exit instead of functions."""
    was_enabled = tf1.control_flow_v2_enabled()
    tf1.disable_control_flow_v2()
    try:
        yield
    finally:
        if was_enabled:
            tf1.enable_control_flow_v2()


def _variable(name: str, *shape: int, seed: int, use_resource: bool) -> tf.Tensor:
    initializer = tf1.random_normal_initializer(stddev=0.2, seed=seed)
    return tf1.get_variable(name, shape, initializer=initializer, use_resource=use_resource)


def _forward() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Adds the model to the default graph: (input, hidden, logits)."""
    x = tf1.placeholder(tf.float32, [None, _WIDTH], name="x")
    kernel = _variable("reference/kernel", _WIDTH, _WIDTH, seed=1, use_resource=False)
    bias = _variable("reference/bias", _WIDTH, seed=2, use_resource=False)
    gate = _variable("resource/gate", _WIDTH, _WIDTH, seed=3, use_resource=True)
    head = _variable("resource/head", _WIDTH, 10, seed=4, use_resource=True)
    hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(x, kernel), bias))
    _, looped = tf1.while_loop(
        lambda step, _: step < 3,
        lambda step, state: (step + 1, tf.tanh(tf.matmul(state, gate) + hidden)),
        (tf.constant(0), hidden),
    )
    chosen = tf1.cond(
        tf.reduce_mean(x) > 0.0, lambda: looped + hidden, lambda: tf.nn.sigmoid(looped)
    )
    return x, hidden, tf.matmul(chosen, head, name="logits")


def _signature(x: tf.Tensor, **outputs: tf.Tensor) -> dict[str, object]:
    predict = tf1.saved_model.predict_signature_def({"x": x}, outputs)
    return {"serving_default": predict}


def _build(path: Path) -> None:
    with _control_flow_v1(), tf.Graph().as_default(), tf1.Session() as session:
        x, _, logits = _forward()
        session.run(tf1.global_variables_initializer())
        builder = tf1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], _signature(x, logits=logits))
        builder.save()


def _build_two_metagraphs(path: Path) -> None:
    with _control_flow_v1():
        builder = tf1.saved_model.Builder(str(path))
        with tf.Graph().as_default(), tf1.Session() as session:
            x, _, logits = _forward()
            session.run(tf1.global_variables_initializer())
            builder.add_meta_graph_and_variables(session, ["serve"], _signature(x, logits=logits))
        with tf.Graph().as_default():
            x, hidden, logits = _forward()
            builder.add_meta_graph(list(_HIDDEN_TAGS), _signature(x, hidden=hidden, logits=logits))
        builder.save()


_FEATURES = {"x": entry.uniform(_WIDTH)}

ENTRIES = {
    "tf1": entry.ZooEntry(
        _build,
        _FEATURES,
        note="TF1 graph: Switch, Merge, a while frame, reference and resource variables",
    ),
    "tf1_two_metagraphs": entry.ZooEntry(
        _build_two_metagraphs,
        _FEATURES,
        note="two MetaGraphs that share variables; this entry is the one tagged `hidden` too",
        tags=_HIDDEN_TAGS,
    ),
}

"""Which models treat the rows of a batch independently: what is found, and for what reason not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from moirai_tf.graph.graph import LOOPS
from moirai_tf.graph.prune import prune
from moirai_tf.split.separate import Separation, separation
from tests.saved_models import graph_of

_SIZES = (7, 11)
_F = tf.float32


def _separation(path: Path, function: Callable[..., Any], *specs: tf.TensorSpec) -> Separation:
    module = tf.Module()
    module.f = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(path), signatures=module.f)
    first, second = (prune(graph_of(path, batch_size=size)) for size in _SIZES)
    return separation((first, second), _SIZES)


def _weights(*shape: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).standard_normal(shape), _F)


def _image(x: tf.Tensor) -> Mapping[str, tf.Tensor]:
    x = tf.nn.conv2d(x, _weights(3, 3, 2, 4), 1, "SAME")
    x = tf.nn.max_pool2d(tf.nn.relu(x), 2, 2, "VALID")
    x = tf.reshape(x, [-1, x.shape[1] * x.shape[2] * x.shape[3]])
    return {"y": tf.nn.softmax(tf.matmul(x, _weights(36, 5))), "best": tf.argmax(x, 1)}


def _dilated(x: tf.Tensor) -> Mapping[str, tf.Tensor]:
    """A dilated convolution goes through more, smaller images."""
    x = tf.space_to_batch_nd(x, [2, 2], [[0, 0], [0, 0]])
    x = tf.nn.conv2d(x, _weights(1, 1, 2, 2), 1, "SAME")
    return {"y": tf.batch_to_space(x, [2, 2], [[0, 0], [0, 0]])}


def _attention(x: tf.Tensor) -> Mapping[str, tf.Tensor]:
    """Heads by reshape and transpose with the shape of the batch, as Keras' layers do."""
    shape = tf.shape(x)
    heads = tf.transpose(tf.reshape(x, [shape[0], shape[1], 2, 4]), [0, 2, 1, 3])
    scores = tf.nn.softmax(tf.matmul(heads, heads, transpose_b=True))
    joined = tf.reshape(tf.transpose(tf.matmul(scores, heads), [0, 2, 1, 3]), shape)
    mean = tf.reduce_mean(joined, -1, keepdims=True)
    dense = tf.reshape(tf.matmul(tf.reshape(joined - mean, [-1, 8]), _weights(8, 8)), shape)
    return {"y": tf.einsum("btd,de->bte", dense, _weights(8, 3))}


def _table(ids: tf.Tensor) -> Mapping[str, tf.Tensor]:
    vectors = tf.gather(_weights(20, 6), ids)
    mask = tf.cast(ids > 0, _F)[:, :, tf.newaxis]
    return {"y": tf.reduce_sum(vectors * mask, 1), "hot": tf.one_hot(ids, 20)}


def _class_token(x: tf.Tensor) -> Mapping[str, tf.Tensor]:
    token = tf.broadcast_to(_weights(1, 1, 8), [tf.shape(x)[0], 1, 8])
    zeros = tf.zeros([tf.shape(x)[0], 2, 8])
    x = tf.concat([token, x, zeros], 1)
    return {"y": x[:, 0], "all": tf.stack(tf.unstack(x, axis=1), axis=2)}


def _time_major(x: tf.Tensor) -> Mapping[str, tf.Tensor]:
    """Rows as the second dimension, between the steps and in the middle of a flat one."""
    x = tf.transpose(x, [1, 0, 2])
    flat = tf.matmul(tf.reshape(x, [-1, 8]), _weights(8, 8))
    return {"y": tf.transpose(tf.reshape(flat, tf.shape(x)), [1, 0, 2])[..., :4]}


def _steps(x: tf.Tensor) -> Mapping[str, tf.Tensor]:
    """A recurrent layer: a list that is read, one that is written, zeros to begin with."""
    steps = tf.TensorArray(_F, 5, element_shape=[None, 8]).unstack(tf.transpose(x, [1, 0, 2]))
    state, made = tf.zeros([tf.shape(x)[0], 8]), tf.TensorArray(_F, 5)
    for i in tf.range(5):
        state = tf.tanh(tf.matmul(steps.read(i) + state, _weights(8, 8)))
        made = made.write(i, state)
    return {"last": state, "all": tf.transpose(made.stack(), [1, 0, 2])}


def _loop_of_layers(x: tf.Tensor) -> Mapping[str, tf.Tensor]:
    """What the loop hands on has the rows in its second dimension."""
    x = tf.transpose(x)
    for _ in tf.range(3):
        x = tf.nn.relu(tf.matmul(_weights(8, 8), x))
    return {"y": tf.transpose(x)}


def _branch(x: tf.Tensor, training: tf.Tensor) -> Mapping[str, tf.Tensor]:
    """A flag chooses for all rows."""
    return {"y": tf.cond(training, lambda: x * 2.0, lambda: tf.nn.softmax(x))}


_IMAGE, _STEPS = tf.TensorSpec([None, 6, 6, 2], _F), tf.TensorSpec([None, 5, 8], _F)
_ROWS = tf.TensorSpec([None, 8], _F)


@pytest.mark.parametrize(
    ("function", "spec"),
    [
        (_image, _IMAGE), (_dilated, _IMAGE), (_attention, _STEPS),
        (_table, tf.TensorSpec([None, 4], tf.int32)), (_class_token, _STEPS), (_time_major, _STEPS),
        (_steps, _STEPS), (_loop_of_layers, _ROWS),
    ],
)  # fmt: skip
def test_independent_rows_are_seen(
    function: Callable[..., Any], spec: tf.TensorSpec, tmp_path: Path
) -> None:
    found = _separation(tmp_path / "m", function, spec)
    assert found.obstacle == ""
    assert all(found.inputs.values())
    assert all(found.outputs.values())


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((5, 8), ("Masking", "Bidirectional")), ((5, 8), ("GRU", "LSTM")),
        ((5, 4, 2), ("ConvLSTM1D",)),
    ],
)  # fmt: skip
def test_layers_of_time_steps_are_seen(
    shape: tuple[int, ...], names: Sequence[str], tmp_path: Path
) -> None:
    """Steps masked, in reverse, one layer after another: each is a loop with lists."""
    arguments: Mapping[str, Mapping[str, Any]] = {
        "Bidirectional": {"layer": keras.layers.LSTM(4)}, "ConvLSTM1D": {"filters": 3,
        "kernel_size": 2}, "GRU": {"units": 4, "return_sequences": True}, "LSTM": {"units": 3},
    }  # fmt: skip
    steps = tensor = keras.Input(shape)
    for name in names:
        tensor = getattr(keras.layers, name)(**arguments.get(name, {}))(tensor)
    keras.Model(steps, tensor).export(tmp_path / "m", format="tf_saved_model", verbose=False)
    first, second = (prune(graph_of(tmp_path / "m", batch_size=size)) for size in _SIZES)
    assert any(operator.op in LOOPS for operator in first.operators)
    found = separation((first, second), _SIZES)
    assert (found.obstacle, found.outputs) == ("", {"output_0": True})


def test_a_branch_that_a_flag_chooses_is_seen(tmp_path: Path) -> None:
    found = _separation(tmp_path / "m", _branch, _ROWS, tf.TensorSpec([], tf.bool))
    assert (found.obstacle, found.inputs) == ("", {"x": True, "training": False})


def test_what_has_no_rows_goes_to_all(tmp_path: Path) -> None:
    """A mask of the positions and a factor are the same for every row, and so is their product."""

    def function(x: tf.Tensor, mask: tf.Tensor, factor: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return {"y": x * mask * factor, "scaled": mask * factor}

    specs = (_ROWS, tf.TensorSpec([8], _F), tf.TensorSpec([], _F))
    found = _separation(tmp_path / "m", function, *specs)
    assert found == Separation(
        {"x": True, "mask": False, "factor": False}, {"y": True, "scaled": False}
    )


def _size_in_data(x: tf.Tensor) -> tf.Tensor:
    return x * tf.cast(tf.shape(x)[0], _F)


def _training(x: tf.Tensor) -> tf.Tensor:
    one = tf.ones([2])
    return tf.compat.v1.nn.fused_batch_norm(x, one, one, is_training=True)[0]


def _until_all_are_small(x: tf.Tensor) -> tf.Tensor:
    while tf.reduce_max(x) > 1.0:
        x /= 2.0
    return x


def _mixing_steps(x: tf.Tensor) -> tf.Tensor:
    for _ in tf.range(3):
        x -= tf.reduce_mean(x, 0)
    return x


def _wandering(x: tf.Tensor) -> tf.Tensor:
    """After the first step the state is another one for every row."""
    state = tf.zeros([1, 8])
    for _ in tf.range(3):
        tf.autograph.experimental.set_loop_options(
            shape_invariants=[(state, tf.TensorShape([None, 8]))]
        )
        state += x
    return state


def _noisy_steps(x: tf.Tensor) -> tf.Tensor:
    for _ in tf.range(3):
        x += tf.random.uniform([8])
    return x


def _step_of_a_row(x: tf.Tensor) -> tf.Tensor:
    steps = tf.TensorArray(_F, 4, element_shape=[8]).unstack(_weights(4, 8))
    return x + steps.read(tf.cast(tf.reduce_max(tf.shape(x)), tf.int32) % 4)


MIXING: Mapping[str, tuple[Callable[[tf.Tensor], Any], tf.TensorSpec, str]] = {
    "mean of the batch": (lambda x: x - tf.reduce_mean(x, 0), _ROWS, "works along the rows"),
    "training batch norm": (_training, _IMAGE, "mean and variance of the batch"),
    "sorting": (lambda x: tf.sort(x, axis=0), _ROWS, "number of rows"),
    "running sum": (lambda x: tf.cumsum(x, 0), _ROWS, "works along the rows"),
    "softmax of the batch": (lambda x: tf.nn.softmax(x, axis=0), _ROWS, "works along the rows"),
    "Gram matrix": (lambda x: x @ tf.transpose(x), _ROWS, "each with all others"),
    "covariance": (lambda x: tf.transpose(x) @ x, _ROWS, "sums over the rows"),
    "einsum of pairs": (
        lambda x: tf.einsum("bi,ci->bc", x, x), _ROWS, "under different labels"),
    "reversal": (lambda x: x[::-1], _ROWS, "takes some of the rows, or reverses"),
    "first rows": (lambda x: x[:100], _ROWS, "takes some of the rows"),
    "neighbours": (lambda x: x + tf.roll(x, 1, 0), _ROWS, "no rule"),
    "count of rows": (_size_in_data, _ROWS, "computes with the number of rows"),
    "places": (
        lambda x: x + tf.cast(tf.range(tf.shape(x)[0]), _F)[:, None], _ROWS, "number of rows"),
    "unique": (lambda x: tf.gather(x, tf.unique(tf.cast(x[:, 0], tf.int32))[1]), _ROWS, "no rule"),
    "rows chosen by rows": (
        lambda x: tf.gather(x, tf.cast(x[:, 0], tf.int32)), _ROWS, "rows choose among rows"),
    "random numbers": (lambda x: x + tf.random.uniform([8]), _ROWS, "may change from call"),
    "noise for every row": (
        lambda x: x + tf.random.uniform(tf.shape(x)), _ROWS, "may change from call"),
    "across rows": (lambda x: tf.reshape(x, [4, -1]), _ROWS, "no dimension"),
    "transposed result": (tf.transpose, _ROWS, "first dimension alone"),
    "the size itself": (lambda x: tf.shape(x), _ROWS, "made of the number of rows"),
    "a loop until all are done": (_until_all_are_small, _ROWS, "works along the rows"),
    "a loop that mixes": (_mixing_steps, _ROWS, "works along the rows"),
    "a state that becomes rows": (_wandering, _ROWS, "not where they were before"),
    "a loop with random numbers": (_noisy_steps, _ROWS, "may change from call"),
    "row after row": (
        lambda x: tf.map_fn(lambda row: row * 2.0, x), _ROWS, "makes a list of the rows"),
    "an element that the size chooses": (_step_of_a_row, _ROWS, "number of rows"),
    "a branch that rows choose": (
        lambda x: tf.cond(tf.reduce_all(x > 0), lambda: x, lambda: -x), _ROWS, "along the rows"),
    "a branch that their number chooses": (
        lambda x: tf.cond(tf.shape(x)[0] > 3, lambda: x, lambda: -x), _ROWS, "number of rows"),
    "a branch that mixes": (
        lambda x: tf.cond(
            tf.equal(tf.size(_weights(2)), 2), lambda: x, lambda: tf.cumsum(x)), _ROWS, "rows"),
    "no rows left": (lambda x: tf.reduce_max(x), _ROWS, "works along the rows"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MIXING)
def test_mixed_rows_are_found_and_named(kind: str, tmp_path: Path) -> None:
    function, spec, reason = MIXING[kind]
    found = _separation(tmp_path / "m", lambda x: {"y": function(x)}, spec)
    assert not found.separable
    assert reason in found.obstacle

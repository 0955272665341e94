"""Generated inputs suit what the graph does with them; the user's are checked."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from moirai_tf.cost.inputs import generate_inputs, load_inputs, row_limit
from moirai_tf.errors import MoiraiError
from tests.cost_cases import imported, saved, spec

ROWS, SMALL_ROWS = 50, 7

NPY = b"\x93NUMPY\x01\x00\x46\x00" + b"%-69s\n0" % (
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }"
)
"""A single array instead of an archive."""


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """Inputs of every kind; `ids` indexes two tables, `floats` one after a cast."""
    table = tf.Variable(tf.ones([ROWS, 4]))
    small = tf.Variable(tf.ones([SMALL_ROWS, 4]))

    @tf.function(
        input_signature=[
            spec(None, 30, dtype=tf.int64, name="ids"),
            spec(None, 30, name="floats"),
            spec(None, 3, dtype=tf.int32, name="columns"),
            spec(None, 8, dtype=tf.int32, name="padding_mask"),
            spec(None, 8, dtype=tf.int32, name="flags"),
            spec(None, 8, dtype=tf.bool, name="switches"),
            spec(None, 8, dtype=tf.uint8, name="pixels"),
            spec(None, 8, dtype=tf.bfloat16, name="features"),
            spec(None, 2, dtype=tf.string, name="words"),
        ]
    )
    def call(ids, floats, columns, padding_mask, flags, switches, pixels, features, words):
        looked_up = tf.gather(table, tf.expand_dims(tf.reshape(ids, [-1]), 0))
        again = tf.gather(small, tf.cast(ids, tf.int32))
        from_floats = tf.nn.embedding_lookup(table, tf.cast(floats, tf.int32))
        picked = tf.gather(tf.ones([2, 5]), columns, axis=1)
        rest = [padding_mask, flags, switches, pixels, features]
        return {
            "numbers": tf.add_n([tf.reduce_sum(x) for x in (looked_up, again, from_floats, picked)])
            + tf.add_n([tf.reduce_sum(tf.cast(x, tf.float32)) for x in rest]),
            "words": tf.strings.upper(words),
        }

    path = tmp_path_factory.mktemp("inputs") / "model"
    return imported(saved(call, path, table, small), batch_size=16)


def test_limits_are_those_of_the_smallest_table(graph):
    limits = {name: row_limit(graph, index) for name, index in graph.inputs.items()}
    assert limits["ids"] == SMALL_ROWS
    assert limits["floats"] == ROWS
    assert limits["columns"] == 5
    assert limits["padding_mask"] is limits["features"] is limits["words"] is None


def test_values_have_the_right_types_shapes_and_ranges(graph):
    inputs = generate_inputs(graph)
    assert {name: (a.dtype.name, a.shape) for name, a in inputs.items()} == {
        "ids": ("int64", (16, 30)),
        "floats": ("float32", (16, 30)),
        "columns": ("int32", (16, 3)),
        "padding_mask": ("int32", (16, 8)),
        "flags": ("int32", (16, 8)),
        "switches": ("bool", (16, 8)),
        "pixels": ("uint8", (16, 8)),
        "features": ("bfloat16", (16, 8)),
        "words": ("object", (16, 2)),
    }
    assert set(inputs["ids"].flat) == set(range(SMALL_ROWS))
    assert inputs["floats"].max() < ROWS
    assert np.all(inputs["floats"] == np.floor(inputs["floats"]))
    assert set(inputs["columns"].flat) <= set(range(5))
    assert np.all(inputs["padding_mask"] == 1)
    assert set(inputs["flags"].flat) == {0, 1}
    assert set(inputs["switches"].flat) == {False, True}
    assert inputs["pixels"].max() > 100
    assert 0 <= inputs["features"].min() < inputs["features"].max() <= 1
    assert all(isinstance(word, bytes) for word in inputs["words"].flat)


def test_seed_decides_the_values(graph):
    first, again, other = (generate_inputs(graph, seed) for seed in (1, 1, 2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert np.any(first["features"] != other["features"])


@pytest.mark.parametrize("name", ["two_tower", "lookup_table", "host_memory", "tied_embeddings"])
def test_zoo_models_run_on_generated_inputs(name, zoo_dir):
    from moirai_tf.model.saved_model import read_saved_model

    graph = imported(read_saved_model(zoo_dir(name)), batch_size=2)
    loaded = tf.saved_model.load(str(zoo_dir(name)))
    inputs = {key: tf.constant(array) for key, array in generate_inputs(graph).items()}
    outputs = loaded.signatures["serving_default"](**inputs)
    assert set(outputs) == set(graph.outputs)


def test_user_inputs_are_read(graph, tmp_path):
    given = generate_inputs(graph, 5)
    saved_arrays = {n: a for n, a in given.items() if n not in ("words", "features")}
    saved_arrays["words"] = np.array(given["words"].tolist())
    np.savez(tmp_path / "inputs.npz", **saved_arrays, features=np.zeros([16, 8], np.float32))
    with pytest.raises(MoiraiError, match="'features' has the type float32"):
        load_inputs(graph, tmp_path / "inputs.npz")
    plain = _only(graph, "words", "ids")
    np.savez(tmp_path / "plain.npz", words=saved_arrays["words"], ids=given["ids"])
    read = load_inputs(plain, tmp_path / "plain.npz")
    np.testing.assert_array_equal(read["words"], given["words"])
    np.testing.assert_array_equal(read["ids"], given["ids"])


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({}, "has no 'ids'"),
        ({"ids": np.zeros([16, 30], np.int64), "more": np.zeros(1)}, "has 'more', which is no"),
        ({"ids": np.zeros([16, 30], np.int32)}, "'ids' has the type int32"),
        ({"ids": np.zeros([16, 31], np.int64)}, r"'ids' has the shape \[16, 31\]"),
        ({"ids": np.zeros([30], np.int64)}, r"'ids' has the shape \[30\]"),
    ],
)
def test_user_inputs_that_do_not_fit(graph, tmp_path, arrays, what):
    np.savez(tmp_path / "inputs.npz", **arrays)
    with pytest.raises(MoiraiError, match=what):
        load_inputs(_only(graph, "ids"), tmp_path / "inputs.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"text", NPY])
def test_user_inputs_that_cannot_be_read(graph, tmp_path, content):
    (tmp_path / "inputs.npz").write_bytes(content)
    with pytest.raises(MoiraiError, match="cannot be read"):
        load_inputs(graph, tmp_path / "inputs.npz")


def _only(graph, *names):
    from dataclasses import replace

    return replace(graph, inputs={name: graph.inputs[name] for name in names})

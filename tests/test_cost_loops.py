"""Computed costs of loops: their trips, read off the graph; arithmetic in the comments."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from moirai_tf.cluster import Device
from moirai_tf.cost.analytical import analytical
from moirai_tf.cost.loops import trip_count
from moirai_tf.graph.graph import LOOPS
from moirai_tf.model.saved_model import read_saved_model
from tests.cost_cases import imported, index_of, saved, spec

CPU = Device("/device:CPU:0", "CPU", frequency_mhz=1000, num_cores=1, memory_bytes_per_s=10**9)


def test_a_loop_costs_its_trips(tmp_path):
    weights = tf.Variable(tf.ones([8, 8]))

    @tf.function(input_signature=[spec(2, 8), spec(dtype=tf.int32, name="times")])
    def call(x, times):
        for _ in tf.range(times):
            x = tf.matmul(x, weights)
        return {"y": x}

    graph = imported(saved(call, tmp_path / "m", weights))
    loop = index_of(graph, "While")
    assert trip_count(graph, graph.operators[loop]) is None
    none, one, two, ten = (analytical(graph, CPU, trips=n)[loop][0] for n in (0, 1, 2, 10))
    # 2 x 2 x 8 x 8 = 256 operations of the product are in every iteration.
    assert one - none > 256
    assert two - one == one - none
    assert ten - none == 10 * (one - none)


def _loop(graph):
    (loop,) = [operator for operator in graph.operators if operator.op in LOOPS]
    return loop


@pytest.mark.parametrize("count", [0, 1, 7])
def test_static_trip_counts(tmp_path, count):
    @tf.function(input_signature=[spec(2, 8)])
    def in_range(x):
        for _ in tf.range(count):
            x = tf.tanh(x)
        return {"y": x}

    @tf.function(input_signature=[spec(2, 8)])
    def until_maximum(x):
        _, x = tf.while_loop(
            lambda i, x: tf.logical_and(tf.reduce_sum(x) < 1e9, i < 100),
            lambda i, x: (i + 5, tf.tanh(x)),
            (0, x),
            maximum_iterations=count,
        )
        return {"y": x}

    @tf.function(input_signature=[spec(2, 8)])
    def over_rows(x):
        rows = tf.tile(x[0], [count])
        total = tf.constant(0.0)
        for i in tf.range(3, 3 + 2 * (tf.shape(rows)[0] // 8), 2):
            total += tf.cast(i, tf.float32)
        return {"y": total}

    for number, function in enumerate((in_range, until_maximum, over_rows)):
        graph = imported(saved(function, tmp_path / str(number)))
        assert trip_count(graph, _loop(graph)) == count


def test_trip_count_takes_the_first_limit(tmp_path):
    # i = 0, 5, 10, ... < 12 is reached after 3 steps, before the 40 of maximum_iterations.
    @tf.function(input_signature=[spec(2, 8)])
    def call(x):
        _, x = tf.while_loop(
            lambda i, x: i < 12, lambda i, x: (i + 5, tf.tanh(x)), (0, x), maximum_iterations=40
        )
        return {"y": x}

    graph = imported(saved(call, tmp_path / "m"))
    assert trip_count(graph, _loop(graph)) == 3


@pytest.mark.parametrize(
    ("start", "step", "limit", "trips"),
    [
        ([0], [2], [7], 4),  # 0, 2, 4, 6
        ([[1]], [[1]], [[4]], 3),
        (0.0, 1.0, 2.5, 3),  # 0, 1, 2
        (0.5, 0.25, 1.0, 2),  # 0.5, 0.75
        ([0.0], [0.5], [1.0], 2),
        (0.0, 1.0, float("inf"), None),
        (float("nan"), 1.0, 3.0, None),
        (0.0, 1e-300, 1.0, 10**300),
        ([0, 0], [1, 1], [3, 3], None),
    ],
)
def test_trips_of_counters_of_any_shape_and_type(tmp_path, start, step, limit, trips):
    wide = tf.float64 if step == 1e-300 else None
    holds = tf.squeeze if np.size(start) == 1 else tf.reduce_all

    @tf.function(input_signature=[spec(2, 8)])
    def call(x):
        one, end = tf.constant(step, wide), tf.constant(limit, wide)
        _, x = tf.while_loop(
            lambda i, x: holds(i < end),
            lambda i, x: (i + one, tf.tanh(x)),
            (tf.constant(start, wide), x),
        )
        return {"y": x}

    graph = imported(saved(call, tmp_path / "m"))
    found = trip_count(graph, _loop(graph))
    assert found == trips or (trips == 10**300 and found == pytest.approx(trips))


def test_keras_recurrent_layers_have_static_trips(zoo_dir):
    graph = imported(read_saved_model(zoo_dir("lstm")), batch_size=2)
    loops = [operator for operator in graph.operators if operator.op == "While"]
    assert {trip_count(graph, loop) for loop in loops} == {12}


@pytest.mark.parametrize("unread", [tf.exp, tf.identity, lambda x: tf.strings.as_string(x)])
def test_a_loop_with_variables_that_nobody_reads_costs_its_trips(tmp_path, unread):
    """What feeds them is not in the graph, so that Grappler must be given something else."""

    @tf.function(input_signature=[spec(2, 8)])
    def call(x):
        first = (0, tf.tanh(x), unread(tf.cos(x)))
        turned = tf.while_loop(lambda i, *_: i < 5, lambda i, v, u: (i + 1, tf.sin(v), u), first)
        return {"y": turned[1]}

    graph = imported(saved(call, tmp_path / "m"))
    loop = _loop(graph)
    # The maximum of iterations, which is none, and the variable.
    assert [dropped.position for dropped in loop.unread] == [1, 4]
    assert trip_count(graph, loop) == 5
    # Each turn computes 16 sines.
    assert analytical(graph, CPU, trips=1)[graph.index[loop.name]][0] > 5 * 16

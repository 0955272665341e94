"""Measured costs: which operators the profiler's time goes to. No time itself is asserted."""

from __future__ import annotations

import pytest
import tensorflow as tf

from moirai_tf.cluster import Cluster, Device
from moirai_tf.cost.inputs import generate_inputs
from moirai_tf.cost.measure import fill_variables, loaded, measure
from moirai_tf.errors import MoiraiError
from moirai_tf.model.load import load_in_session
from moirai_tf.model.saved_model import read_saved_model
from tests.cost_cases import imported, saved, spec


def run(model, graph, repeats=5):
    return measure(model, graph, generate_inputs(graph), repeats=repeats, warmup=2)


def by_last_name(graph, times):
    """Times by the last part of the operator's name, summed."""
    result = {}
    for operator, time in zip(graph.operators, times, strict=True):
        last = operator.name.rpartition("/")[2]
        result[last] = result.get(last, 0) + time
    return result


def test_time_goes_to_the_operators_that_run(tmp_path):
    weights = tf.Variable(tf.random.normal([64, 64]))

    @tf.function(input_signature=[spec(32, 64)])
    def call(x):
        x = tf.nn.relu(tf.matmul(x, weights, name="product"), name="relu")
        x = tf.add(x, tf.exp(tf.constant(1.0), name="folded"), name="sum")
        for _ in tf.range(100):
            x = tf.tanh(tf.matmul(x, weights))
        return {"y": tf.identity(x, name="result")}

    model = saved(call, tmp_path / "m", weights)
    graph = imported(model)
    nanoseconds, measurement = run(model, graph)
    times = by_last_name(graph, nanoseconds)
    # The product and its activation run as one kernel, under one of their names; `folded` is
    # constant. All the loop's kernels belong to the loop, a hundred times the work of the product.
    assert times["product"] + times["relu"] > 0
    assert times["sum"] > 0
    assert times["folded"] == 0
    assert times["while"] > times["product"] + times["relu"]
    assert measurement.repeats == 5
    assert measurement.unknown_ns == 0
    assert 0 < measurement.attributed_ns <= measurement.step_ns
    assert 0 < measurement.attributed <= 1
    assert measurement.latency_ns > 0


def test_functions_that_are_not_inlined_own_their_kernels(tmp_path):
    weights = tf.Variable(tf.random.normal([64, 64]))

    @tf.function
    def inner(x):
        return tf.tanh(tf.matmul(x, weights))

    @tf.function(input_signature=[spec(32, 64)])
    def call(x):
        return {"y": inner(x) + inner(x * 2.0)}

    model = saved(call, tmp_path / "m", weights)
    for function in model.proto.meta_graphs[0].graph_def.library.function:
        if any(node.op == "MatMul" for node in function.node_def):
            function.attr["_noinline"].b = True
    (tmp_path / "m" / "saved_model.pb").write_bytes(model.proto.SerializeToString())
    model = read_saved_model(tmp_path / "m")
    graph = imported(model)
    times, measurement = run(model, graph)
    pairs = zip(graph.operators, times, strict=True)
    calls = [time for operator, time in pairs if operator.op == "StatefulPartitionedCall"]
    assert len(calls) == 2
    assert min(calls) > 0
    assert measurement.unknown_ns == 0


@pytest.mark.parametrize("name", ["conv_net_saved", "jit_compile", "mixed_precision", "lstm"])
def test_zoo_models_are_attributed(name, zoo_dir):
    model = read_saved_model(zoo_dir(name))
    graph = imported(model, batch_size=2)
    times, measurement = run(model, graph, repeats=3)
    assert measurement.attributed_ns > 10 * measurement.unknown_ns
    still = {o.op for o, time in zip(graph.operators, times, strict=True) if time == 0}
    assert {"VarHandleOp", "Const", "Placeholder", "_Retval"} <= still
    ran = {o.op for o, time in zip(graph.operators, times, strict=True) if time > 0}
    assert not ran & {"VarHandleOp", "Const", "Placeholder", "_Retval"}
    assert ran


@pytest.mark.parametrize(
    ("name", "left_out"),
    [("conv_net_saved", True), ("conv_net_export", False), ("lstm", False), ("two_tower", False)],
)
def test_variables_that_loading_leaves_out_are_filled(name, left_out, zoo_dir):
    """`tf.saved_model.save` of a Keras 3 model leaves out what its signature reads."""
    graph, directory = imported(read_saved_model(zoo_dir(name)), batch_size=2), zoo_dir(name)
    handles = [o.name for o in graph.operators if o.op == "VarHandleOp"]

    def have_values(session):
        found = [session.graph.get_tensor_by_name(f"{handle}:0") for handle in handles]
        return session.run([tf.raw_ops.VarIsInitializedOp(resource=handle) for handle in found])

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        load_in_session(directory, session, graph.tags)
        assert all(have_values(session)) != left_out
        fill_variables(session, graph, directory)
        assert all(have_values(session))


def test_inputs_that_the_model_refuses(tmp_path):
    @tf.function(input_signature=[spec(None, dtype=tf.string, name="numbers")])
    def call(numbers):
        return {"y": tf.strings.to_number(tf.strings.join([numbers, "x"]))}

    model = saved(call, tmp_path / "m")
    graph = imported(model)
    with pytest.raises(MoiraiError, match="cannot be run to be measured") as caught:
        run(model, graph)
    assert "--inputs" in caught.value.fix


def test_faults_of_the_measurement_are_not_the_models(tmp_path):
    call = tf.function(lambda x: {"y": tf.tanh(x)}, input_signature=[spec(2)])
    model = saved(call, tmp_path / "m")
    here = Cluster("here", (Device("/device:CPU:0", "CPU"),))
    with (
        pytest.raises(ValueError, match="of two lengths"),
        loaded(here, model.path, imported(model)),
    ):
        raise ValueError("of two lengths")


def test_one_profiler_at_a_time(tmp_path):
    call = tf.function(lambda x: {"y": tf.tanh(x)}, input_signature=[spec(2)])
    model = saved(call, tmp_path / "m")
    tf.profiler.experimental.start(str(tmp_path / "log"))
    try:
        with pytest.raises(MoiraiError, match="another profiler is running"):
            run(model, imported(model))
    finally:
        tf.profiler.experimental.stop()
    assert run(model, imported(model))[1].repeats == 5

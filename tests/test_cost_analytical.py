"""Computed costs against arithmetic by hand, and loops, branches and calls by their bodies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tensorflow as tf
from tensorflow.python.framework import function as legacy

from moirai_tf.cluster import Device
from moirai_tf.cost.analytical import analytical
from moirai_tf.cost.gpu_peaks import BANDWIDTH_SHARE, LAUNCH_NS, TENSOR_SHARE, VECTOR_SHARE
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graphdef import to_graph_def
from moirai_tf.model.saved_model import read_saved_model
from tests.cost_cases import imported, index_of, saved, spec
from tests.saved_models import save_graph

CPU = Device("/device:CPU:0", "CPU", frequency_mhz=1000, num_cores=1, memory_bytes_per_s=10**9)
GPU = Device(
    "/device:GPU:0", "GPU", frequency_mhz=1000, num_cores=10, memory_bytes_per_s=10**11,
    architecture="7.5",
)  # fmt: skip


OPERATIONS = 2 * 64 * 256 * 256
NBYTES = (64 * 256 + 256 * 256 + 64 * 256) * 4
"""Of the product below."""


@pytest.fixture(scope="module")
def matmul(tmp_path_factory):
    weights = tf.Variable(tf.ones([256, 256]))
    call = tf.function(lambda x: {"y": tf.matmul(x, weights)}, input_signature=[spec(None, 256)])
    return imported(saved(call, tmp_path_factory.mktemp("m") / "m", weights), batch_size=64)


def test_matmul_by_hand(matmul):
    # 2 x 64 x 256 x 256 operations at one per nanosecond (1 GHz, one core) = 8,388,608 ns.
    # (64 x 256 + 256 x 256 + 64 x 256) x 4 bytes at one byte per nanosecond = 393,216 ns;
    # boundless memory takes Grappler 1 ns, too.
    time, traffic = analytical(matmul, CPU, trips=1)[index_of(matmul, "MatMul")]
    assert time == 8_388_608 + 393_216
    assert traffic == 393_216 - 1


def test_twice_the_cores_take_half_the_compute(matmul):
    index = index_of(matmul, "MatMul")
    time, traffic = analytical(matmul, replace(CPU, num_cores=2), trips=1)[index]
    assert time == 8_388_608 // 2 + 393_216
    assert traffic == 393_216 - 1


@pytest.mark.parametrize(
    ("capability", "multiply_adds", "share"),
    [("6.0", 64, VECTOR_SHARE), ("6.1", 128, VECTOR_SHARE), ("7.5", 64, VECTOR_SHARE),
     ("8.0", 512, TENSOR_SHARE), ("9.0", 1024, TENSOR_SHARE), ("12.0", 128, TENSOR_SHARE)],
)  # fmt: skip
def test_matmul_on_gpus_by_hand(matmul, capability, multiply_adds, share):
    # 10 multiprocessors at 1 GHz make 10 x 2 x multiply_adds operations in a nanosecond, of float32
    # on lanes, from capability 8.0 on with TF32 on tensor cores. Bytes: 100 in a nanosecond.
    compute_ns = OPERATIONS / (20 * multiply_adds * share)
    memory_ns = NBYTES / (100 * BANDWIDTH_SHARE)
    gpu = replace(GPU, architecture=capability)
    time, traffic = analytical(matmul, gpu, trips=1)[index_of(matmul, "MatMul")]
    assert time == pytest.approx(LAUNCH_NS + max(compute_ns, memory_ns), abs=2)
    assert traffic == pytest.approx(max(0, memory_ns - compute_ns), abs=2)


def test_a_gpus_own_launch_overhead_wins(matmul):
    index = index_of(matmul, "MatMul")
    usual, own = (
        analytical(matmul, replace(GPU, launch_ns=ns), trips=1)[index][0] for ns in (None, 7)
    )
    assert usual - own == LAUNCH_NS - 7


def test_what_starts_no_kernel_costs_a_gpu_nothing(tmp_path):
    # Buffers are handed on, int32 arithmetic is the host's; the product alone is a kernel.
    weights = tf.Variable(tf.ones([8, 8]))

    @tf.function(input_signature=[spec(None, 2, 4)])
    def call(x):
        rows = tf.shape(x)[0] * 1 + tf.constant(0)
        return {"y": tf.identity(tf.matmul(tf.reshape(x, [rows, 8]), weights))}

    graph = imported(saved(call, tmp_path / "m", weights), batch_size=2)
    times = {
        operator.op: time
        for operator, (time, _) in zip(graph.operators, analytical(graph, GPU, 1), strict=True)
    }
    assert {"Shape", "Reshape", "ReadVariableOp", "Identity", "Const"} <= times.keys()
    assert {op for op, time in times.items() if time} == {"MatMul"}


def test_what_hands_a_buffer_on_moves_nothing_on_a_cpu(tmp_path):
    # A row of a table is looked up; the table itself, 256,000 bytes at one a nanosecond, stays.
    table = tf.Variable(tf.ones([1000, 64]))

    @tf.function(input_signature=[spec(None, dtype=tf.int32)])
    def call(x):
        return {"y": tf.gather(tf.ensure_shape(tf.expand_dims(table, 0), [1, 1000, 64])[0], x)}

    graph = imported(saved(call, tmp_path / "m", table), batch_size=1)
    costs = analytical(graph, CPU, trips=1)
    for op in ("EnsureShape", "ExpandDims", "ReadVariableOp"):
        time, traffic = costs[index_of(graph, op)]
        assert time < 100
        assert traffic == 0


def test_half_precision_on_tensor_cores_by_hand(tmp_path):
    weights = tf.Variable(tf.ones([512, 512], tf.float16))
    call = tf.function(
        lambda x: {"y": tf.matmul(x, weights)}, input_signature=[spec(512, 512, dtype=tf.float16)]
    )
    graph = imported(saved(call, tmp_path / "m", weights))
    index = index_of(graph, "MatMul")
    lanes, cores = (
        analytical(graph, replace(GPU, architecture=capability, launch_ns=0), trips=1)[index][0]
        for capability in ("6.1", "7.0")
    )
    # 2 x 512^3 operations, in 10 multiprocessors at 1 GHz: 128 lanes, or 512 multiply-adds.
    assert lanes == pytest.approx(2 * 512**3 / (10 * 2 * 128 * VECTOR_SHARE), abs=2)
    assert cores == pytest.approx(2 * 512**3 / (10 * 2 * 512 * TENSOR_SHARE), abs=2)


@pytest.mark.parametrize("architecture", ["7,5", "sm_75", "3.5", "7"])
def test_unknown_architecture(matmul, architecture):
    with pytest.raises(MoiraiError, match=f"'{architecture}' is not a compute capability"):
        analytical(matmul, replace(GPU, architecture=architecture), trips=1)


def test_clients_cost_nothing(matmul):
    for device in (CPU, GPU):
        column = analytical(matmul, device, trips=1)
        assert column[index_of(matmul, "Placeholder")] == (0, 0)
        assert column[index_of(matmul, "_Retval")] == (0, 0)


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ("frequency_mhz", "frequency_mhz"),
        ("num_cores", "num_cores"),
        ("memory_bytes_per_s", "memory_bandwidth"),
    ],
)
def test_missing_property(matmul, field, shown):
    with pytest.raises(MoiraiError, match=f"'/device:CPU:0' has no {shown}"):
        analytical(matmul, replace(CPU, **{field: None}), trips=1)


def test_missing_architecture(matmul):
    with pytest.raises(MoiraiError, match="'/device:GPU:0' has no architecture"):
        analytical(matmul, replace(GPU, architecture=""), trips=1)


def test_no_gpu_kernel_means_no_gpu_cost(zoo_dir):
    graph = imported(read_saved_model(zoo_dir("lookup_table")), batch_size=2)
    column = analytical(graph, GPU, trips=1)
    without = {graph.operators[i].op for i, (time, _) in enumerate(column) if time is None}
    assert "LookupTableFindV2" in without
    assert "MatMul" not in without
    for operator, (time, traffic) in zip(graph.operators, column, strict=True):
        assert (time is None) == ("GPU" not in operator.device_types)
        assert 0 <= traffic <= (time or 0)


def test_functions_that_nothing_calls_are_left_out(zoo_dir):
    """Keras 2 saves hundreds of them, which every value of a loop's inputs was once read with."""
    graph = imported(read_saved_model(zoo_dir("cond")), batch_size=2)
    (branch,) = (o for o in graph.operators if o.op == "If")
    called = {branch.node.attr[name].func.name for name in ("then_branch", "else_branch")}
    assert {f.signature.name for f in to_graph_def(graph).library.function} == called
    assert called < {f.signature.name for f in graph.library.function}
    alone = to_graph_def(graph, only={graph.inputs["x"]})
    assert ([n.name for n in alone.node], len(alone.library.function)) == (
        [graph.operators[graph.inputs["x"]].name], 0,
    )  # fmt: skip


def test_a_branch_costs_its_most_expensive_function(tmp_path):
    weights = tf.Variable(tf.ones([64, 64]))

    @tf.function(input_signature=[spec(2, 64)])
    def call(x):
        choice = tf.reduce_sum(x) > 0
        return {"y": tf.cond(choice, lambda: tf.matmul(x, weights), lambda: x)}

    graph = imported(saved(call, tmp_path / "m", weights))
    time, traffic = analytical(graph, CPU, trips=1)[index_of(graph, "If")]
    # The product alone: 2 x 2 x 64 x 64 operations + (2 x 64 + 64 x 64 + 2 x 64) x 4 bytes.
    product = 16_384 + 17_408
    assert product <= time < 1.1 * product
    # No fusion reaches into a body: only its operands count, 2 x 64 x 4 bytes in and out.
    assert traffic <= 1024


_WEIGHTS = tf.ones([64, 64])


def _product(x):
    return tf.matmul(x, _WEIGHTS)


@pytest.mark.parametrize(
    ("branches", "op"),
    [
        (lambda x: tf.cond(tf.rank(x) > 2, lambda: _product(x[0, 0]), lambda: _product(x)), "If"),
        (
            lambda x: tf.switch_case(
                tf.rank(x) - 1,
                [lambda: tf.transpose(x, [0]), lambda: _product(x), lambda: _product(x[0, 0, 0])],
            ),
            "Case",
        ),
        (
            lambda x: tf.cond(
                tf.rank(x) > 2,
                lambda: tf.cond(tf.size(x) > 1, lambda: tf.transpose(x, [2, 0, 1]), lambda: x),
                lambda: _product(x),
            ),
            "If",
        ),
    ],
    ids=["cond", "case", "cond in a cond"],
)
def test_branches_that_do_not_suit_their_arguments_cost_nothing(tmp_path, branches, op):
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, "x")])
    def call(x):
        return {"y": branches(x)}

    graph = imported(saved(call, tmp_path / "m"), input_shapes=("x=2,64",))
    (index,) = (i for i, o in enumerate(graph.operators) if o.op.endswith(op))
    time, _ = analytical(graph, CPU, trips=1)[index]
    # As in `test_a_branch_costs_its_most_expensive_function`; the constant is there already.
    product = 16_384 + 17_408
    assert product <= time < 1.1 * product


def test_compiled_functions_cost_their_operators(zoo_dir):
    graph = imported(read_saved_model(zoo_dir("jit_compile")), batch_size=2)
    index = index_of(graph, "StatefulPartitionedCall")
    assert analytical(graph, CPU, trips=1)[index][0] > 100


@pytest.mark.parametrize("attributes", [{"_noinline": True}, {"api_implements": "layer_1"}])
def test_calls_that_are_not_inlined_cost_their_operators(tmp_path, attributes):
    weights = tf.Variable(tf.ones([64, 64]))

    @tf.function(experimental_attributes=attributes)
    def product(x, scale):
        return tf.matmul(x, weights) * scale

    @tf.function(input_signature=[spec(2, 64)])
    def call(x):
        return {"y": product(tf.tanh(x), tf.constant(2.0))}

    graph = imported(saved(call, tmp_path / "m", weights))
    time, _ = analytical(graph, CPU, trips=1)[index_of(graph, "StatefulPartitionedCall")]
    # The product: 2 x 2 x 64 x 64 operations + (2 x 64 + 64 x 64 + 2 x 64) x 4 bytes.
    assert 16_384 + 17_408 <= time < 1.2 * (16_384 + 17_408)


def test_a_native_call_costs_its_operators(tmp_path):
    @legacy.Defun(tf.float32, func_name="product")
    def product(x):
        return tf.matmul(x, tf.ones([64, 64]))

    with tf.Graph().as_default() as graph_v1:
        x = tf.compat.v1.placeholder(tf.float32, [2, 64], "x")
        save_graph(tmp_path / "m", graph_v1, {"x": x}, {"y": tf.tanh(product(x))})
    graph = imported(read_saved_model(tmp_path / "m"))
    time, _ = analytical(graph, CPU, trips=1)[index_of(graph, "product")]
    assert time >= 16_384 + 17_408

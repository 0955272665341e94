"""The problem that follows from a coarse graph, a cluster and costs, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import node_def_pb2, types_pb2

from moirai_tf.cluster import Cluster, Device, Link
from moirai_tf.cost.coarse_problem import build_problem
from moirai_tf.cost.fused import fused_costs
from moirai_tf.cost.table import (
    CostTable,
    DeviceProfile,
    MeasuredLink,
    OperatorCost,
    described_inputs,
    fingerprint,
)
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarse import CoarseGraph, CoarseTensor, FusedOperator, Kernel
from moirai_tf.graph.graph import Graph, Operator, Scope, TensorRef, TensorSpec
from moirai_tf.placement.validation import violations

CPU0, CPU1, GPU = "/device:CPU:0", "/device:CPU:1", "/device:GPU:0"
BOTH = ("CPU", "GPU")
CLUSTER = Cluster(
    "three",
    (Device(CPU0, "CPU", 1000), Device(CPU1, "CPU"), Device(GPU, "GPU", 500, launch_ns=10)),
    tuple(
        Link(a, b, latency, 10**9)
        for a, b, latency in [
            (CPU0, CPU1, 5), (CPU1, CPU0, 6), (CPU0, GPU, 7),
            (GPU, CPU0, 8), (CPU1, GPU, 9), (GPU, CPU1, 10),
        ]
    ),
    client=CPU1,
)  # fmt: skip


def operator(name, op, *inputs, nbytes=0, weight=0, view=False, controls=(), types=BOTH):
    specs = (TensorSpec("float32", (nbytes // 4,), nbytes),) if nbytes else ()
    node = node_def_pb2.NodeDef(name=name, op=op)
    node.attr["T"].type = types_pb2.DT_FLOAT
    return Operator(
        name, op, node, Scope("", ""), tuple(TensorRef(i, 0) for i in inputs), controls, specs,
        types, weight, weight if view or weight else nbytes,
    )  # fmt: skip


GRAPH = Graph(
    signature="serving_default",
    operators=(
        operator("x", "Placeholder", nbytes=80),
        operator("w", "Const", nbytes=400, weight=400),
        operator("matmul", "MatMul", 0, 1, nbytes=80),
        operator("relu", "Relu", 2, nbytes=80),
        operator("flat", "Reshape", 3, nbytes=80, view=True),
        operator("text", "AsString", 4, nbytes=640, controls=(1,), types=("CPU",)),
        operator("y", "_Retval", 5),
    ),
    inputs={"x": 0},
    outputs={"y": 6},
)
COARSE = CoarseGraph(
    GRAPH,
    (
        FusedOperator("x", (0,), "", BOTH),
        FusedOperator("matmul", (1, 2, 3, 4), "eigen", BOTH, (Kernel("GPU", (2, 3)),)),
        FusedOperator("text", (5,), "", ("CPU",)),
        FusedOperator("y", (6,), "", BOTH),
    ),
    (
        CoarseTensor(TensorRef(0, 0), 0, (1,), 80),
        CoarseTensor(TensorRef(4, 0), 1, (2,), 80),
        CoarseTensor(TensorRef(1, -1), 1, (2,), 0),
        CoarseTensor(TensorRef(5, 0), 2, (3,), 640),
    ),
    colocation=((0, 3),),
)
MEASURED = {"matmul": 1000, "relu": 50, "flat": 1, "text": 300}
COMPUTED = {"matmul": (600, 560), "relu": (42, 32), "flat": (2, 0), "text": (None, 0)}


def table(operators=None) -> CostTable:
    rows = {
        o.name: OperatorCost(
            (MEASURED.get(o.name, 0), 2 * MEASURED.get(o.name, 0), COMPUTED.get(o.name, (0,))[0]),
            (0, 0, COMPUTED.get(o.name, (0, 0))[1]),
        )
        for o in GRAPH.operators
    }
    return CostTable(
        "serving_default", described_inputs(GRAPH), fingerprint(GRAPH), {}, {},
        tuple(
            DeviceProfile(device, "measure" if device.type == "CPU" else "analytical")
            for device in CLUSTER.devices
        ),
        operators or rows,
    )  # fmt: skip


def test_measured_times_add_up_and_computed_ones_lose_inner_traffic():
    problem = build_problem(COARSE, CLUSTER, table())
    # Measured: 1000 + 50 + 1. Computed: matmul has operands of 80 + 400 + 80 bytes, of which its
    # output of 80 stays inside (the weight is read from memory anyway, x comes from outside):
    # 600 - 560 * 80 / 560 = 520; relu keeps its input, and its output leaves the kernel:
    # 42 - 32 * 80 / 160 = 26; flat has no traffic: 2. One kernel needs one launch of 10, not two.
    assert problem.operators[1].compute_ns == (1051, 2102, 520 + 26 + 2 - 10)


def test_what_a_device_does_not_fuse_saves_it_nothing():
    # Placed as one, since a CPU makes one kernel of the two; a GPU does not: 600 + 42 + 2.
    fused = replace(COARSE.operators[1], kernels=(Kernel("CPU", (2, 3)),))
    operators = (COARSE.operators[0], fused, *COARSE.operators[2:])
    problem = build_problem(replace(COARSE, operators=operators), CLUSTER, table())
    assert problem.operators[1].compute_ns == (1051, 2102, 644)


def test_a_faster_gpu_starts_kernels_faster():
    # The table's times are those of the faster device; so is the launch that is saved, 10 / 2.
    devices = (*CLUSTER.devices[:2], replace(CLUSTER.devices[2], speed=2.0))
    rows = {
        o.name: OperatorCost((0, 0, COMPUTED.get(o.name, (0,))[0]), (0, 0, 0))
        for o in GRAPH.operators
    }
    costs = replace(table(rows), devices=tuple(DeviceProfile(d, "analytical") for d in devices))
    problem = build_problem(COARSE, replace(CLUSTER, devices=devices), costs)
    assert problem.operators[1].compute_ns[2] == 600 + 42 + 2 - 5


def test_where_an_operator_can_run():
    problem = build_problem(COARSE, CLUSTER, table())
    assert problem.operators[0].compute_ns == (None, 0, None)  # feeds and fetches: the client
    assert problem.operators[3].compute_ns == (None, 0, None)
    assert problem.operators[2].compute_ns == (300, 600, None)  # strings: no GPU


def test_memory_is_weights_once_and_what_leaves():
    problem = build_problem(COARSE, CLUSTER, table())
    # The reshape that leaves is a view of relu's 80 bytes; matmul's output stays inside.
    assert [o.memory_bytes for o in problem.operators] == [80, 400 + 80, 640, 0]
    assert [d.memory_bytes for d in problem.devices] == [1000, None, 500]


def test_transfers_take_the_link_and_share_matrices():
    problem = build_problem(COARSE, CLUSTER, table())
    x, relu, control, text = (tensor.time_ns for tensor in problem.tensors)
    # 80 bytes at 1 byte per nanosecond, after the latency of each directed link.
    assert x == ((0, 85, 87), (86, 0, 89), (88, 90, 0))
    assert relu is x
    assert control == ((0, 5, 7), (6, 0, 9), (8, 10, 0))
    assert text[0] == (0, 645, 647)


def test_measured_links_win():
    links = (MeasuredLink(CPU0, CPU1, 1000, 10**9, 0.01, ((256, 1256),)),)
    problem = build_problem(COARSE, CLUSTER, replace(table(), links=links))
    assert problem.tensors[0].time_ns[0] == (0, 1080, 87)
    assert problem.tensors[0].time_ns[1] == (86, 0, 89)


def test_the_problem_is_valid_and_complete():
    problem = build_problem(COARSE, CLUSTER, table(), transfers="per_edge", congestion="link")
    assert violations(problem) == []
    assert (problem.transfers, problem.congestion) == ("per_edge", "link")
    assert problem.colocation == ((0, 3),)
    assert [d.name for d in problem.devices] == [CPU0, CPU1, GPU]


def test_columns_are_found_by_name():
    reordered = replace(CLUSTER, devices=CLUSTER.devices[::-1])
    problem = build_problem(COARSE, reordered, table())
    assert problem.operators[1].compute_ns == (538, 2102, 1051)


def test_stale_table():
    with pytest.raises(MoiraiError, match="does not fit"):
        build_problem(COARSE, CLUSTER, replace(table(), fingerprint="0"))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.floats(0, 1)), min_size=len(GRAPH), max_size=len(GRAPH)
    )
)
def test_fused_time_lies_between_compute_and_sum(costs):
    rows = {
        o.name: OperatorCost((time,) * 3, (int(time * share),) * 3)
        for o, (time, share) in zip(GRAPH.operators, costs, strict=True)
    }
    fused = fused_costs(COARSE, table(rows))
    for group in COARSE.operators:
        parts = [rows[GRAPH.operators[member].name] for member in group.members]
        time = fused.time_ns(group, 0)
        assert time <= sum(part.time_ns[0] for part in parts)
        assert time >= max(part.time_ns[0] - part.traffic_ns[0] for part in parts)
        if len(group.members) == 1:
            assert time == parts[0].time_ns[0]


HOSTED = Graph(
    signature="serving_default",
    operators=(
        operator("x", "Placeholder", nbytes=80),
        operator("rank", "Rank", 0, nbytes=4),
        operator("sizes", "Cast", 1, nbytes=8),
        operator("flat", "Reshape", 0, 2, nbytes=80, view=True),
        operator("y", "_Retval", 3),
    ),
    inputs={"x": 0},
    outputs={"y": 4},
)
"""On a GPU a Reshape reads its second input, the shape, from host memory, and a Rank is made there;
what a Cast reads and makes is not."""


def test_what_changes_memory_within_a_gpu_is_waited_for():
    coarse = CoarseGraph(
        HOSTED,
        tuple(FusedOperator(o.name, (i,), "", BOTH) for i, o in enumerate(HOSTED.operators)),
        (
            CoarseTensor(TensorRef(0, 0), 0, (1, 3), 80),
            CoarseTensor(TensorRef(1, 0), 1, (2,), 4),
            CoarseTensor(TensorRef(2, 0), 2, (3,), 8),
            CoarseTensor(TensorRef(3, 0), 3, (4,), 80),
        ),
        (),
    )
    times = OperatorCost((100, 100, 100), (0, 0, 0))
    costs = CostTable(
        "serving_default", described_inputs(HOSTED), fingerprint(HOSTED), {}, {},
        tuple(DeviceProfile(device, "measure") for device in CLUSTER.devices),
        {o.name: times for o in HOSTED.operators},
    )  # fmt: skip
    problem = build_problem(coarse, CLUSTER, costs)
    # The 8 bytes go from the GPU to the host's memory as they would to its CPU: 8 + 8 = 16 ns.
    assert problem.operators[3].compute_ns == (100, 100, 100 + 16)
    # The 4 bytes of the rank go the other way, 7 + 4 = 11 ns, wherever they were made.
    assert problem.operators[2].compute_ns == (100, 100, 100 + 11)
    assert problem.operators[1].compute_ns == (100, 100, 100)
    x, rank, sizes, _ = (tensor.time_ns for tensor in problem.tensors)
    # From a CPU they are where the GPU's kernel wants them; the other way they come from the GPU.
    assert rank == ((0, 9, 0), (10, 0, 0), (0, 0, 0))
    assert sizes == ((0, 13, 0), (14, 0, 0), (16, 18, 0))
    assert x == ((0, 85, 87), (86, 0, 89), (88, 90, 0))

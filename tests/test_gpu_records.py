"""What is made of a GPU's records in step statistics, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from tensorflow.core.protobuf import config_pb2

from moirai_tf.bench.measured import measured_step
from moirai_tf.cluster import Link
from moirai_tf.cost.gpu_steps import gpu_times, with_rests
from moirai_tf.cost.layouts import Layout, TracedLayout
from moirai_tf.cost.step_stats import Allocated, device_steps
from moirai_tf.cost.table import Measurement, StepCost
from moirai_tf.cost.xplane import UNKNOWN
from moirai_tf.errors import MoiraiError
from moirai_tf.runtime.gpu_records import gpu_copies, gpu_kernels, is_record
from moirai_tf.verify.run import run_of
from tests.graphs import GraphBuilder

CPU, GPU = "/device:CPU:0", "/device:GPU:0"
TASK = "/job:localhost/replica:0/task:0"
OWNERS = {"shape": 0, "a": 1, "b": 2}


def record(stats: Any, name: str, start_us: int, time_us: int, label: str = "") -> None:
    node = stats.node_stats.add(node_name=name, all_start_micros=start_us, timeline_label=label)
    node.op_end_rel_micros = node.all_end_rel_micros = time_us


def launch(stats: Any, name: str, start_us: int, time_us: int) -> None:
    node = stats.node_stats.add(node_name=name, all_start_nanos=1000 * start_us)
    node.op_end_rel_nanos = node.all_end_rel_nanos = 1000 * time_us


@pytest.fixture
def metadata() -> Any:
    """Launches of 3, 5 and 5 us; `a` runs from 100 to 120 us, `b` from 150 to 160 in two parts.

    A process tells of its streams before it tells of its devices.
    """
    found = config_pb2.RunMetadata()
    graph = found.partition_graphs.add()
    for name in OWNERS:
        graph.node.add(name=name, op="Op", device=f"{TASK}{GPU}")
    stream = found.step_stats.dev_stats.add(device=f"{GPU}/stream:all")
    record(stream, "a:Op", 100, 20)
    record(stream, "b:Op", 150, 4)
    record(stream, "b:Op", 154, 6)
    one = found.step_stats.dev_stats.add(device=f"{GPU}/stream:7")
    record(one, "a:Op", 100, 20)
    copies = found.step_stats.dev_stats.add(device=f"{GPU}/memcpy")
    record(copies, "MemcpyH2D", 60, 30, "MemcpyH2D bytes:4")
    host = found.step_stats.dev_stats.add(device=f"{TASK}{GPU}")
    for name, start_us, time_us in (("shape", 80, 3), ("a", 90, 5), ("b", 145, 5)):
        launch(host, name, start_us, time_us)
    return found


def test_records_are_no_devices(metadata: Any) -> None:
    told = [is_record(stats.device) for stats in metadata.step_stats.dev_stats]
    assert told == [True, True, True, False]
    run = run_of({}, metadata)
    assert run.executed == {name: frozenset({f"{TASK}{GPU}"}) for name in OWNERS}


def test_kernels_and_copies(metadata: Any) -> None:
    kernels = gpu_kernels(metadata.step_stats, f"{TASK}{GPU}")
    assert [(k.operator, k.start_ns, k.time_ns) for k in kernels] == [
        ("a", 100_000, 20_500), ("b", 150_000, 4_500), ("b", 154_000, 6_500),
    ]  # fmt: skip
    copies = gpu_copies(metadata.step_stats, f"{TASK}{GPU}")
    assert [(c.kind, c.time_ns) for c in copies] == [("MemcpyH2D", 30_500)]
    for other in (f"{TASK}/device:GPU:1", f"{TASK}{CPU}"):
        assert gpu_kernels(metadata.step_stats, other) == []


def test_a_gpu_step_is_kernels_and_waits(metadata: Any) -> None:
    """`b` waits from the end of `a` (120.5 us) to 150 us; `shape` has no kernel, but runs 3 us."""
    (step,) = device_steps(metadata, OWNERS.get).values()
    assert step.kernel_ns == {1: 20_500, 2: 11_000}
    assert step.kernels == {1: 1, 2: 2}
    assert step.wait_ns == {0: 3_000, 1: 0, 2: 29_500}
    assert (step.stream_ns, step.copied_ns) == (31_500, 30_500)


def test_what_ran_on_the_same_gpu_of_another_server_is_not_counted(metadata: Any) -> None:
    """Kernels and copies whose operator nobody knows count where they ran."""
    stream = next(s for s in metadata.step_stats.dev_stats if s.device.endswith("stream:all"))
    record(stream, "some_kernel", 300, 7)
    other = "/job:localhost/replica:0/task:1"
    for kind, name in (("stream:all", "another_kernel"), ("memcpy", "MemcpyH2D")):
        record(metadata.step_stats.dev_stats.add(device=f"{GPU}/{kind}"), name, 200, 50)
    launch(metadata.step_stats.dev_stats.add(device=f"{other}{GPU}"), "_SOURCE", 90, 1)
    step, second = (device_steps(metadata, OWNERS.get)[f"{task}{GPU}"] for task in (TASK, other))
    assert step.kernel_ns == {1: 20_500, 2: 11_000, UNKNOWN: 7_500}
    assert step.copied_ns == 30_500
    assert (second.kernel_ns, second.copied_ns) == ({UNKNOWN: 50_500}, 50_500)


def test_a_trace_has_the_kernels_of_a_loop_once(metadata: Any) -> None:
    """`b` is launched twice and has two kernels; the first record, of `shape`, is at 80 us."""
    launch(metadata.step_stats.dev_stats[-1], "b", 151, 2)
    step = measured_step(metadata, {f"{TASK}{GPU}": GPU}, lambda kernel: None)
    spans = [(s.name, s.start_ns, s.finish_ns) for s in step.timeline.spans]
    assert spans == [
        ("shape", 0, 3_000), ("a", 20_000, 40_500), ("b", 70_000, 74_500), ("b", 74_000, 80_500),
    ]  # fmt: skip


def chain() -> Any:
    build = GraphBuilder()
    build.op("Relu", "b", build.op("Relu", "a", build.feed("x")))
    return build.build()


def shown(kernel_ns: dict[int, float], wait_ns: dict[int, float], latency_ns: float) -> Any:
    traced = TracedLayout(
        kernel_ns=kernel_ns, kernels=dict.fromkeys(kernel_ns, 1), wait_ns=wait_ns,
        latency_ns=latency_ns, step_ns=latency_ns, spread=0.0, memory=Allocated(0, 0), repeats=5,
        stream_ns=sum(kernel_ns.values()), copied_ns=0,
    )  # fmt: skip
    measurement = Measurement(
        repeats=5, latency_ns=round(latency_ns), step_ns=0, attributed_ns=0, unknown_ns=0,
        spread=0.0, fixed_ns=100, moved_ns=200, stream_ns=round(traced.stream_ns),
    )  # fmt: skip
    graph = chain()
    layout = Layout(GPU, {"x": CPU, "a": GPU, "b": GPU}, whole=True)
    links = {(CPU, GPU): Link(CPU, GPU, 0, 10**9), (GPU, CPU): Link(GPU, CPU, 0, 10**9)}
    return gpu_times(graph, [layout], [traced], measurement, CPU, links)


def test_waits_fit_into_the_untraced_step() -> None:
    """10,000 - 100 - 200 - 8,000 = 1,700 ns are left, and 3,400 ns of waits were traced: half."""
    times, found = shown({1: 5_000, 2: 3_000}, {1: 400, 2: 3_000}, 10_000)
    assert times == [0, 5_200, 4_500]
    assert (found.attributed_ns, found.scale, found.fixed_ns) == (9_700, 0.5, 100)


def test_what_neither_kernels_nor_waits_explain_is_fixed() -> None:
    """10,000 - 100 - 200 - 8,000 - 500 = 1,200 ns come with every step on this GPU."""
    times, found = shown({1: 5_000, 2: 3_000}, {1: 0, 2: 500}, 10_000)
    assert times == [0, 5_000, 3_500]
    assert found.fixed_ns == 1_300
    # The client's part of it is 40 ns, so taking part costs the rest.
    step = with_rests(StepCost(40, {GPU: 60, "other": 7}), CPU, {GPU: found})
    assert step == StepCost(40, {GPU: 1_260, "other": 7})


def test_what_kernels_leave_no_room_for_is_not_fixed() -> None:
    """8,230 - 100 - 200 = 7,930 ns for kernels of 8,000: 30 of the 100 ns fixed are left."""
    times, found = shown({1: 5_000, 2: 3_000}, {1: 0, 2: 500}, 8_230)
    assert times == [0, 5_000, 3_000]
    assert found.fixed_ns == 30
    # The client was thought to take 40 ns of it.
    step = with_rests(StepCost(40, {GPU: 60, "other": 7}), CPU, {GPU: found})
    assert step == StepCost(30, {GPU: 0, "other": 7})
    # On another server the feeds may have come while it computed.
    far = "/job:worker/replica:0/task:1/device:GPU:0"
    assert with_rests(StepCost(40, {far: 60}), CPU, {far: found}) == StepCost(40, {far: 0})


def test_kernels_that_went_unseen() -> None:
    """Kernels of 0.1 ms in a step of 24.5 ms explain nothing, nor do none at all."""
    with pytest.raises(MoiraiError, match=r"explains 0\.10\d of 24\.400 ms of a step") as caught:
        shown({UNKNOWN: 100}, {1: 50_000, 2: 50_000}, 24_400_300)
    assert "CUPTI" in caught.value.fix
    with pytest.raises(MoiraiError, match="no kernel on record, and 2 operators that computed"):
        shown({}, {1: 5_000, 2: 5_000}, 20_000)
    # A long rest alone is no fault: every operator has its record.
    times, found = shown({1: 100_000, 2: 100_000}, {}, 24_400_300)
    assert times == [0, 100_000, 100_000]
    assert found.fixed_ns == 24_200_100

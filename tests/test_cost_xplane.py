"""Steps of a trace: windows, nesting and asynchronous operators, by hand."""

from __future__ import annotations

from tensorflow.tsl.profiler.protobuf import xplane_pb2

from moirai_tf.cost.xplane import STEP, UNKNOWN, Step, steps

OWNERS = {"a": 0, "b": 1, "call": 2}
START, DONE = "ExecutorState::ProcessAsync::Start", "ExecutorState::ProcessAsync::Done"


def space(*lines: list[tuple[str, int, int]], starts_ns: int = 0) -> xplane_pb2.XSpace:
    """A trace of threads, each of (event, start in ns, duration in ns); START is of `call`."""
    result = xplane_pb2.XSpace()
    plane = result.planes.add(name="/host:CPU")
    plane.stat_metadata[1].name = "name"
    plane.stat_metadata[2].name = "call"
    ids: dict[str, int] = {}
    for events in lines:
        line = plane.lines.add(timestamp_ns=starts_ns)
        for name, start, duration in events:
            kind = ids.setdefault(name, len(ids) + 1)
            plane.event_metadata[kind].name = name
            event = line.events.add(
                metadata_id=kind, offset_ps=start * 1000, duration_ps=duration * 1000
            )
            if name in (START, DONE):
                event.stats.add(metadata_id=1, ref_value=2)
    return result


def test_kernels_count_in_the_step_they_start_in():
    trace = space(
        [(STEP, 100, 100), (STEP, 300, 50)],
        [("a:MatMul", 50, 10), ("a:MatMul", 110, 20), ("b:Relu", 140, 5), ("a:MatMul", 150, 7),
         ("a:MatMul", 250, 9), ("a:MatMul", 310, 11), ("b:Relu", 360, 3)],
    )  # fmt: skip
    assert steps(trace, OWNERS.get) == [
        Step(100, {0: 20 + 7, 1: 5}),
        Step(50, {0: 11}),
    ]


def test_other_events_are_no_kernels():
    trace = space(
        [(STEP, 0, 100), ("SessionRun", 1, 90), ("Executor::Run", 2, 80), ("end: a", 3, 7),
         ("a:MatMul", 10, 20), ("nobody:Add", 40, 6)],
    )  # fmt: skip
    assert steps(trace, OWNERS.get) == [Step(100, {0: 20, UNKNOWN: 6})]


def test_nested_time_counts_once():
    # b runs 30 ns, 10 of them inside a's 50 on the same thread; another thread nests nothing.
    trace = space(
        [(STEP, 0, 100), ("a:MatMul", 10, 50), ("b:Relu", 20, 10)],
        [("b:Relu", 20, 20)],
    )
    assert steps(trace, OWNERS.get) == [Step(100, {0: 50 - 10, 1: 10 + 20})]


def test_an_asynchronous_operator_owns_what_it_runs():
    # Its own 5 + 2 ns, and the kernels of its function, which carry no path; b is known anyway.
    trace = space(
        [(STEP, 0, 100), (START, 10, 5), ("MatMul:MatMul", 20, 30), ("b:Relu", 55, 4),
         (DONE, 60, 2), ("MatMul:MatMul", 70, 8)],
    )  # fmt: skip
    assert steps(trace, OWNERS.get) == [Step(100, {2: 5 + 30 + 2, 1: 4, UNKNOWN: 8})]

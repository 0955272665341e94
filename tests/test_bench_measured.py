"""Steps read back from TensorFlow's own statistics: transfers, clocks that differ, names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moirai_tf.bench.local_cluster import LocalCluster
from moirai_tf.bench.measured import measured_step
from moirai_tf.bench.models import opened, read_placed, read_signature
from moirai_tf.bench.timeline import Timeline
from moirai_tf.cost.inputs import generate_inputs
from tests.placements import place

ZooDir = Callable[[str], Path]

TASKS = tuple(f"/job:worker/replica:0/task:{i}" for i in range(2))
ONE, TWO = (f"{task}/device:CPU:0" for task in TASKS)
DEVICES = {ONE: "one", TWO: "two"}
MS = 1_000_000


@pytest.fixture(scope="module")
def metadata(
    workers: LocalCluster, zoo_dir: ZooDir, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """`RunMetadata` of one step of a model that crosses the two workers both ways."""
    directory = tmp_path_factory.mktemp("measured") / "placed"
    place(zoo_dir("module"), directory, devices=(ONE, TWO))
    placed = read_placed([directory])
    signature = read_signature(zoo_dir("module"), placed)
    inputs = generate_inputs(signature.graph)
    with opened(directory, signature, inputs, workers.cluster, 60.0) as loaded:
        loaded.trace()
        return loaded.trace()


def step(metadata: Any, devices: dict[str, str] | None = None) -> tuple[Timeline, dict[str, int]]:
    devices = devices or {name: name for name in (ONE, TWO)}
    found = measured_step(metadata, devices, lambda kernel: None)
    return found.timeline, dict(found.clock_shifts_ns)


def late(metadata: Any, task: str, shift_ns: int) -> Any:
    """The same step by a clock of one worker that is so much ahead."""
    moved = type(metadata)()
    moved.CopyFrom(metadata)
    for stats in moved.step_stats.dev_stats:
        if stats.device.startswith(task):
            for node in stats.node_stats:
                node.all_start_micros += shift_ns // 1000
                if node.all_start_nanos:
                    node.all_start_nanos += shift_ns
    return moved


def test_transfers_lie_between_their_maker_and_their_readers(metadata: Any) -> None:
    timeline, shifts = step(metadata)
    assert shifts == {}
    both_ways = {(move.source, move.target) for move in timeline.moves}
    assert both_ways == {(ONE, TWO), (TWO, ONE)}
    for move in timeline.moves:
        assert move.span is not None
        assert move.producer is not None
        assert move.producer.device == move.source
        assert move.producer.finish_ns <= move.span.start_ns <= move.span.finish_ns
        for reader in move.consumers:
            assert reader.device == move.target
            assert reader.start_ns >= move.span.finish_ns
    assert sum(bool(move.consumers) for move in timeline.moves) > 2
    assert min(span.start_ns for span in timeline.spans) == 0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shift_ns", [-50 * MS, 50 * MS])
def test_clocks_that_differ_are_moved_until_nothing_arrives_too_early(
    metadata: Any, task: str, shift_ns: int
) -> None:
    """The clock that is behind is moved forward, by the difference but for the fastest transfer."""
    timeline, shifts = step(late(metadata, task, shift_ns))
    behind = task if shift_ns < 0 else TASKS[1 - TASKS.index(task)]
    assert list(shifts) == [behind]
    assert 0 < shifts[behind] <= 50 * MS
    for move in timeline.moves:
        assert move.producer is not None
        assert move.span is not None
        assert move.producer.finish_ns <= move.span.start_ns <= move.span.finish_ns


def test_other_devices_are_left_out(metadata: Any) -> None:
    timeline, _ = step(metadata, {ONE: "one"})
    assert {span.device for span in timeline.spans} == {"one"}
    assert timeline.moves == ()


def test_a_kernel_without_owner_keeps_its_name(metadata: Any) -> None:
    found = measured_step(metadata, DEVICES, lambda kernel: None).timeline
    assert all(span.name == span.detail["node"] for span in found.spans)
    assert {span.device for span in found.spans} == {"one", "two"}
    owned = measured_step(metadata, DEVICES, lambda kernel: "all of it").timeline
    assert {span.name for span in owned.spans} == {"all of it"}

"""The schedule file beside a plan: written with it, renamed with it, gone with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import moirai_tf
from moirai_tf import MoiraiError
from moirai_tf.rewrite.plan_file import SCHEDULE_FILE, read_planned_schedule
from tests.placements import place
from tests.scatter import logical_cluster

ZooDir = Callable[[str], Path]

ONE, TWO = "/device:CPU:0", "/device:CPU:1"


@pytest.fixture(scope="module")
def placed(zoo_dir: ZooDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("schedule") / "placed"
    moirai_tf.optimize(
        zoo_dir("ensemble"), output, logical_cluster(2), source="analytical", solver="heft",
        batch_size=16, verify=False,
    )  # fmt: skip
    return output


def test_the_schedule_is_that_of_the_plan(placed: Path) -> None:
    plan, schedule = moirai_tf.read_plan(placed), read_planned_schedule(placed)
    assert schedule.makespan_ns == plan.summary.latency_ns
    assert schedule.makespan_ns == max(o.finish_ns for o in schedule.operators)
    counts = {name: row.operators for name, row in plan.summary.devices.items()}
    assert counts == {
        name: sum(o.device == name for o in schedule.operators) for name in (ONE, TWO)
    }
    for operator in schedule.operators:
        assert plan.placement[operator.name] == operator.device
    assert {(t.source, t.target) for t in schedule.transfers} <= {(ONE, TWO), (TWO, ONE)}
    assert schedule.transfers


def test_remap_renames_its_devices(placed: Path, tmp_path: Path) -> None:
    swap = {ONE: TWO, TWO: ONE}
    moirai_tf.remap(placed, tmp_path / "moved", swap)
    before, after = read_planned_schedule(placed), read_planned_schedule(tmp_path / "moved")
    assert [o.device for o in after.operators] == [swap[o.device] for o in before.operators]
    assert [t.source for t in after.transfers] == [t.target for t in before.transfers]
    moirai_tf.remap(tmp_path / "moved", tmp_path / "back", swap)
    assert (tmp_path / "back" / SCHEDULE_FILE).read_bytes() == (placed / SCHEDULE_FILE).read_bytes()


def test_strip_removes_it(placed: Path, tmp_path: Path) -> None:
    moirai_tf.strip(placed, tmp_path / "stripped")
    assert not (tmp_path / "stripped" / SCHEDULE_FILE).exists()


def test_a_placement_without_a_schedule_leaves_no_old_one(placed: Path, tmp_path: Path) -> None:
    place(placed, tmp_path / "scattered", batch_size=16)
    with pytest.raises(MoiraiError, match=r"holds no .*moirai_schedule\.json"):
        read_planned_schedule(tmp_path / "scattered")
    moirai_tf.remap(tmp_path / "scattered", tmp_path / "moved", {})
    assert not (tmp_path / "moved" / SCHEDULE_FILE).exists()


@pytest.mark.parametrize(
    ("text", "where"),
    [("{", "not JSON"), ("{}", "makespan"), ('{"makespan": 1, "ops": {"a": {}}}', "ops")],
)
def test_a_broken_file_is_named(placed: Path, tmp_path: Path, text: str, where: str) -> None:
    moirai_tf.remap(placed, tmp_path / "broken", {})
    (tmp_path / "broken" / SCHEDULE_FILE).write_text(text)
    with pytest.raises(MoiraiError, match=where):
        read_planned_schedule(tmp_path / "broken")

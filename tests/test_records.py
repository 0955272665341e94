"""Files and the values they hold: old ones load, and what is wrong with one is said by its path."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from moirai_tf.cluster import Device, Link
from moirai_tf.cost.table import CostTable, Handling, Measurement, OperatorCost
from moirai_tf.cost.table_files import read_table
from moirai_tf.errors import MoiraiError
from moirai_tf.records import Format
from moirai_tf.rewrite.plan import Edits, OrderSummary, Plan, PlanDevice, PlanTransfer
from moirai_tf.rewrite.plan_file import PLAN_FILE, plan_to_json, read_plan

GOLDEN = Path(__file__).parent / "golden" / "files"
"""As versions of the package wrote them; the number is the schema."""
CPU = "/job:worker/replica:0/task:0/device:CPU:0"
GPU = "/job:worker/replica:0/task:1/device:GPU:0"
FORM = Format(why="a test", fix="read on")


def old_plan(schema: int, folder: Path) -> Plan:
    (folder / PLAN_FILE).parent.mkdir()
    (folder / PLAN_FILE).write_text((GOLDEN / f"plan_{schema}.json").read_text())
    return read_plan(folder)


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_old_plans_load(schema: int, tmp_path: Path) -> None:
    plan = old_plan(schema, tmp_path)
    assert plan.placement == {"x": CPU, "call/a": CPU, "call/b": GPU, "call/c": CPU}
    assert plan.transfers == (PlanTransfer("call/a", 0, CPU, GPU, 8),)
    assert plan.devices[1] == PlanDevice(GPU, "GPU", 16, "Tesla T4" if schema == 3 else "")
    assert len(plan.edits.nodes) == 2
    assert len(plan.order) == len(plan.edits.order) == len(plan.edits.relays) == min(1, schema - 1)
    assert (plan.edits.restore is None) == (schema == 1)
    assert (plan.summary is None) == (schema == 1)


def test_summaries_of_old_plans(tmp_path: Path) -> None:
    third = old_plan(3, tmp_path).summary
    assert third is not None
    assert (third.predicted_ns, third.single_device_predicted_ns) == (800, 1000)
    assert third.order == OrderSummary(1, 1, 0)
    assert third.used == (CPU, GPU)
    (tmp_path / "second").mkdir()
    second = old_plan(2, tmp_path / "second").summary
    assert second is not None
    assert (second.predicted_ns, second.step_ns, second.single_device_predicted_ns) == (
        700,
        0,
        None,
    )
    assert (second.order, second.peak_bytes, second.computed) == (None, {}, ())


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = old_plan(3, tmp_path)
    (tmp_path / PLAN_FILE).write_text(plan_to_json(plan))
    again = read_plan(tmp_path)
    assert again == plan
    assert plan_to_json(again) == plan_to_json(plan)


@pytest.mark.parametrize("name", ["costs_2", "costs_2_first"])
def test_old_cost_tables_load(name: str) -> None:
    table = read_table(GOLDEN / f"{name}.json")
    assert table.operators["relu"] == OperatorCost((70, None), (0, 0))
    assert table.handling == {"/device:CPU:0": Handling(50, 300, 90, 600)}
    assert table.links[0].link == Link("/device:CPU:0", "/device:GPU:0", 5, 10**10)
    assert table.devices[1].device == Device("/device:GPU:0", "GPU", 16, architecture="7.5")
    assert table.devices[0].measurement == Measurement(
        20, 1000, 900, 850, 5, 0.25, 100, 20, 3, 0.9, 2, 4096
    )


def values(table: CostTable) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(table)))
    return found


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"slowdown": {CPU: float("inf")}}, f"slowdown[{CPU!r}]: inf is not finite"),
        ({"slowdown": {CPU: True}}, f"slowdown[{CPU!r}]: True is not a number"),
        ({"step": {"client_ns": 2**63, "device_ns": {}}}, "step.client_ns: a whole number of more"),
        ({"step": {"client_ns": 1}}, "step.device_ns: missing"),
        ({"steps": {}}, "steps: unknown; known here are signature, inputs,"),
        ({"links": [{"sauce": 1}]}, "links[0].sauce: unknown; known here are source, target,"),
        ({"operators": {"relu": [1]}}, "operators['relu']: [1] is not an object"),
        ({"inputs": None}, "inputs: missing"),
    ],
)
def test_the_field_is_named(change: dict[str, Any], fault: str) -> None:
    table = read_table(GOLDEN / "costs_2.json")
    assert FORM.record(values(table), CostTable) == table
    with pytest.raises(MoiraiError) as caught:
        FORM.record({**values(table), **change}, CostTable)
    assert caught.value.rule.startswith(fault)


def test_a_field_is_not_needed_where_it_can_be_none() -> None:
    edits = json.loads(json.dumps(dataclasses.asdict(Edits())))
    del edits["restore"]
    assert FORM.record(edits, Edits) == Edits()
    del edits["order"]
    with pytest.raises(MoiraiError, match="order: missing"):
        FORM.record(edits, Edits)
    assert FORM.record(edits, Edits, absent=["order"]) == Edits()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ("[1, 2]", "the file: [1, 2] is not an object"),
    ],
)
def test_json_that_is_ambiguous_is_refused(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(MoiraiError) as caught:
        FORM.read_json(tmp_path / "file.json")
    assert fault in caught.value.rule


def test_only_regular_files_of_some_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nothing"):
        with pytest.raises(MoiraiError, match="cannot be read"):
            FORM.read_json(path)
    (tmp_path / "large").write_text("{}" + 9 * " ")
    with pytest.raises(MoiraiError, match="more than 10 bytes"):
        dataclasses.replace(FORM, most_bytes=10).read_text(tmp_path / "large")

"""The plan and its schedule as JSON, in `assets.extra/` of a placed model.

The plan says where operators run; the schedule says when, as it was predicted. It is in the format
of schedule files, and named after fused operators.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from moirai_tf.cluster import Device
from moirai_tf.errors import MoiraiError, file_errors
from moirai_tf.placement import json_text
from moirai_tf.placement.io import PlacedRecord, TransferRecord
from moirai_tf.records import Format, Natural
from moirai_tf.rewrite.plan import Plan, PlanSummary

SCHEMA = 6
"""Since 2 a plan has an `order`, and `relays` and an `order` among its edits; since 3 its devices
have a `model`; since 4 its summary has all the fields of `PlanSummary`, or is null; since 5 its
edits may have a `split`. What an older plan lacks reads as none."""
PLAN_FILE = Path("assets.extra") / "moirai_plan.json"


def plan_to_json(plan: Plan) -> str:
    """Deterministic JSON: same plan, same bytes."""
    values = dataclasses.asdict(plan)
    return json.dumps({"schema": SCHEMA, **values}, indent=1, sort_keys=True) + "\n"


@file_errors("the plan cannot be read")
def read_plan(directory: str | Path) -> Plan:
    """The plan of a placed SavedModel.

    Raises:
      MoiraiError: the model holds no plan, or a broken one.
    """
    file = Path(directory) / PLAN_FILE
    if not file.is_file():
        raise MoiraiError(
            f"{directory} holds no {PLAN_FILE}",
            why="the plan says what was changed and where operators must run",
            fix="give the output directory of moirai_tf.optimize",
        )
    form = Format(
        why="nothing can be proved or undone without the plan",
        fix=f"optimise the original model again; {file} was changed",
    )
    values = form.read_json(file)
    schema = values.pop("schema", None)
    if schema is None:
        raise form.fault("schema", "missing")
    if schema not in range(1, SCHEMA + 1):
        raise form.fault("schema", f"{schema} is not 1 to {SCHEMA}, those of this version")
    if schema < 4:
        values["summary"] = _complete(values.get("summary"))
    absent = {"order", "relays"} if schema < 2 else set()
    added = {3: "model", 5: "split", 6: "whole"}
    absent |= {name for since, name in added.items() if schema < since}
    plan = form.record(values, Plan, absent=absent)
    try:
        bytes.fromhex(plan.edits.fingerprint)
    except ValueError as error:
        raise form.fault("edits.fingerprint", "it is not hexadecimal") from error
    _check_devices(plan, form)
    return plan


def _check_devices(plan: Plan, form: Format) -> None:
    """Refuses devices that TensorFlow could not have, and uses of others than the plan's."""
    for i, device in enumerate(plan.devices):
        try:
            Device(device.name, device.type)
        except MoiraiError as error:
            raise form.fault(f"devices[{i}]", error.rule) from error
    known = [device.name for device in plan.devices]
    used = [("client", plan.client)]
    used += [(f"placement[{name!r}]", device) for name, device in plan.placement.items()]
    for i, transfer in enumerate(plan.transfers):
        used += [(f"transfers[{i}].{end}", getattr(transfer, end)) for end in ("source", "target")]
    for path, name in used:
        if name not in known:
            known_text = ", ".join(known)
            raise form.fault(path, f"there is no device {name!r}; known are {known_text}")


def _complete(summary: Any) -> Any:
    """The summary of an older plan, with what it lacks."""
    if not isinstance(summary, dict) or "latency_ns" not in summary:
        return None
    latency_ns = summary["latency_ns"]
    known = {"status": "feasible", "objective": "latency", "queued_ns": latency_ns, "step_ns": 0,
             "predicted_ns": latency_ns, "lower_bound_ns": 0, "gap": 1.0, "baselines_ns": {},
             "computed": [], "devices": {}, "peak_bytes": {}, **summary}  # fmt: skip
    return {f.name: known.get(f.name) for f in dataclasses.fields(PlanSummary)}


SCHEDULE_FILE = Path("assets.extra") / "moirai_schedule.json"

_FORMAT = Format(
    why="prediction and measurement are compared by this file",
    fix=f"optimise the original model again; {SCHEDULE_FILE} was changed",
    closed=False,
)


@dataclass(frozen=True, slots=True)
class ScheduledOperator:
    """A fused operator; times in nanoseconds from the start of the inference."""

    name: str
    device: str
    start_ns: int
    finish_ns: int


@dataclass(frozen=True, slots=True)
class ScheduledTransfer:
    """A tensor that crosses devices; times as of operators."""

    producer: str
    tensor: int
    """Position among the tensors of the coarse graph."""
    source: str
    target: str
    start_ns: int
    finish_ns: int
    consumer: str | None
    """The fused operator it is for; None if for all on the target."""


@dataclass(frozen=True)
class PlannedSchedule:
    """What the plan predicts of one inference."""

    makespan_ns: int
    operators: tuple[ScheduledOperator, ...]
    transfers: tuple[ScheduledTransfer, ...]


class _PlannedRecord(TypedDict):
    makespan: Natural
    ops: dict[str, PlacedRecord]
    transfers: tuple[TransferRecord, ...]


def read_planned_schedule(directory: str | Path) -> PlannedSchedule:
    """The schedule of a placed SavedModel.

    Raises:
      MoiraiError: the model holds none, or a broken one.
    """
    root = _FORMAT.record(_values(Path(directory) / SCHEDULE_FILE), _PlannedRecord)
    return PlannedSchedule(
        makespan_ns=root["makespan"],
        operators=tuple(
            ScheduledOperator(name, row["device"], row["start"], row["finish"])
            for name, row in root["ops"].items()
        ),
        transfers=tuple(
            ScheduledTransfer(
                row["producer"], row["tensor"], row["from"], row["to"],
                row["start"], row["finish"], row.get("consumer"),
            )
            for row in root["transfers"]
        ),
    )  # fmt: skip


def renamed_schedule(directory: str | Path, names: Mapping[str, str]) -> str:
    """The text of a model's schedule file with other device names; empty if it has none.

    Args:
      directory: the placed model.
      names: old device -> new device.

    Raises:
      MoiraiError: the file is broken.
    """
    file = Path(directory) / SCHEDULE_FILE
    if not file.is_file():
        return ""
    values = _values(file)
    _FORMAT.record(values, _PlannedRecord)
    named = [(row, "device") for row in values["ops"].values()]
    named += [(row, key) for row in values["transfers"] for key in ("from", "to")]
    for row, key in named:
        row[key] = names.get(row[key], row[key])
    return json_text(values)


def _values(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise MoiraiError(
            f"{file.parent.parent} holds no {SCHEDULE_FILE}",
            why="it says when the plan expects every operator to run",
            fix="give the output directory of moirai_tf.optimize, or place the model again",
        )
    return _FORMAT.read_json(file)

"""The schedule behind a plan: `assets.extra/moirai_schedule.json` of a placed model.

The plan says where operators run; the schedule says when, as it was predicted. It is in the format
of schedule files, and named after fused operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moirai_tf.errors import MoiraiError
from moirai_tf.fields import Field, Format
from moirai_tf.placement import json_text

SCHEDULE_FILE = Path("assets.extra") / "moirai_schedule.json"

_FORMAT = Format(
    why="prediction and measurement are compared by this file",
    fix=f"optimise the original model again; {SCHEDULE_FILE} was changed",
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


def read_planned_schedule(directory: str | Path) -> PlannedSchedule:
    """The schedule of a placed SavedModel.

    Raises:
      MoiraiError: the model holds none, or a broken one.
    """
    root = _read(Path(directory) / SCHEDULE_FILE)
    return PlannedSchedule(
        makespan_ns=root["makespan"].integer(least=0),
        operators=tuple(
            ScheduledOperator(
                name, entry["device"].text(), entry["start"].integer(), entry["finish"].integer()
            )
            for name, entry in root["ops"].items()
        ),
        transfers=tuple(map(_transfer, root["transfers"].elements())),
    )


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
    root = _read(file)
    named = [(entry, "device") for _, entry in root["ops"].items()]
    named += [(e, key) for e in root["transfers"].elements() for key in ("from", "to")]
    for entry, key in named:
        device = entry[key].text()
        entry.value[key] = names.get(device, device)
    data: dict[str, Any] = root.value
    return json_text(data)


def _read(file: Path) -> Field:
    if not file.is_file():
        raise MoiraiError(
            f"{file.parent.parent} holds no {SCHEDULE_FILE}",
            why="it says when the plan expects every operator to run",
            fix="give the output directory of moirai_tf.optimize, or place the model again",
        )
    return _FORMAT.read_json(file)


def _transfer(row: Field) -> ScheduledTransfer:
    consumer = row.get("consumer")
    return ScheduledTransfer(
        row["producer"].text(), row["tensor"].integer(least=0),
        row["from"].text(), row["to"].text(),
        row["start"].integer(), row["finish"].integer(),
        None if consumer is None else consumer.text(),
    )  # fmt: skip

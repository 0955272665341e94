"""Problems and schedules as JSON files, both ways."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from moirai_tf.errors import MoiraiError
from moirai_tf.fields import Field, Format
from moirai_tf.placement import schedule as statuses
from moirai_tf.placement.objective import LATENCY, OBJECTIVES, WEIGHTED, objective_of
from moirai_tf.placement.problem import (
    PER_EDGE,
    PER_TENSOR,
    PORT,
    Device,
    Operator,
    Problem,
    Tensor,
)
from moirai_tf.placement.schedule import Claim, Placed, Schedule, Transfer
from moirai_tf.placement.validation import require_valid

_Matrix = tuple[tuple[int, ...], ...]

_FORMAT = Format(
    why="every field of a problem or schedule decides what is feasible",
    fix="correct this field and read the file again",
)


def read_problem(
    path: str | Path, *, transfers: str = PER_TENSOR, congestion: str = PORT
) -> Problem:
    """Reads an instance file; the modes are the user's, not the file's.

    Raises:
      MoiraiError: naming the field that is missing or wrong.
    """
    return problem_from_json(
        _FORMAT.read_json(path).value, transfers=transfers, congestion=congestion
    )


def problem_from_json(data: Any, *, transfers: str = PER_TENSOR, congestion: str = PORT) -> Problem:
    """A problem from parsed JSON; raises as `read_problem`."""
    root = Field(data, _FORMAT)
    operators = tuple(_operator(field) for field in root["ops"].elements())
    index = {operator.name: i for i, operator in enumerate(operators)}
    matrices: dict[_Matrix, _Matrix] = {}
    source, groups = root.get("source"), root.get("colocate")
    problem = Problem(
        name=root["name"].text(),
        source="" if source is None else source.text(),
        devices=tuple(_device(field) for field in root["devices"].elements()),
        operators=operators,
        tensors=tuple(_tensor(field, index, matrices) for field in root["tensors"].elements()),
        colocation=tuple(
            tuple(_index(member, index, "operator") for member in group.elements())
            for group in ([] if groups is None else groups.elements())
        ),
        transfers=transfers,
        congestion=congestion,
    )
    require_valid(problem)
    return problem


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """The content of an instance file."""
    names = [operator.name for operator in problem.operators]
    data: dict[str, Any] = {
        "name": problem.name,
        "source": problem.source,
        "devices": [{"name": d.name, "memory": d.memory_bytes} for d in problem.devices],
        "ops": [
            {"name": o.name, "compute": list(o.compute_ns), "memory": o.memory_bytes}
            for o in problem.operators
        ],
        "tensors": [
            {
                "producer": names[tensor.producer],
                "consumers": [names[consumer] for consumer in tensor.consumers],
                "time": [list(row) for row in tensor.time_ns],
            }
            for tensor in problem.tensors
        ],
    }
    if problem.colocation:
        data["colocate"] = [[names[member] for member in group] for group in problem.colocation]
    return data


def write_problem(problem: Problem, path: str | Path) -> None:
    """Writes an instance file."""
    write_text(json_text(problem_to_json(problem)), Path(path))


def read_schedule(problem: Problem, path: str | Path) -> Schedule:
    """Reads a schedule of this problem. Only its form is checked; `check.check` does the rest.

    Raises:
      MoiraiError: naming the field that is missing or wrong, or does not fit the problem.
    """
    return schedule_from_json(problem, _FORMAT.read_json(path).value)


def schedule_from_json(problem: Problem, data: Any) -> Schedule:
    """A schedule from parsed JSON; raises as `read_schedule`."""
    root = Field(data, _FORMAT)
    for key, expected in (
        ("instance", problem.name),
        ("transfers_mode", problem.transfers),
        ("congestion", problem.congestion),
    ):
        if root[key].text() != expected:
            raise root[key].fault(f"{root[key].text()!r}, but the problem has {expected!r}")
    status = root["status"].text()
    if status not in (statuses.OPTIMAL, statuses.FEASIBLE):
        raise root["status"].fault(f"{status!r} is neither optimal nor feasible")
    gap = root.get("allowed_gap")
    names = _Names.of(problem)
    return Schedule(
        placed=_placed(problem, names, root["ops"]),
        transfers=tuple(_transfer(problem, names, entry) for entry in root["transfers"].elements()),
        makespan_ns=root["makespan"].integer(),
        status=status,
        lower_bound_ns=root["lower_bound"].integer(),
        allowed_gap=0.0 if gap is None else gap.number(),
        claim=_claim(root),
    )


def schedule_to_json(problem: Problem, schedule: Schedule) -> dict[str, Any]:
    """The content of a schedule file.

    `allowed_gap` is there only when `optimal` means "within this requested gap"; `objective` and
    what belongs to it only when that is not the makespan.
    """
    devices = [device.name for device in problem.devices]
    data: dict[str, Any] = {
        "instance": problem.name,
        "status": schedule.status,
        "makespan": schedule.makespan_ns,
        "lower_bound": schedule.lower_bound_ns,
        "transfers_mode": problem.transfers,
        "congestion": problem.congestion,
    }
    if schedule.status == statuses.OPTIMAL and schedule.objective_bound_ns < schedule.objective_ns:
        data["allowed_gap"] = schedule.allowed_gap
    if schedule.claim is not None:
        data |= _claim_to_json(schedule.claim)
    data["ops"] = {
        operator.name: {
            "device": devices[placed.device],
            "start": placed.start_ns,
            "finish": placed.finish_ns,
        }
        for operator, placed in zip(problem.operators, schedule.placed, strict=True)
    }
    data["transfers"] = [_transfer_to_json(problem, transfer) for transfer in schedule.transfers]
    return data


def write_schedule(problem: Problem, schedule: Schedule, path: str | Path) -> None:
    """Writes a schedule file."""
    write_text(json_text(schedule_to_json(problem, schedule)), Path(path))


def json_text(data: Mapping[str, Any]) -> str:
    """A problem or schedule as the text of its file.

    One line per operator, tensor and transfer: readable, and diffable line by line.
    """
    lines = []
    for key, value in data.items():
        if isinstance(value, list) and value:
            body = ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            lines.append(f"{json.dumps(key)}: [\n{body}\n ]")
        elif isinstance(value, dict) and value:
            entries = (f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            body = ",\n".join(entries)
            lines.append(f"{json.dumps(key)}: {{\n{body}\n }}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def _claim(root: Field) -> Claim | None:
    name = root.get("objective")
    if name is None or name.one_of(OBJECTIVES, "objective") == LATENCY:
        return None
    weight = root["latency_weight"].number() if name.text() == WEIGHTED else 0.0
    bound = root["objective_lower_bound"]
    try:
        lower_bound_ns = Fraction(bound.text())
    except (ValueError, ZeroDivisionError) as error:
        raise bound.fault(f"{bound.text()!r} is not a fraction") from error
    objective = objective_of(name.text(), weight)
    return Claim(objective, root["bottleneck"].integer(), lower_bound_ns)


def _claim_to_json(claim: Claim) -> dict[str, Any]:
    """The bound is text, as `37/2`, since it is exact and need not be whole."""
    weight = {"latency_weight": float(claim.objective.latency_weight)}
    return {
        "objective": claim.objective.name,
        **(weight if claim.objective.name == WEIGHTED else {}),
        "bottleneck": claim.bottleneck_ns,
        "objective_lower_bound": str(claim.lower_bound_ns),
    }


def _device(field: Field) -> Device:
    memory = field.get("memory")
    return Device(field["name"].text(), None if memory is None else memory.integer())


def _operator(field: Field) -> Operator:
    times = field["compute"].elements()
    return Operator(
        name=field["name"].text(),
        compute_ns=tuple(None if time.value is None else time.integer() for time in times),
        memory_bytes=field["memory"].integer(),
    )


def _tensor(field: Field, index: dict[str, int], matrices: dict[_Matrix, _Matrix]) -> Tensor:
    """A tensor; equal matrices become one object, since large models repeat a few."""
    time_ns = tuple(
        tuple(entry.integer() for entry in row.elements()) for row in field["time"].elements()
    )
    return Tensor(
        producer=_index(field["producer"], index, "operator"),
        consumers=tuple(_index(c, index, "operator") for c in field["consumers"].elements()),
        time_ns=matrices.setdefault(time_ns, time_ns),
    )


@dataclass(frozen=True, slots=True)
class _Names:
    """Index of every name of a problem."""

    devices: dict[str, int]
    operators: dict[str, int]

    @classmethod
    def of(cls, problem: Problem) -> _Names:
        return cls(
            devices={device.name: index for index, device in enumerate(problem.devices)},
            operators={operator.name: index for index, operator in enumerate(problem.operators)},
        )


def _placed(problem: Problem, names: _Names, field: Field) -> tuple[Placed, ...]:
    placed: dict[int, Placed] = {}
    for name, entry in field.items():
        if name not in names.operators:
            raise entry.fault(f"there is no operator {name!r}")
        placed[names.operators[name]] = Placed(
            device=_index(entry["device"], names.devices, "device"),
            start_ns=entry["start"].integer(),
            finish_ns=entry["finish"].integer(),
        )
    missing = [index for index in range(len(problem.operators)) if index not in placed]
    if missing:
        raise field.fault(f"missing: {problem.operator_names(missing)}")
    return tuple(placed[index] for index in range(len(problem.operators)))


def _transfer(problem: Problem, names: _Names, field: Field) -> Transfer:
    tensor = field["tensor"].integer()
    if not 0 <= tensor < len(problem.tensors):
        raise field["tensor"].fault(f"there is no tensor {tensor}")
    producer = _index(field["producer"], names.operators, "operator")
    if producer != problem.tensors[tensor].producer:
        raise field["producer"].fault(f"tensor {tensor} has another producer")
    consumer = None
    if problem.transfers == PER_EDGE:
        consumer = _index(field["consumer"], names.operators, "operator")
    return Transfer(
        tensor=tensor,
        source=_index(field["from"], names.devices, "device"),
        target=_index(field["to"], names.devices, "device"),
        start_ns=field["start"].integer(),
        finish_ns=field["finish"].integer(),
        consumer=consumer,
    )


def _transfer_to_json(problem: Problem, transfer: Transfer) -> dict[str, Any]:
    data: dict[str, Any] = {
        "producer": problem.operators[problem.tensors[transfer.tensor].producer].name,
        "tensor": transfer.tensor,
        "from": problem.devices[transfer.source].name,
        "to": problem.devices[transfer.target].name,
        "start": transfer.start_ns,
        "finish": transfer.finish_ns,
    }
    if transfer.consumer is not None:
        data["consumer"] = problem.operators[transfer.consumer].name
    return data


def _index(field: Field, index: dict[str, int], noun: str) -> int:
    name = field.text()
    if name not in index:
        raise field.fault(f"there is no {noun} {name!r}")
    return index[name]


def write_text(text: str, path: Path) -> None:
    """Writes a file whole or not at all.

    Raises:
      MoiraiError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise MoiraiError(
            f"{path} cannot be written: {error}",
            why="the result is kept in this file",
            fix="give a path in an existing, writable directory",
        ) from error

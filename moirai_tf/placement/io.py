"""Problems and schedules as JSON files, both ways."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

from typing_extensions import NotRequired, TypedDict

from moirai_tf.placement import schedule as statuses
from moirai_tf.placement.objective import LATENCY, WEIGHTED, objective_of
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
from moirai_tf.records import Format, write_text

T = TypeVar("T")

_FORMAT = Format(
    why="every field of a problem or schedule decides what is feasible",
    fix="correct this field and read the file again",
    closed=False,
)


class _DeviceRecord(TypedDict):
    name: str
    memory: NotRequired[int | None]


class _OperatorRecord(TypedDict):
    name: str
    compute: tuple[int | None, ...]
    memory: int


class _TensorRecord(TypedDict):
    producer: str
    consumers: tuple[str, ...]
    time: tuple[tuple[int, ...], ...]


class _ProblemRecord(TypedDict):
    """The content of an instance file."""

    name: str
    source: NotRequired[str | None]
    devices: tuple[_DeviceRecord, ...]
    ops: tuple[_OperatorRecord, ...]
    tensors: tuple[_TensorRecord, ...]
    colocate: NotRequired[tuple[tuple[str, ...], ...] | None]


class PlacedRecord(TypedDict):
    """Where and when an operator runs, as schedule files say it."""

    device: str
    start: int
    finish: int


TransferRecord = TypedDict(
    "TransferRecord",
    {
        "producer": str,
        "tensor": int,
        "from": str,
        "to": str,
        "start": int,
        "finish": int,
        "consumer": NotRequired[str | None],
    },
)
"""A tensor that crosses devices, as schedule files say it."""


class _ScheduleRecord(TypedDict):
    """The content of a schedule file; what is not required belongs to other objectives."""

    instance: str
    status: str
    makespan: int
    lower_bound: int
    transfers_mode: str
    congestion: str
    allowed_gap: NotRequired[float | None]
    objective: NotRequired[Literal["latency", "throughput", "weighted"] | None]
    latency_weight: NotRequired[float | None]
    bottleneck: NotRequired[int | None]
    objective_lower_bound: NotRequired[str | None]
    ops: dict[str, PlacedRecord]
    transfers: tuple[TransferRecord, ...]


def read_problem(
    path: str | Path, *, transfers: str = PER_TENSOR, congestion: str = PORT
) -> Problem:
    """Reads an instance file; the modes are the user's, not the file's.

    Raises:
      MoiraiError: naming the field that is missing or wrong.
    """
    return problem_from_json(_FORMAT.read_json(path), transfers=transfers, congestion=congestion)


def problem_from_json(data: Any, *, transfers: str = PER_TENSOR, congestion: str = PORT) -> Problem:
    """A problem from parsed JSON; raises as `read_problem`."""
    root = _FORMAT.record(data, _ProblemRecord)
    index = {operator["name"]: i for i, operator in enumerate(root["ops"])}
    # Large models repeat a few matrices; equal ones become one object.
    matrices = {tensor["time"]: tensor["time"] for tensor in root["tensors"]}

    def indices(names: Iterable[str], path: str) -> tuple[int, ...]:
        return tuple(
            _index(name, index, "operator", f"{path}[{i}]") for i, name in enumerate(names)
        )

    problem = Problem(
        name=root["name"],
        source=root.get("source") or "",
        devices=tuple(Device(row["name"], row.get("memory")) for row in root["devices"]),
        operators=tuple(Operator(o["name"], o["compute"], o["memory"]) for o in root["ops"]),
        tensors=tuple(
            Tensor(
                _index(row["producer"], index, "operator", f"tensors[{i}].producer"),
                indices(row["consumers"], f"tensors[{i}].consumers"),
                matrices[row["time"]],
            )
            for i, row in enumerate(root["tensors"])
        ),
        colocation=tuple(
            indices(group, f"colocate[{i}]") for i, group in enumerate(root.get("colocate") or ())
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
    return schedule_from_json(problem, _FORMAT.read_json(path))


def schedule_from_json(problem: Problem, data: Any) -> Schedule:
    """A schedule from parsed JSON; raises as `read_schedule`."""
    root = _FORMAT.record(data, _ScheduleRecord)
    for key, found, expected in (
        ("instance", root["instance"], problem.name),
        ("transfers_mode", root["transfers_mode"], problem.transfers),
        ("congestion", root["congestion"], problem.congestion),
    ):
        if found != expected:
            raise _FORMAT.fault(key, f"{found!r}, but the problem has {expected!r}")
    status = root["status"]
    if status not in (statuses.OPTIMAL, statuses.FEASIBLE):
        raise _FORMAT.fault("status", f"{status!r} is neither optimal nor feasible")
    devices = {device.name: index for index, device in enumerate(problem.devices)}
    operators = {operator.name: index for index, operator in enumerate(problem.operators)}
    return Schedule(
        placed=_placed(problem, devices, operators, root["ops"]),
        transfers=tuple(
            _transfer(problem, devices, operators, row, f"transfers[{i}]")
            for i, row in enumerate(root["transfers"])
        ),
        makespan_ns=root["makespan"],
        status=status,
        lower_bound_ns=root["lower_bound"],
        allowed_gap=root.get("allowed_gap") or 0.0,
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


def _claim(root: _ScheduleRecord) -> Claim | None:
    name = root.get("objective")
    if name is None or name == LATENCY:
        return None
    weight = _needed(root.get("latency_weight"), "latency_weight") if name == WEIGHTED else 0.0
    text = _needed(root.get("objective_lower_bound"), "objective_lower_bound")
    try:
        lower_bound_ns = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise _FORMAT.fault("objective_lower_bound", f"{text!r} is not a fraction") from error
    bottleneck_ns = _needed(root.get("bottleneck"), "bottleneck")
    return Claim(objective_of(name, weight), bottleneck_ns, lower_bound_ns)


def _needed(value: T | None, field: str) -> T:
    if value is None:
        raise _FORMAT.fault(field, "missing")
    return value


def _claim_to_json(claim: Claim) -> dict[str, Any]:
    """The bound is text, as `37/2`, since it is exact and need not be whole."""
    weight = {"latency_weight": float(claim.objective.latency_weight)}
    return {
        "objective": claim.objective.name,
        **(weight if claim.objective.name == WEIGHTED else {}),
        "bottleneck": claim.bottleneck_ns,
        "objective_lower_bound": str(claim.lower_bound_ns),
    }


def _placed(
    problem: Problem,
    devices: Mapping[str, int],
    operators: Mapping[str, int],
    rows: Mapping[str, PlacedRecord],
) -> tuple[Placed, ...]:
    for name in rows:
        _index(name, operators, "operator", f"ops[{name!r}]")
    missing = [i for i, operator in enumerate(problem.operators) if operator.name not in rows]
    if missing:
        raise _FORMAT.fault("ops", f"missing: {problem.operator_names(missing)}")
    named = [(operator.name, rows[operator.name]) for operator in problem.operators]
    return tuple(
        Placed(
            _index(row["device"], devices, "device", f"ops[{name!r}].device"),
            row["start"],
            row["finish"],
        )
        for name, row in named
    )


def _transfer(
    problem: Problem,
    devices: Mapping[str, int],
    operators: Mapping[str, int],
    row: TransferRecord,
    path: str,
) -> Transfer:
    tensor = row["tensor"]
    if not 0 <= tensor < len(problem.tensors):
        raise _FORMAT.fault(f"{path}.tensor", f"there is no tensor {tensor}")
    producer = _index(row["producer"], operators, "operator", f"{path}.producer")
    if producer != problem.tensors[tensor].producer:
        raise _FORMAT.fault(f"{path}.producer", f"tensor {tensor} has another producer")
    consumer = None
    if problem.transfers == PER_EDGE:
        name = _needed(row.get("consumer"), f"{path}.consumer")
        consumer = _index(name, operators, "operator", f"{path}.consumer")
    return Transfer(
        tensor=tensor,
        source=_index(row["from"], devices, "device", f"{path}.from"),
        target=_index(row["to"], devices, "device", f"{path}.to"),
        start_ns=row["start"],
        finish_ns=row["finish"],
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


def _index(name: str, index: Mapping[str, int], noun: str, path: str) -> int:
    if name not in index:
        raise _FORMAT.fault(path, f"there is no {noun} {name!r}")
    return index[name]

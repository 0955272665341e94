"""Problems and schedules as text for people: one fact per line, stable order, easy to diff."""

from __future__ import annotations

from collections.abc import Iterator

from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import OPTIMAL, Schedule


def problem_text(problem: Problem) -> str:
    """A problem, operators in topological order."""
    return "\n".join(_problem_lines(problem)) + "\n"


def schedule_text(problem: Problem, schedule: Schedule) -> str:
    """A schedule, device by device and link by link, each in order of time."""
    return "\n".join(_schedule_lines(problem, schedule)) + "\n"


def _problem_lines(problem: Problem) -> Iterator[str]:
    yield f"problem {problem.name}  transfers={problem.transfers} congestion={problem.congestion}"
    for device in problem.devices:
        memory = "unlimited" if device.memory_bytes is None else f"{device.memory_bytes} B"
        yield f"device {device.name}  memory={memory}"
    for index in problem.topological_order:
        operator = problem.operators[index]
        times = " ".join("-" if time is None else str(time) for time in operator.compute_ns)
        yield f"op {operator.name}  compute_ns=[{times}] memory={operator.memory_bytes} B"
    for index, tensor in enumerate(problem.tensors):
        rows = "; ".join(" ".join(map(str, row)) for row in tensor.time_ns)
        readers = problem.operator_names(tensor.consumers, limit=len(tensor.consumers))
        producer = problem.operators[tensor.producer].name
        yield f"tensor {index}  {producer} -> {readers}  time_ns=[{rows}]"
    for group in problem.colocation:
        yield f"colocate {problem.operator_names(group, limit=len(group))}"


def _schedule_lines(problem: Problem, schedule: Schedule) -> Iterator[str]:
    claim = f"{schedule.status} makespan={schedule.makespan_ns} bound={schedule.lower_bound_ns}"
    if schedule.status == OPTIMAL and schedule.objective_bound_ns < schedule.objective_ns:
        claim += f" within gap {schedule.allowed_gap:g}"
    yield f"schedule of {problem.name}  {claim}"
    if schedule.claim is not None:
        yield (
            f"objective {schedule.claim.objective.name}={schedule.objective_ns} "
            f"bound={schedule.claim.lower_bound_ns} bottleneck={schedule.claim.bottleneck_ns}"
        )
    for device, info in enumerate(problem.devices):
        here = [i for i, placed in enumerate(schedule.placed) if placed.device == device]
        here.sort(key=lambda i: (schedule.placed[i].start_ns, problem.topological_position[i]))
        memory = sum(problem.operators[i].memory_bytes for i in here)
        yield f"device {info.name}  operators={len(here)} memory={memory} B"
        for i in here:
            placed = schedule.placed[i]
            yield f"  {placed.start_ns} .. {placed.finish_ns}  {problem.operators[i].name}"
    for transfer in sorted(
        schedule.transfers, key=lambda t: (t.source, t.target, t.start_ns, t.tensor)
    ):
        source, target = (problem.devices[k].name for k in (transfer.source, transfer.target))
        producer = problem.operators[problem.tensors[transfer.tensor].producer].name
        reader = ""
        if transfer.consumer is not None:
            reader = f" for {problem.operators[transfer.consumer].name}"
        yield (
            f"transfer {source} -> {target}  {transfer.start_ns} .. {transfer.finish_ns}  "
            f"tensor {transfer.tensor} of {producer}{reader}"
        )

"""What a report says, as values: read from a placed model and, if there is one, a trace of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from moirai_tf.bench.models import fuse_options, fused, planned_graph, read_placed, read_signature
from moirai_tf.bench.timeline import Timeline, predicted_timeline
from moirai_tf.bench.trace import read_measured
from moirai_tf.cluster.names import short_devices
from moirai_tf.cost.memory import tensor_bytes, weight_bytes
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.fusion.coarsen import near_misses
from moirai_tf.graph.names import short_names
from moirai_tf.placement.schedule import Placed, Schedule, Transfer, schedule_of
from moirai_tf.report.critical import Step, critical_path
from moirai_tf.rewrite.plan import Plan, PlanSummary
from moirai_tf.rewrite.plan_file import PlannedSchedule, read_planned_schedule
from moirai_tf.rewrite.verdict import verdict


@dataclass(frozen=True)
class DeviceUse:
    """One device: what it does and what it holds."""

    name: str
    type: str
    operators: int
    """Fused operators that it runs."""
    busy_ns: int
    memory: tuple[tuple[int, int], ...]
    """(ns, bytes in use from then on): weights, and tensors while they are alive."""
    capacity_bytes: int | None

    @property
    def peak_bytes(self) -> int:
        """The most that is in use at one time."""
        return max((nbytes for _, nbytes in self.memory), default=0)


@dataclass(frozen=True)
class Content:
    """Everything that a report shows."""

    model: str
    signature: str
    verdict: str
    predicted_ns: int
    measured_ns: int | None
    single_device_ns: int | None
    """Predicted of the best single device; None if none can run the model."""
    lower_bound_ns: int
    devices: tuple[DeviceUse, ...]
    planned: Timeline
    measured: Timeline | None
    path: tuple[Step, ...]
    coarse: CoarseGraph
    device_of: Mapping[str, str]
    """Fused operator -> device."""
    names: Mapping[str, str]
    """Operator -> its name without what all names begin with."""
    latencies_ns: tuple[tuple[str, int], ...]
    """(who placed, makespan): this placement, then the baselines."""
    misses: tuple[str, ...]
    """What looked like a fusion and is none, and why."""

    @cached_property
    def short(self) -> dict[str, str]:
        """Device -> what people call it."""
        return short_devices(device.name for device in self.devices)


def content_of(placed_dir: str | Path, trace: str | Path | None = None) -> Content:
    """What there is to say of a placed model.

    Args:
      placed_dir: an output of `optimize`; only read, nothing is run.
      trace: a file that `moirai_bench --trace` wrote of it.

    Raises:
      MoiraiError: there is no plan or schedule, it does not fit the model, or the trace is broken.
    """
    placed = read_placed([placed_dir])
    plan = placed[0].plan
    graph = planned_graph(placed[0], read_signature(placed_dir, placed).graph)
    coarse, schedule = fused(graph, plan), read_planned_schedule(placed_dir)
    planned = predicted_timeline(schedule, coarse)
    measured = None if trace is None else read_measured(trace, [d.name for d in plan.devices])
    summary = plan.summary
    if summary is None:
        raise MoiraiError(
            f"the plan of {placed_dir} says nothing of latencies",
            why="the report is about what was predicted and proved",
            fix="give the output directory of moirai_tf.optimize",
        )
    return Content(
        model=Path(placed_dir).resolve().name,
        signature=plan.signature,
        verdict=verdict(summary),
        predicted_ns=summary.predicted_ns,
        measured_ns=None if measured is None else measured.latency_ns,
        single_device_ns=summary.single_device_predicted_ns,
        lower_bound_ns=summary.lower_bound_ns,
        devices=_devices(plan, coarse, schedule),
        planned=planned,
        measured=None if measured is None else measured.timeline,
        path=critical_path(schedule, coarse),
        coarse=coarse,
        device_of={operator.name: operator.device for operator in schedule.operators},
        names=short_names(operator.name for operator in graph.operators),
        latencies_ns=_latencies(summary),
        misses=tuple(map(str, near_misses(graph, fuse_options(plan)))),
    )


def _latencies(summary: PlanSummary) -> tuple[tuple[str, int], ...]:
    baselines = sorted(summary.baselines_ns.items(), key=lambda row: row[1])
    return (("moirai", summary.latency_ns), *baselines)


def _devices(plan: Plan, coarse: CoarseGraph, planned: PlannedSchedule) -> tuple[DeviceUse, ...]:
    names = [device.name for device in plan.devices]
    schedule = _indexed(coarse, planned, names)
    held = weight_bytes(coarse, schedule, len(names))
    used = tensor_bytes(coarse, schedule, len(names))
    return tuple(
        DeviceUse(
            name=device.name,
            type=device.type,
            operators=sum(placed.device == index for placed in schedule.placed),
            busy_ns=sum(p.finish_ns - p.start_ns for p in schedule.placed if p.device == index),
            memory=tuple((ns, held[index] + nbytes) for ns, nbytes in used[index]),
            capacity_bytes=device.memory_bytes,
        )
        for index, device in enumerate(plan.devices)
    )


def _indexed(coarse: CoarseGraph, planned: PlannedSchedule, devices: Sequence[str]) -> Schedule:
    """The schedule with indices in the place of names."""
    number = {name: index for index, name in enumerate(devices)}
    known = {operator.name: operator for operator in planned.operators}
    placed = [
        Placed(number[o.device], o.start_ns, o.finish_ns)
        for o in (known[fused.name] for fused in coarse.operators)
    ]
    reader = {fused.name: index for index, fused in enumerate(coarse.operators)}
    transfers = [
        Transfer(
            t.tensor, number[t.source], number[t.target], t.start_ns, t.finish_ns,
            None if t.consumer is None else reader[t.consumer],
        )
        for t in planned.transfers
    ]  # fmt: skip
    return schedule_of(placed, transfers)

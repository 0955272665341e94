"""What a user wants to know of a placement: in the plan as data, on the terminal as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moirai_tf.cost.predict import Prediction
from moirai_tf.pipeline import MoiraiItem, need
from moirai_tf.placement import Problem, Result
from moirai_tf.placement.objective import LATENCY
from moirai_tf.verify import VerifyReport


def result_summary(
    problem: Problem,
    result: Result,
    prediction: Prediction,
    alone: Prediction | None,
    computed: Sequence[str],
) -> dict[str, Any]:
    """What was found, as the plan stores it: no clock times, so equal runs give equal plans.

    Args:
      problem: what was solved.
      result: the answer.
      prediction: of the answer's schedule.
      alone: of the best single device, if one can run everything.
      computed: devices whose costs were computed, not measured.
    """
    schedule = need(result.schedule)
    devices: dict[str, dict[str, int]] = {
        device.name: {"operators": 0, "compute_ns": 0, "memory_bytes": 0}
        for device in problem.devices
    }
    for operator, placed in zip(problem.operators, schedule.placed, strict=True):
        row = devices[problem.devices[placed.device].name]
        row["operators"] += 1
        row["compute_ns"] += placed.finish_ns - placed.start_ns
        row["memory_bytes"] += operator.memory_bytes
    return {
        "status": result.status,
        "objective": _objective(result),
        "latency_ns": schedule.makespan_ns,
        "queued_ns": prediction.queued_ns,
        "step_ns": prediction.step_ns,
        "predicted_ns": prediction.latency_ns(order_kept=True),
        "lower_bound_ns": result.lower_bound_ns,
        "gap": result.gap,
        "single_device": result.single_device,
        "single_device_ns": result.single_device_ns,
        "single_device_predicted_ns": (
            None if alone is None else alone.latency_ns(order_kept=False)
        ),
        "baselines_ns": dict(result.baselines),
        "computed": list(computed),
        "devices": devices,
    }


@dataclass(frozen=True)
class Summary:
    """The result of `optimize`."""

    source: Path
    signature: str
    output: Path
    operators: int
    """Operators of the signature before fusion."""
    fused_operators: int
    status: str
    """`optimal` or `feasible`, of the objective."""
    objective: str
    latency_ns: int
    """The schedule's makespan: operators and transfers, in the planned order."""
    predicted_ns: int
    """What a client will measure: the schedule as the runtime plays it, and `step_ns`."""
    step_ns: int
    """Part of `predicted_ns` that is Session, feeds, fetches and workers that take part."""
    lower_bound_ns: int
    """No placement can be faster: a proof, for the costs that were used."""
    gap: float
    """(latency - bound) / latency."""
    single_device: str | None
    """The best device that could run everything alone."""
    single_device_ns: int | None
    """What a client would measure with it."""
    devices: dict[str, dict[str, Any]]
    """Device -> fused operators, compute time and memory."""
    peak_bytes: dict[str, int]
    """Device -> the most memory in use at one time, by the schedule."""
    capacities: dict[str, int | None]
    """Device -> memory in bytes that could be used, None if unlimited."""
    computed: tuple[str, ...]
    """Devices whose costs were computed, not measured."""
    transfers: int
    transfer_bytes: int
    servable: bool
    """Whether TensorFlow Serving can run the output; what uses other servers it cannot."""
    messages: tuple[str, ...]
    report: VerifyReport | None

    @property
    def used(self) -> tuple[str, ...]:
        """Devices that run more than the client's feeds and fetches."""
        return tuple(name for name, row in self.devices.items() if row["compute_ns"] > 0)

    def __str__(self) -> str:
        return "\n".join([*_graph_lines(self), *_device_lines(self), *_latency_lines(self)])


def summarise(item: MoiraiItem) -> Summary:
    """The summary of an item that went through a whole pipeline."""
    plan, result = need(item.plan), need(item.result)
    return Summary(
        source=item.source,
        signature=plan.signature,
        output=need(item.output),
        operators=len(need(item.graph)),
        fused_operators=len(need(item.coarse)),
        status=result.status,
        objective=_objective(result),
        latency_ns=plan.summary["latency_ns"],
        predicted_ns=plan.summary["predicted_ns"],
        step_ns=plan.summary["step_ns"],
        lower_bound_ns=plan.summary["lower_bound_ns"],
        gap=plan.summary["gap"],
        single_device=result.single_device,
        single_device_ns=plan.summary["single_device_predicted_ns"],
        devices=plan.summary["devices"],
        peak_bytes=plan.summary.get("peak_bytes", {}),
        capacities={d.name: d.memory_bytes for d in need(item.problem).devices},
        computed=tuple(plan.summary.get("computed", ())),
        transfers=len(plan.transfers),
        transfer_bytes=sum(t.nbytes for t in plan.transfers),
        servable=plan.servable,
        messages=result.messages,
        report=item.report,
    )


def _objective(result: Result) -> str:
    claim = need(result.schedule).claim
    return LATENCY if claim is None else claim.objective.name


def milliseconds(time_ns: int) -> str:
    """Nanoseconds as text in milliseconds."""
    return f"{time_ns / 1e6:.3f} ms"


def megabytes(nbytes: int) -> str:
    """Bytes as text in megabytes (10^6 bytes)."""
    return f"{nbytes / 1e6:.1f} MB"


def _graph_lines(summary: Summary) -> list[str]:
    return [
        f"model       {summary.source}, signature {summary.signature!r}",
        f"operators   {summary.operators} -> {summary.fused_operators} after fusion",
    ]


def _one_device(summary: Summary, used: str) -> str:
    """Who does the work, and what is elsewhere all the same, as the table shows it."""
    best = "One device is best: " if used == summary.single_device else ""
    idle = {n: row["operators"] for n, row in summary.devices.items() if n != used}
    others = [f"{count} on {name}" for name, count in idle.items() if count]
    if not others:
        return f"{best}everything runs on {used}."
    return (
        f"{best}all work is on {used}; feeds, fetches and what takes no time: {', '.join(others)}."
    )


def _device_lines(summary: Summary) -> list[str]:
    width = max(len(name) for name in summary.devices)
    lines = []
    for name, row in summary.devices.items():
        capacity = summary.capacities[name]
        of = "" if capacity is None else f" of {megabytes(capacity)}"
        alive = summary.peak_bytes.get(name)
        peak = "" if alive is None else f", {megabytes(alive)} at a time"
        lines.append(
            f"{name:<{width}}  {row['operators']:>5} fused operators  "
            f"{milliseconds(row['compute_ns']):>12}  {megabytes(row['memory_bytes']):>10}{of}{peak}"
        )
    return lines


def _computed(summary: Summary, devices: Sequence[str]) -> str:
    """A word of warning about a latency on some devices."""
    return " (computed, not measured)" if set(devices) & set(summary.computed) else ""


def _latency_lines(summary: Summary) -> list[str]:
    status = f" ({summary.status})" if summary.objective == LATENCY else ""
    lines = [
        f"transfers   {summary.transfers} ({megabytes(summary.transfer_bytes)})",
        f"latency     {milliseconds(summary.predicted_ns)} predicted"
        f"{_computed(summary, summary.used)}, of which "
        f"{milliseconds(summary.step_ns)} per step whatever runs",
        f"schedule    {milliseconds(summary.latency_ns)} of operators and transfers{status}",
        f"bound       {milliseconds(summary.lower_bound_ns)} proved, gap {100 * summary.gap:.2f} %",
    ]
    if summary.single_device is None or summary.single_device_ns is None:
        lines.append("best single device: none can run the model alone")
    else:
        ratio = summary.single_device_ns / max(1, summary.predicted_ns)
        lines.append(
            f"best single device {summary.single_device}: "
            f"{milliseconds(summary.single_device_ns)}"
            f"{_computed(summary, [summary.single_device])}, {ratio:.2f} x the predicted latency"
        )
    lines.extend(f"note        {message}" for message in summary.messages)
    if len(summary.used) == 1:
        lines.append(_one_device(summary, summary.used[0]))
    if summary.report is not None:
        lines.append(f"verified    {summary.report}")
    lines.append(f"output      {summary.output}")
    if not summary.servable:
        lines.append(
            "run it      with moirai_tf.connect(output, cluster); TensorFlow Serving cannot: it "
            "has no session on other servers"
        )
    return lines

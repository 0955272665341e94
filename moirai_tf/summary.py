"""What a user wants to know of a placement: in the plan as data, on the terminal as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moirai_tf.cluster.units import megabytes, milliseconds
from moirai_tf.cost.predict import Prediction
from moirai_tf.pipeline import MoiraiItem, need
from moirai_tf.placement import Problem, Result
from moirai_tf.placement.objective import LATENCY
from moirai_tf.rewrite.plan import DeviceShare, PlanSummary
from moirai_tf.verify import VerifyReport


def result_summary(
    problem: Problem,
    result: Result,
    prediction: Prediction,
    alone: Prediction | None,
    computed: Sequence[str],
    peak_bytes: Sequence[int],
) -> PlanSummary:
    """What was found, as the plan stores it.

    Args:
      problem: what was solved.
      result: the answer.
      prediction: of the answer's schedule.
      alone: of the best single device, if one can run everything.
      computed: devices whose costs were computed, not measured.
      peak_bytes: for each device, the most memory in use at one time.
    """
    schedule = need(result.schedule)
    names = [device.name for device in problem.devices]
    shares = {name: DeviceShare() for name in names}
    for operator, placed in zip(problem.operators, schedule.placed, strict=True):
        share = shares[names[placed.device]]
        shares[names[placed.device]] = DeviceShare(
            share.operators + 1,
            share.compute_ns + placed.finish_ns - placed.start_ns,
            share.memory_bytes + operator.memory_bytes,
        )
    return PlanSummary(
        status=result.status,
        objective=LATENCY if schedule.claim is None else schedule.claim.objective.name,
        latency_ns=schedule.makespan_ns,
        queued_ns=prediction.queued_ns,
        step_ns=prediction.step_ns,
        predicted_ns=prediction.latency_ns(order_kept=True),
        lower_bound_ns=result.lower_bound_ns,
        gap=need(result.gap),
        single_device=result.single_device,
        single_device_ns=result.single_device_ns,
        single_device_predicted_ns=None if alone is None else alone.latency_ns(order_kept=False),
        baselines_ns=dict(result.baselines),
        computed=tuple(computed),
        devices=shares,
        peak_bytes=dict(zip(names, peak_bytes, strict=True)),
    )


@dataclass(frozen=True)
class Summary:
    """The result of `optimize`: what its passes made; None, or nothing, where one did not run."""

    source: Path
    signature: str | None
    operators: int | None
    """Operators of the signature before fusion."""
    fused_operators: int | None
    placed: PlanSummary | None
    """Devices, times, bound and best single device."""
    capacities: Mapping[str, int | None]
    """Device -> memory in bytes that could be used, None if unlimited."""
    transfers: int
    transfer_bytes: int
    servable: bool
    """Whether TensorFlow Serving can run the output; what uses other servers it cannot."""
    messages: tuple[str, ...]
    report: VerifyReport | None
    output: Path | None

    @property
    def used(self) -> tuple[str, ...]:
        """Devices that run more than the client's feeds and fetches."""
        return () if self.placed is None else self.placed.used

    def __str__(self) -> str:
        lines = [
            *_graph_lines(self),
            *(() if self.placed is None else _placed_lines(self, self.placed)),
            *(f"note        {message}" for message in self.messages),
        ]
        if self.placed is not None and len(self.placed.used) == 1:
            lines.append(_one_device(self.placed, self.placed.used[0]))
        if self.report is not None:
            lines.append(f"verified    {self.report}")
        if self.output is not None:
            lines.append(f"output      {self.output}")
            if not self.servable:
                lines.append(
                    "run it      with moirai_tf.connect(output, cluster); TensorFlow Serving "
                    "cannot: it has no session on other servers"
                )
        return "\n".join(lines)


def summarise(item: MoiraiItem) -> Summary:
    """The summary of an item that went through a pipeline, or part of one."""
    plan, result, problem = item.plan, item.result, item.problem
    moved = () if plan is None else plan.transfers
    return Summary(
        source=item.source,
        signature=None if item.graph is None else item.graph.signature,
        operators=None if item.graph is None else len(item.graph),
        fused_operators=None if item.coarse is None else len(item.coarse),
        placed=None if plan is None else plan.summary,
        capacities={} if problem is None else {d.name: d.memory_bytes for d in problem.devices},
        transfers=len(moved),
        transfer_bytes=sum(transfer.nbytes for transfer in moved),
        servable=plan is not None and plan.servable,
        messages=(*_weightless(item), *(() if result is None else result.messages)),
        report=item.report,
        output=item.output,
    )


def _weightless(item: MoiraiItem) -> tuple[str, ...]:
    if item.model is None or not item.model.weightless:
        return ()
    return ("the model has no weights: it can be planned, and there is nothing to run or verify",)


def _graph_lines(summary: Summary) -> list[str]:
    lines = [f"model       {summary.source}"]
    if summary.operators is not None:
        lines[0] += f", signature {summary.signature!r}"
        fused = summary.fused_operators
        after = "" if fused is None else f" -> {fused} after fusion"
        lines.append(f"operators   {summary.operators}{after}")
    return lines


def _one_device(placed: PlanSummary, used: str) -> str:
    """Who does the work, and what is elsewhere all the same, as the table shows it."""
    best = "One device is best: " if used == placed.single_device else ""
    idle = {name: share.operators for name, share in placed.devices.items() if name != used}
    others = [f"{count} on {name}" for name, count in idle.items() if count]
    if not others:
        return f"{best}everything runs on {used}."
    return (
        f"{best}all work is on {used}; feeds, fetches and what takes no time: {', '.join(others)}."
    )


def _device_lines(summary: Summary, placed: PlanSummary) -> list[str]:
    width = max(len(name) for name in placed.devices)
    lines = []
    for name, share in placed.devices.items():
        capacity = summary.capacities.get(name)
        of = "" if capacity is None else f" of {megabytes(capacity)}"
        alive = placed.peak_bytes.get(name)
        peak = "" if alive is None else f", {megabytes(alive)} at a time"
        lines.append(
            f"{name:<{width}}  {share.operators:>5} fused operators  "
            f"{milliseconds(share.compute_ns):>12}  {megabytes(share.memory_bytes):>10}{of}{peak}"
        )
    return lines


def _computed(placed: PlanSummary, devices: Sequence[str]) -> str:
    """A word of warning about a latency on some devices."""
    return " (computed, not measured)" if set(devices) & set(placed.computed) else ""


def _placed_lines(summary: Summary, placed: PlanSummary) -> list[str]:
    status = f" ({placed.status})" if placed.objective == LATENCY else ""
    lines = [
        *_device_lines(summary, placed),
        f"transfers   {summary.transfers} ({megabytes(summary.transfer_bytes)})",
        f"latency     {milliseconds(placed.predicted_ns)} predicted"
        f"{_computed(placed, placed.used)}, of which "
        f"{milliseconds(placed.step_ns)} per step whatever runs",
        f"schedule    {milliseconds(placed.latency_ns)} of operators and transfers{status}",
        f"bound       {milliseconds(placed.lower_bound_ns)} proved, gap {100 * placed.gap:.2f} %",
    ]
    alone_ns = placed.single_device_predicted_ns
    if placed.single_device is None or alone_ns is None:
        return [*lines, "best single device: none can run the model alone"]
    ratio = alone_ns / max(1, placed.predicted_ns)
    return [
        *lines,
        f"best single device {placed.single_device}: {milliseconds(alone_ns)}"
        f"{_computed(placed, [placed.single_device])}, {ratio:.2f} x the predicted latency",
    ]

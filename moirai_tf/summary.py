"""What a user wants to know of a placement: in the plan as data, on the terminal as text."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from moirai_tf.bench.trace import table
from moirai_tf.cluster.cluster import device_type, task_of
from moirai_tf.cluster.names import short_devices
from moirai_tf.cluster.units import megabytes, milliseconds
from moirai_tf.cost.predict import Prediction
from moirai_tf.errors import MoiraiError
from moirai_tf.pipeline import MoiraiItem, need
from moirai_tf.placement import Problem, Result
from moirai_tf.placement.objective import LATENCY
from moirai_tf.progress import StageTime
from moirai_tf.report import content_of, write_report
from moirai_tf.rewrite.plan import DeviceShare, PlanSummary
from moirai_tf.rewrite.verdict import verdict
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
    because: str
    """Why one device is best, if it is."""
    capacities: Mapping[str, int | None]
    """Device -> memory in bytes that could be used, None if unlimited."""
    transfers: int
    transfer_bytes: int
    servable: bool
    """Whether TensorFlow Serving can run the output; what uses other servers it cannot."""
    messages: tuple[str, ...]
    """How the solver came to schedule and bound."""
    report: VerifyReport | None
    output: Path | None
    shares: tuple[int, ...] = ()
    """Rows of each share of the batch; none if it is whole."""
    undivided: str = ""
    """Why the batch, or the rest of the model, is whole, if dividing it was considered."""
    times: tuple[StageTime, ...] = ()
    """Where the time went."""
    weightless: bool = False
    """Whether the model's variables have no values, so that there is nothing to run."""

    @property
    def used(self) -> tuple[str, ...]:
        """Devices that run more than the client's feeds and fetches."""
        return () if self.placed is None else self.placed.used

    @property
    def verdict(self) -> str:
        """The answer in one sentence."""
        if self.placed is not None:
            return verdict(self.placed, self.because)
        if self.because:
            return f"one device is best: {self.because}"
        return "nothing was placed: the pipeline ends before that"

    @property
    def facts(self) -> dict[str, object]:
        """What the text says, for programs."""
        return {
            "verdict": self.verdict,
            "used": self.used,
            **{field.name: getattr(self, field.name) for field in fields(self)},
        }

    def write_report(self, path: str | Path) -> None:
        """Writes the page that `moirai_report` makes of the output.

        Raises:
          MoiraiError: there is no output, nothing was placed in it, or plotly is not installed.
        """
        if self.output is None:
            raise MoiraiError(
                "there is no output to report on",
                why="a report is about a placed model",
                fix="let the pipeline end with Publish",
            )
        write_report(content_of(self.output), path)

    def _repr_html_(self) -> str:
        """How notebooks show it."""
        first, _, rest = self.text().partition("\n")
        return f"<p><strong>{html.escape(first)}</strong></p><pre>{html.escape(rest.strip())}</pre>"

    def __str__(self) -> str:
        return self.text()

    def text(self, *, verbose: bool = False) -> str:
        """The verdict, a table, and where to look.

        Args:
          verbose: also how the answer came about; `time_table` of `times` says where the time went.
        """
        lines = [self.verdict, ""]
        if self.placed is not None:
            lines += [*_device_table(self, self.placed), "", *_latency_lines(self, self.placed)]
        lines += _batch_lines(self, verbose=verbose)
        lines += _where_lines(self, verbose=verbose)
        if verbose:
            lines += [] if self.placed is None else _proof_lines(self.placed)
            lines += [f"note        {message}" for message in self.messages]
        return "\n".join(lines)


def summarise(item: MoiraiItem, times: tuple[StageTime, ...] = ()) -> Summary:
    """The summary of an item that went through a pipeline, or part of one."""
    plan, result, problem = item.plan, item.result, item.problem
    moved = () if plan is None else plan.transfers
    return Summary(
        source=item.source,
        signature=None if item.graph is None else item.graph.signature,
        operators=None if item.graph is None else len(item.graph),
        fused_operators=None if item.coarse is None else len(item.coarse),
        placed=None if plan is None else plan.summary,
        because=item.alone if result is None else result.because,
        capacities={} if problem is None else {d.name: d.memory_bytes for d in problem.devices},
        transfers=len(moved),
        transfer_bytes=sum(transfer.nbytes for transfer in moved),
        servable=plan is not None and plan.servable,
        messages=() if result is None else result.messages,
        report=item.report,
        output=item.output,
        shares=() if item.split is None else item.split.shares,
        undivided=item.undivided if item.split is None else item.split.whole,
        times=times,
        weightless=item.model is not None and item.model.weightless,
    )


def _device_table(summary: Summary, placed: PlanSummary) -> list[str]:
    short = short_devices(placed.devices)
    rows = [("device", "fused operators", "computes", "memory", "of")]
    for name, share in placed.devices.items():
        capacity = summary.capacities.get(name)
        rows.append((
            short[name],
            str(share.operators),
            milliseconds(share.compute_ns),
            megabytes(placed.peak_bytes.get(name, share.memory_bytes)),
            "" if capacity is None else megabytes(capacity),
        ))  # fmt: skip
    return table(rows)


def _computed(placed: PlanSummary, devices: Sequence[str]) -> str:
    """A word of warning about a latency on some devices."""
    return " (computed, not measured)" if set(devices) & set(placed.computed) else ""


def _latency_lines(summary: Summary, placed: PlanSummary) -> Iterator[str]:
    moved = f"; {_count(summary.transfers, 'transfer')}, {megabytes(summary.transfer_bytes)}"
    yield (
        f"predicted   {milliseconds(placed.predicted_ns)}{_computed(placed, placed.used)}"
        f"{moved if summary.transfers else ''}"
    )
    if sum(device_type(name) == "CPU" and not task_of(name) for name in placed.used) > 1:
        yield "            on separate devices; these CPUs are logical and share this one's cores"
    single, alone_ns = placed.single_device, placed.single_device_predicted_ns
    if single is None or alone_ns is None:
        yield "one device  none can run the model alone"
    elif placed.used != (single,):
        name = short_devices(placed.devices)[single]
        yield f"one device  {milliseconds(alone_ns)}{_computed(placed, [single])} on {name}"


def _batch_lines(summary: Summary, *, verbose: bool) -> Iterator[str]:
    if summary.shares:
        shares = " + ".join(map(str, summary.shares))
        yield f"batch       divided into {shares} rows; what is proved holds for these shares"
        if summary.undivided:
            yield f"            whole again from here on: {summary.undivided}"
    elif summary.undivided and verbose:
        yield f"batch       not divided: {summary.undivided}"


def _where_lines(summary: Summary, *, verbose: bool) -> Iterator[str]:
    report = summary.report
    if report is not None:
        yield f"verified    {report if verbose else report.short}"
    fused, counted = summary.fused_operators, ""
    if summary.operators is not None:
        after = "" if fused is None else f", {fused} after fusion"
        counted = f", signature {summary.signature!r}: {summary.operators} operators{after}"
    yield f"model       {summary.source}{counted}"
    if summary.weightless:
        yield "run it      there is nothing to run or verify: the model has no weights"
    if summary.output is None:
        return
    yield f"output      {summary.output}"
    if not summary.servable and not summary.weightless:
        yield (
            "run it      with moirai_tf.connect(output, cluster); TensorFlow Serving "
            "cannot: it has no session on other servers"
        )
    if summary.placed is not None:
        yield f"look at it  moirai_report --placed_dir={summary.output} --output=report.html"


def _proof_lines(placed: PlanSummary) -> list[str]:
    status = f" ({placed.status})" if placed.objective == LATENCY else ""
    return [
        f"schedule    {milliseconds(placed.latency_ns)} of operators and transfers{status}, and "
        f"{milliseconds(placed.step_ns)} per step whatever runs",
        f"bound       {milliseconds(placed.lower_bound_ns)} proved, gap {100 * placed.gap:.2f} %",
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

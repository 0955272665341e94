"""Prediction and measurement of one placed model side by side, also for Perfetto.

In the file (ui.perfetto.dev, chrome://tracing) each timeline is a process, each device and each
link a track in it. Times are microseconds with the nanoseconds as fraction. Arrows lead from the
operator that makes a tensor over its way on the link to the operators that read it.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from moirai_tf.bench.measured import MeasuredStep, measured_step
from moirai_tf.bench.timeline import Span, TensorMove, Timeline, in_order
from moirai_tf.cluster.units import milliseconds
from moirai_tf.cost.step_stats import KernelNames
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.records import Format, Natural, write_text

_SHOWN = 10
"""How many deviations are shown."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """A fused operator; what it was predicted to take and what its kernels took."""

    name: str
    device: str
    predicted_ns: int
    measured_ns: int

    @property
    def difference_ns(self) -> int:
        """Positive where it took longer than predicted."""
        return self.measured_ns - self.predicted_ns


@dataclass(frozen=True)
class Trace:
    """One inference as it was predicted, and as it ran."""

    model: str
    devices: tuple[str, ...]
    predicted: Timeline
    """The plan's schedule."""
    measured: Timeline
    """A traced step: tracing takes time too."""
    clock_shifts_ns: Mapping[str, int]
    """Task -> by how much its clock was moved forward."""
    predicted_ns: int | None = None
    """Latency that the plan promises, with what a step costs beside its operators."""
    measured_ns: int | None = None
    """Median latency of untraced steps."""

    @property
    def deviations(self) -> tuple[Deviation, ...]:
        """Every fused operator, the largest deviation first."""
        measured_ns: dict[str, int] = {}
        for span in self.measured.spans:
            measured_ns[span.name] = measured_ns.get(span.name, 0) + span.duration_ns
        found = (
            Deviation(span.name, span.device, span.duration_ns, measured_ns.get(span.name, 0))
            for span in self.predicted.spans
        )
        return tuple(sorted(found, key=lambda d: (-abs(d.difference_ns), d.name)))

    def to_json(self) -> dict[str, Any]:
        """The content of a trace file."""
        timelines = {"predicted": self.predicted, "measured": self.measured}
        return {
            "displayTimeUnit": "ns",
            "otherData": {
                "model": self.model,
                "predicted_ns": self.predicted_ns,
                "measured_ns": self.measured_ns,
                "predicted_makespan_ns": self.predicted.makespan_ns,
                "measured_makespan_ns": self.measured.makespan_ns,
                "clock_shifts_ns": dict(self.clock_shifts_ns),
                "largest_deviations": [
                    {"operator": d.name, "device": d.device,
                     "predicted_ns": d.predicted_ns, "measured_ns": d.measured_ns}
                    for d in self.deviations[:_SHOWN]
                ],
            },
            "traceEvents": chrome_events(timelines, self.devices),
        }  # fmt: skip

    def __str__(self) -> str:
        head = (f"largest deviations of {self.model}", "device", "predicted", "measured")
        rows = [
            (d.name, d.device, milliseconds(d.predicted_ns), milliseconds(d.measured_ns))
            for d in self.deviations[:_SHOWN]
        ]
        return "\n".join(table([head, *rows]))


def trace_of(
    model: str,
    devices: Mapping[str, str],
    coarse: CoarseGraph,
    predicted: Timeline,
    steps: Iterable[Any],
) -> Trace:
    """Puts the step of median length beside the prediction.

    Args:
      model: name of the placed model.
      devices: TensorFlow's full device name -> the cluster's name, in the order of the tracks.
      coarse: the fused operators.
      predicted: the timeline of the plan's schedule.
      steps: `RunMetadata` of traced steps.
    """
    names = KernelNames(coarse.fine)
    fused = {member: f.name for f in coarse.operators for member in f.members}

    def owner(kernel: str) -> str | None:
        operator = names.owner(kernel)
        return None if operator is None else fused[operator]

    step = _median([measured_step(metadata, devices, owner) for metadata in steps])
    return Trace(model, tuple(devices.values()), predicted, step.timeline, step.clock_shifts_ns)


def write_trace(trace: Trace, path: str | Path) -> None:
    """Writes a trace file, whole or not at all.

    Raises:
      MoiraiError: it cannot be written.
    """
    write_text(json.dumps(trace.to_json()) + "\n", Path(path))


@dataclass(frozen=True)
class MeasuredRun:
    """What a trace file says was measured."""

    timeline: Timeline
    """The traced step; its moves know no producers and readers."""
    latency_ns: int | None
    """Median latency of untraced steps."""


def read_measured(path: str | Path, devices: Sequence[str]) -> MeasuredRun:
    """The measured half of a trace file.

    Args:
      path: what `write_trace` wrote.
      devices: the devices of the plan.

    Raises:
      MoiraiError: it cannot be read, is no trace, or is one of other devices.
    """
    root = _TRACE.record(_TRACE.read_json(path), _TraceRecord)
    try:
        timeline = timeline_of(root["traceEvents"], "measured", devices)
    except (KeyError, TypeError, ValueError) as error:
        what = f"they are none of this model's plan ({error!r})"
        raise _TRACE.fault("traceEvents", what) from error
    return MeasuredRun(timeline, root["otherData"].get("measured_ns"))


class _TimesRecord(TypedDict):
    measured_ns: NotRequired[Natural | None]


class _TraceRecord(TypedDict):
    traceEvents: tuple[dict[str, Any], ...]
    otherData: _TimesRecord


_TRACE = Format(
    why="the report shows what was measured below what was planned",
    fix="give a file that moirai_bench --trace wrote of this placed model",
    closed=False,
)


def _median(steps: Sequence[MeasuredStep]) -> MeasuredStep:
    ordered = sorted(steps, key=lambda step: step.timeline.makespan_ns)
    return ordered[(len(ordered) - 1) // 2]


Event = dict[str, Any]


@dataclass
class _Tracks:
    """Numbers of the tracks of one process; what overlaps on a device or link gets another one."""

    names: dict[int, str]

    def add(self, title: str, spans: Sequence[Span]) -> dict[int, int]:
        """Puts spans on as many tracks as they need; identity of a span -> its track."""
        free_ns: list[int] = []
        chosen: dict[int, int] = {}
        base = len(self.names)
        for span in spans:
            fitting = (i for i, ns in enumerate(free_ns) if ns <= span.start_ns)
            lane = 0 if not span.duration_ns else next(fitting, len(free_ns))
            if lane >= len(free_ns):
                free_ns.append(0)
            free_ns[lane] = max(free_ns[lane], span.finish_ns)
            chosen[id(span)] = base + lane + 1
        for lane in range(max(1, len(free_ns))):
            self.names[base + lane + 1] = f"{title} ({lane + 1})" if lane else title
        return chosen


def chrome_events(timelines: Mapping[str, Timeline], devices: Sequence[str]) -> list[Event]:
    """The events of timelines, in the order in which they are shown.

    Args:
      timelines: title -> timeline.
      devices: every device, in the order of their tracks.
    """
    events: list[Event] = []
    arrows = 0
    for pid, (title, timeline) in enumerate(timelines.items(), start=1):
        process = list(_process(pid, title, timeline, devices, arrows))
        arrows += sum(event["ph"] == "s" for event in process)
        events += process
    return events


def timeline_of(events: Sequence[Event], title: str, devices: Sequence[str]) -> Timeline:
    """One of the timelines that events were made of; its moves know no producers and readers.

    Raises:
      KeyError: there is no such timeline, or it has a track of another device.
    """
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    processes = {e["args"]["name"]: e["pid"] for e in events if e["name"] == "process_name"}
    device_of = {short: device for device, short in _titles(devices).items()}
    spans, moves = [], []
    for event in events:
        if event["ph"] != "X" or event["pid"] != processes[title]:
            continue
        ends = _LANE.sub("", names[event["pid"], event["tid"]]).split(" -> ")
        start_ns = round(1000 * event["ts"])
        span = Span(
            event["name"], device_of[ends[-1]], start_ns,
            start_ns + round(1000 * event["dur"]), event["args"],
        )  # fmt: skip
        if event["cat"] == "operator":
            spans.append(span)
        else:
            moves.append(TensorMove(device_of[ends[0]], device_of[ends[1]], span, None, ()))
    return Timeline(in_order(spans), tuple(moves))


_LANE = re.compile(r" \(\d+\)$")
"""What `_Tracks` puts behind the title of a second track."""


def _process(
    pid: int, title: str, timeline: Timeline, devices: Sequence[str], first_arrow: int
) -> Iterator[Event]:
    tracks = _Tracks({})
    on_track: dict[int, int] = {}
    titles = _titles(devices)
    for device in devices:
        on_track |= tracks.add(titles[device], [s for s in timeline.spans if s.device == device])
    for source in devices:
        for target in devices:
            moves = [m for m in timeline.moves if (m.source, m.target) == (source, target)]
            spans = in_order([move.span for move in moves if move.span is not None])
            if spans:
                on_track |= tracks.add(f"{titles[source]} -> {titles[target]}", spans)
    yield from _metadata(pid, title, tracks.names)
    transfers = [move.span for move in timeline.moves if move.span is not None]
    for category, spans in (("operator", timeline.spans), ("transfer", in_order(transfers))):
        yield from (_slice(pid, on_track[id(span)], category, span) for span in spans)
    ends = (end for move in timeline.moves for end in _arrows(move))
    for number, (one, other) in enumerate(ends, start=first_arrow + 1):
        flow = {"name": "tensor", "cat": "tensor", "id": number, "pid": pid}
        # An arrow hangs on the slice that is open at its time, so it leaves just before the end.
        leaves_ns = one.finish_ns - 1
        yield {**flow, "ph": "s", "ts": _us(leaves_ns), "tid": on_track[id(one)]}
        yield {**flow, "ph": "f", "bp": "e", "ts": _us(other.start_ns), "tid": on_track[id(other)]}


def _titles(devices: Sequence[str]) -> dict[str, str]:
    """Devices without the part of their names that all share."""
    shared = posixpath.commonpath(devices) if len(devices) > 1 else ""
    return {device: device.removeprefix(shared).removeprefix("/") for device in devices}


def _metadata(pid: int, title: str, names: Mapping[int, str]) -> Iterator[Event]:
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": title}}
    yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}
    for tid, name in names.items():
        thread = {"ph": "M", "pid": pid, "tid": tid}
        yield {**thread, "name": "thread_name", "args": {"name": name}}
        yield {**thread, "name": "thread_sort_index", "args": {"sort_index": tid}}


def _slice(pid: int, tid: int, category: str, span: Span) -> Event:
    return {
        "ph": "X", "pid": pid, "tid": tid, "cat": category, "name": span.name,
        "ts": _us(span.start_ns), "dur": _us(span.duration_ns), "args": dict(span.detail),
    }  # fmt: skip


def _arrows(move: TensorMove) -> Iterable[tuple[Span, Span]]:
    """Pairs of slices that an arrow joins; what has no length cannot hold one."""
    producer = move.producer if move.producer is not None and move.producer.duration_ns else None
    readers = [span for span in move.consumers if span.duration_ns]
    if move.span is None or not move.span.duration_ns:
        return [(producer, reader) for reader in readers] if producer is not None else []
    first = [(producer, move.span)] if producer is not None else []
    return [*first, *((move.span, reader) for reader in readers)]


def _us(ns: int) -> float:
    return ns / 1000


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]

"""Prediction and measurement of one placed model side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moirai_tf.bench.chrome import chrome_events, timeline_of
from moirai_tf.bench.measured import MeasuredStep, measured_step
from moirai_tf.bench.table import table
from moirai_tf.bench.timeline import Timeline
from moirai_tf.cost.names import KernelNames
from moirai_tf.fields import Format
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.placement.io import write_text

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
            (d.name, d.device, f"{d.predicted_ns / 1e6:.3f} ms", f"{d.measured_ns / 1e6:.3f} ms")
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
    root = _TRACE.read_json(Path(path))
    events = [event.value for event in root["traceEvents"].elements()]
    try:
        timeline = timeline_of(events, "measured", devices)
    except (KeyError, TypeError, ValueError) as error:
        raise root["traceEvents"].fault(
            f"they are none of this model's plan ({error!r})"
        ) from error
    latency = root["otherData"].get("measured_ns")
    return MeasuredRun(timeline, None if latency is None else latency.integer(least=0))


_TRACE = Format(
    why="the report shows what was measured below what was planned",
    fix="give a file that moirai_bench --trace wrote of this placed model",
)


def _median(steps: Sequence[MeasuredStep]) -> MeasuredStep:
    ordered = sorted(steps, key=lambda step: step.timeline.makespan_ns)
    return ordered[(len(ordered) - 1) // 2]

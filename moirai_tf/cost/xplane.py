"""Reads the trace of TensorFlow's profiler: how long each operator's kernels ran in each step.

A kernel is an event named `<node>:<type>`. An asynchronous one (a function that was compiled or not
inlined) is a pair of events, `ExecutorState::ProcessAsync::Start` and `...::Done`, that carry the
node's name; what it runs between them is named without the path of the call. An event counts
without the events nested in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorflow.tsl.profiler.protobuf import xplane_pb2

STEP = "moirai_step"
"""Name of the marker around each step that counts."""

UNKNOWN = -1
"""Owner of a kernel whose name leads to no operator."""

_ASYNC_START = "ExecutorState::ProcessAsync::Start"
_ASYNC_DONE = "ExecutorState::ProcessAsync::Done"
_NAME_STAT = "name"


@dataclass(slots=True)
class _Span:
    start_ps: int
    end_ps: int
    owner: int
    self_ps: int
    event: str
    """`_ASYNC_START`, `_ASYNC_DONE`, or empty for a kernel."""


@dataclass(frozen=True, slots=True)
class Step:
    """One marked step of a trace."""

    duration_ns: int
    kernel_ns: dict[int, int]
    """Operator (or `UNKNOWN`) -> time in its kernels."""


def read_trace(directory: str | Path) -> Any:
    """The `XSpace` that the profiler left in its log directory."""
    (file,) = Path(directory).rglob("*.xplane.pb")
    space = xplane_pb2.XSpace()
    space.ParseFromString(file.read_bytes())
    return space


def steps(space: Any, owner: Callable[[str], int | None]) -> list[Step]:
    """The marked steps of a trace, in order.

    Args:
      space: an `XSpace` of a process that ran one step at a time.
      owner: operator of a kernel's name, or None.
    """
    marks: list[tuple[int, int]] = []
    spans: list[_Span] = []
    for plane in space.planes:
        for line in plane.lines:
            found = list(_spans(plane, line, owner, marks))
            _subtract_nested(found)
            spans.extend(found)
    spans.sort(key=lambda span: span.start_ps)
    marks.sort()
    _adopt_unknown(spans)
    return _by_step(marks, spans)


def _spans(
    plane: Any,
    line: Any,
    owner: Callable[[str], int | None],
    marks: list[tuple[int, int]],
) -> Iterator[_Span]:
    """The kernels of one thread; adds the step markers to `marks`."""
    owners: dict[int, int] = {}
    for event in line.events:
        kind = event.metadata_id
        name = plane.event_metadata[kind].name
        start = line.timestamp_ns * 1000 + event.offset_ps
        end = start + event.duration_ps
        if name == STEP:
            marks.append((start, end))
        elif name in (_ASYNC_START, _ASYNC_DONE):
            known = owner(_stat(plane, event, _NAME_STAT))
            yield _Span(start, end, UNKNOWN if known is None else known, end - start, name)
        elif _is_kernel(name):
            if kind not in owners:
                known = owner(name.rpartition(":")[0])
                owners[kind] = UNKNOWN if known is None else known
            yield _Span(start, end, owners[kind], end - start, "")


def _is_kernel(name: str) -> bool:
    node, _, kind = name.rpartition(":")
    return bool(node) and kind.isidentifier() and "::" not in name


def _stat(plane: Any, event: Any, wanted: str) -> str:
    for stat in event.stats:
        if plane.stat_metadata[stat.metadata_id].name == wanted:
            return str(stat.str_value or plane.stat_metadata[stat.ref_value].name)
    return ""


def _subtract_nested(spans: list[_Span]) -> None:
    """Takes from each event of a thread what ran inside it."""
    open_spans: list[_Span] = []
    for span in sorted(spans, key=lambda s: (s.start_ps, -s.end_ps)):
        while open_spans and open_spans[-1].end_ps <= span.start_ps:
            open_spans.pop()
        if open_spans:
            open_spans[-1].self_ps -= min(span.end_ps, open_spans[-1].end_ps) - span.start_ps
        open_spans.append(span)


def _adopt_unknown(spans: Sequence[_Span]) -> None:
    """Gives kernels of unknown name to the asynchronous operator that was started last."""
    running: list[int] = []
    for span in spans:
        if span.event == _ASYNC_START:
            running.append(span.owner)
        elif span.event == _ASYNC_DONE and span.owner in running:
            running.remove(span.owner)
        elif span.owner == UNKNOWN and running:
            span.owner = running[-1]


def _by_step(marks: Sequence[tuple[int, int]], spans: Sequence[_Span]) -> list[Step]:
    result = []
    at = 0
    for start, end in marks:
        kernel_ps: dict[int, int] = {}
        while at < len(spans) and spans[at].start_ps < end:
            span = spans[at]
            if span.start_ps >= start:
                kernel_ps[span.owner] = kernel_ps.get(span.owner, 0) + span.self_ps
            at += 1
        result.append(Step((end - start) // 1000, {o: ps // 1000 for o, ps in kernel_ps.items()}))
    return result

"""Timelines as JSON for Perfetto (ui.perfetto.dev) and chrome://tracing.

Each timeline is a process, each device and each link a track in it. Times are microseconds with the
nanoseconds as fraction. Arrows lead from the operator that makes a tensor over its way on the link
to the operators that read it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moirai_tf.bench.timeline import Move, Span, Timeline, in_order

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
            moves.append(Move(device_of[ends[0]], device_of[ends[1]], span, None, ()))
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


def _arrows(move: Move) -> Iterable[tuple[Span, Span]]:
    """Pairs of slices that an arrow joins; what has no length cannot hold one."""
    producer = move.producer if move.producer is not None and move.producer.duration_ns else None
    readers = [span for span in move.consumers if span.duration_ns]
    if move.span is None or not move.span.duration_ns:
        return [(producer, reader) for reader in readers] if producer is not None else []
    first = [(producer, move.span)] if producer is not None else []
    return [*first, *((move.span, reader) for reader in readers)]


def _us(ns: int) -> float:
    return ns / 1000

"""List scheduling with insertion, written once more for reading: what compiled code must equal."""

from __future__ import annotations

from collections.abc import Sequence

from moirai_tf.placement import Placed, Problem, Schedule, Transfer

_Spans = list[tuple[int, int]]


def list_schedule(problem: Problem, assignment: Sequence[int], order: Sequence[int]) -> Schedule:
    """Operators in an order, each transfer and operator in the first gap that fits."""
    busy: dict[tuple[object, ...], _Spans] = {}
    placed: dict[int, Placed] = {}
    transfers: dict[tuple[int, int, int | None], Transfer] = {}
    for operator in order:
        device = assignment[operator]
        reader = operator if problem.transfers == "per_edge" else None
        ready = 0
        tensors = [i for i, t in enumerate(problem.tensors) if operator in t.consumers]
        tensors.sort(key=lambda i: (placed[problem.tensors[i].producer].finish_ns, i))
        for index in tensors:
            producer = placed[problem.tensors[index].producer]
            if producer.device == device:
                ready = max(ready, producer.finish_ns)
                continue
            key = (index, device, reader)
            if key not in transfers:
                time = problem.tensors[index].time_ns[producer.device][device]
                channels = _channels(problem, producer.device, device)
                start = _first_gap([busy.setdefault(c, []) for c in channels], producer, time)
                transfers[key] = Transfer(
                    index, producer.device, device, start, start + time, reader
                )
                for channel in channels:
                    busy[channel].append((start, start + time))
            ready = max(ready, transfers[key].finish_ns)
        time = problem.operators[operator].compute_ns[device] or 0
        spans = busy.setdefault(("device", device), [])
        start = _first_gap([spans], Placed(device, 0, ready), time)
        spans.append((start, start + time))
        placed[operator] = Placed(device, start, start + time)
    rows = tuple(placed[operator] for operator in range(len(problem.operators)))
    moved = sorted(
        transfers.values(), key=lambda t: (t.start_ns, t.tensor, t.target, t.consumer or 0)
    )
    return Schedule(rows, tuple(moved), max(row.finish_ns for row in rows))


def _channels(problem: Problem, source: int, target: int) -> list[tuple[object, ...]]:
    return {
        "port": [("send", source), ("receive", target)],
        "link": [("link", source, target)],
        "none": [],
    }[problem.congestion]


def _first_gap(resources: list[_Spans], after: Placed, time: int) -> int:
    """The least start from the end of `after` on that overlaps no span of positive length."""
    spans = [span for spans in resources for span in spans if span[0] < span[1]]
    starts = [after.finish_ns, *(end for _, end in spans if end > after.finish_ns)]
    return min(
        start
        for start in starts
        if time == 0 or all(end <= start or begin >= start + time for begin, end in spans)
    )

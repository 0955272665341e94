"""The optimum of a small problem by trying everything; shares no code with the solvers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

from moirai_tf.placement import Problem


def optimum(problem: Problem) -> int | None:
    """Least makespan over all assignments and orders; None if no assignment is feasible."""
    best: int | None = None
    for assignment in assignments(problem):
        found = _Orders(problem, assignment, best).search()
        best = found if best is None or found < best else best
    return best


def makespan(problem: Problem, assignment: Sequence[int]) -> int:
    """Least makespan over all orders of one assignment."""
    return _Orders(problem, assignment, None).search()


def bottleneck(problem: Problem, assignment: Sequence[int]) -> int:
    """Largest total time of a device or channel, which no order changes."""
    loads: Counter[str] = Counter()
    for operator, device in zip(problem.operators, assignment, strict=True):
        loads[f"device {device}"] += operator.compute_ns[device] or 0
    for tensor in problem.tensors:
        source = assignment[tensor.producer]
        targets = [assignment[consumer] for consumer in tensor.consumers]
        for target in targets if problem.transfers == "per_edge" else sorted(set(targets)):
            for channel in _channels(problem, source, target) if source != target else ():
                loads[channel] += tensor.time_ns[source][target]
    return max(loads.values(), default=0)


def _channels(problem: Problem, source: int, target: int) -> list[str]:
    return {
        "port": [f"send {source}", f"receive {target}"],
        "link": [f"link {source} {target}"],
        "none": [],
    }[problem.congestion]


def assignments(problem: Problem) -> list[tuple[int, ...]]:
    """Every device choice that respects bans, groups and memory."""
    options = [
        [k for k, time in enumerate(operator.compute_ns) if time is not None]
        for operator in problem.operators
    ]
    return [chosen for chosen in product(*options) if _allowed(problem, chosen)]


def _allowed(problem: Problem, chosen: Sequence[int]) -> bool:
    if any(chosen[i] != chosen[group[0]] for group in problem.colocation for i in group):
        return False
    for index, device in enumerate(problem.devices):
        used = sum(
            operator.memory_bytes
            for operator, k in zip(problem.operators, chosen, strict=True)
            if k == index
        )
        if device.memory_bytes is not None and used > device.memory_bytes:
            return False
    return True


class _Orders:
    """Appends operators and transfers by non-decreasing start: all semi-active schedules."""

    def __init__(self, problem: Problem, assignment: Sequence[int], best: int | None) -> None:
        self.best = sum(max(filter(None, o.compute_ns), default=0) for o in problem.operators)
        self.best += sum(max(map(max, t.time_ns)) * len(t.consumers) for t in problem.tensors)
        self.best = self.best if best is None else best
        self.durations = [
            operator.compute_ns[k] or 0
            for operator, k in zip(problem.operators, assignment, strict=True)
        ]
        self.resources: list[list[str]] = [[f"device {k}"] for k in assignment]
        self.before: list[set[int]] = [set() for _ in assignment]
        self._transfers(problem, assignment)
        self.tails = self._tails()

    def search(self) -> int:
        """The least makespan, or the best known before if none is less."""
        self._extend({}, {}, 0, -1)
        return self.best

    def _transfers(self, problem: Problem, assignment: Sequence[int]) -> None:
        for tensor in problem.tensors:
            source = assignment[tensor.producer]
            carriers: dict[int, int] = {}
            for consumer in tensor.consumers:
                target = assignment[consumer]
                if target == source:
                    self.before[consumer].add(tensor.producer)
                    continue
                key = target if problem.transfers == "per_tensor" else ~consumer
                if key not in carriers:
                    carriers[key] = len(self.durations)
                    self.durations.append(tensor.time_ns[source][target])
                    self.before.append({tensor.producer})
                    self.resources.append(_channels(problem, source, target))
                self.before[consumer].add(carriers[key])

    def _tails(self) -> list[int]:
        tails = [0] * len(self.durations)
        for _ in self.durations:
            for event, earlier in enumerate(self.before):
                for other in earlier:
                    tails[other] = max(tails[other], self.durations[event] + tails[event])
        return tails

    def _extend(self, finish: dict[int, int], free: dict[str, int], latest: int, last: int) -> None:
        """Adds each event that can come next, the last one having started at `latest`."""
        if len(finish) == len(self.durations):
            self.best = min(self.best, max(finish.values(), default=0))
            return
        for event, earlier in enumerate(self.before):
            if event in finish or not earlier <= finish.keys():
                continue
            uses = self.resources[event] if self.durations[event] else []
            ready = [finish[other] for other in earlier] + [free.get(name, 0) for name in uses]
            start = max(ready, default=0)
            end = start + self.durations[event]
            if start < latest or end + self.tails[event] >= self.best:
                continue
            if start == latest and event < last and last not in earlier:
                continue  # the two could be exchanged: seen in the other order
            self._extend(finish | {event: end}, free | dict.fromkeys(uses, end), start, event)

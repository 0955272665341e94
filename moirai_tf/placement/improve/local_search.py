"""Local search over orders and devices: simulated annealing, window after window."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moirai_tf.placement.blackboard import Search
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.construct.heuristics import construct_all, relax_with_transfers
from moirai_tf.placement.evaluate.events import order_by_start
from moirai_tf.placement.evaluate.insertion import play, schedule_in
from moirai_tf.placement.improve.anneal import (
    Annealing,
    Goal,
    anneal,
    annealing_of,
    close_window,
    open_window,
)
from moirai_tf.placement.improve.list_plan import plan_of
from moirai_tf.placement.schedule import Schedule

_WINDOW = 30
"""Operators in most windows."""
_WIDE_WINDOW = 100
_WIDE_EVERY = 8
"""One sweep of so many has wide windows. Where operators must share a device it has only one, the
whole schedule: such units are seldom inside a window."""
_STEPS_PER_OPERATOR = 40
_CHUNK_PLACED = 500_000
"""Operators placed between two looks at the clock, and at Ctrl-C. Counted, not timed, so that
equal seeds give equal answers."""
_PLACED_WITHOUT_TIMES = 5
"""What a move costs where only loads count, in operators placed."""
_HOT, _COLD = 0.15, 0.02
"""First and last temperature of a run, in shares of a mean operator's time."""
_LOADS_HOT, _LOADS_COLD = 0.03, 0.0005
"""The same where only loads count, with a start that is good already."""
_ERROR = 3.0
"""By how many temperatures the value of a window may be wrong."""
_SWEEPS = 8
"""Of the first run after a single cold sweep; each has twice as many as the one before."""
_LEAST_GAIN = 0.002
_PATIENCE = 6
"""Runs in a row that improve by a smaller share; then it ends."""
_BRIEF_SHARE, _BRIEF_S = 0.1, 2.0
"""Of the time that is left, and seconds: the lesser of the two."""
_DEARER, _CHEAPER = 0.05, 0.95
"""After each sweep the price of a device's memory rises by this share of a mean operator's time
for its mean bytes where memory is short, and falls to this share of itself elsewhere."""


@dataclass(frozen=True)
class LocalSearch:
    """Heuristics for a start, then windows of the schedule, annealed one after another.

    The temperature falls over all sweeps of a run, so windows settle together. Memory has a price
    on each device: windows give up what helps them little, and others take it.
    """

    name: str = "local-search"

    def run(self, search: Search) -> None:
        """Constructs and improves."""
        construct_all(search)
        self.improve(search)

    def improve_briefly(self, search: Search) -> None:
        """Improves the best schedule for a little of the time."""
        share = _BRIEF_S / max(_BRIEF_S, search.deadline.remaining_s())
        with search.deadline.limited(min(_BRIEF_SHARE, share)):
            self.improve(search)

    def improve(self, search: Search) -> None:
        """Improves the best schedule so far until runs gain little or the gap is closed."""
        if len(search.problem.devices) == 1 or not search.problem.operators:
            return
        walk = _Walk(search)
        sweep_s = self._cool(search, walk, 1)
        relax_with_transfers(search)
        sweeps, failures = _SWEEPS, 0
        while failures < _PATIENCE and not search.closed:
            sweeps = _affordable(sweeps, search.deadline.remaining_s() / sweep_s)
            before_ns = search.value_ns(search.best)
            sweep_s = self._cool(search, walk, sweeps)
            gain = 1 - search.value_ns(search.best) / before_ns
            failures = 0 if gain >= _LEAST_GAIN else failures + 1
            sweeps *= 2

    def _cool(self, search: Search, walk: _Walk, sweeps: int) -> float:
        """A run from hot to cold, from the best schedule on; seconds of a sweep."""
        began_s = search.deadline.elapsed_s()
        walk.reset()
        for number in range(sweeps):
            wide = number % _WIDE_EVERY == _WIDE_EVERY - 1
            known_ns = walk.best_ns
            try:
                walk.sweep((number + 1) / sweeps, search.deadline, wide=wide)
            finally:
                if walk.best_ns < known_ns:
                    search.offer(walk.schedule(), self.name)
            if search.closed:
                break
        return max(1e-6, search.deadline.elapsed_s() - began_s) / sweeps


def _affordable(sweeps: int, possible: float) -> int:
    """A run must get cold before time is over; the last one takes all that is left.

    Only a run that the time limit would cut anyway, or the one after it, depends on the clock.
    """
    return sweeps if possible >= 3 * sweeps else max(1, int(0.95 * possible))


class _Walk:
    """A plan that changes, and the best it has been."""

    def __init__(self, search: Search) -> None:
        self.problem = search.problem
        self._generator = random.Random(search.seed)
        self._weight = float(search.objective.latency_weight)
        self._floor_ns = float(search.bottleneck_bound.value_ns)
        placed = search.best.placed
        self._mean_ns = sum(p.finish_ns - p.start_ns for p in placed) / len(placed)
        bytes_of = self.problem.unit_memory_bytes
        self._mean_bytes = max(1.0, sum(bytes_of) / len(bytes_of))
        order = np.array(order_by_start(self.problem, search.best), dtype=np.int64)
        self._best = order, np.array(search.best.assignment, dtype=np.int64)
        self._annealing = self._begin()
        self.best_ns = close_window(self._annealing, 0, 0, np.inf)

    def reset(self) -> None:
        """Goes back to the best plan."""
        price = self._annealing.plan.price
        self._annealing = self._begin()
        self._annealing.plan.price[:] = price

    def sweep(self, done: float, deadline: Deadline, *, wide: bool) -> None:
        """All windows at one temperature; then operators are sorted by start, and prices follow.

        Args:
          done: share of the run that is over in the end.
          deadline: asked between chunks of moves.
          wide: whether windows are wide.
        """
        hot, cold = (_HOT, _COLD) if self._weight > 0 else (_LOADS_HOT, _LOADS_COLD)
        temperature_ns = hot * (cold / hot) ** done * self._mean_ns
        for first, last in self._windows(wide=wide):
            self._anneal(first, last, temperature_ns, deadline)
        if self._weight > 0:
            self._sort()
            self._price()

    def schedule(self) -> Schedule:
        """The best plan, played."""
        play(self.problem.arrays, self._annealing.state, *self._best)
        return schedule_in(self.problem, self._annealing.state)

    def _begin(self) -> Annealing:
        order, assignment = self._best
        loads = self._weight < 1
        plan = plan_of(self.problem, order.tolist(), tuple(assignment.tolist()), loads=loads)
        return annealing_of(self.problem, plan, Goal(self._weight, self._floor_ns))

    def _windows(self, *, wide: bool) -> Iterator[tuple[int, int]]:
        """Ranges of positions, each half over the one before, from a random place on."""
        count = len(self._annealing.plan.order)
        size = _WINDOW
        if wide:
            size = count if self.problem.colocation else _WIDE_WINDOW
        if size >= count or self._weight == 0:
            yield 0, count
            return
        first = -self._generator.randrange(size // 2)
        while first < count:
            yield max(0, first), min(count, first + size)
            first += size // 2

    def _anneal(self, first: int, last: int, temperature_ns: float, deadline: Deadline) -> None:
        """One window; steps fall with its size so that all sweeps take about equally long."""
        walk, size = self._annealing, last - first
        steps = _STEPS_PER_OPERATOR * (min(size, _WIDE_WINDOW) if self._weight > 0 else size)
        chunk = max(1, _CHUNK_PLACED // (size if self._weight > 0 else _PLACED_WITHOUT_TIMES))
        open_window(walk, first, last)
        try:
            for done in range(0, steps, chunk):
                deadline.check()
                seed = self._generator.randrange(2**31)
                anneal(walk, first, last, min(chunk, steps - done), temperature_ns, seed)
        finally:
            self._note(close_window(walk, first, last, _ERROR * temperature_ns))

    def _note(self, value_ns: float) -> None:
        if value_ns < self.best_ns:
            self.best_ns = value_ns
            self._best = self._annealing.plan.order.copy(), self._annealing.plan.assignment.copy()

    def _sort(self) -> None:
        """Positions follow starts again, so that a window is a range of time."""
        state, plan = self._annealing.state, self._annealing.plan
        last = np.array(self.problem.topological_position)
        plan.order[:] = np.lexsort((last, state.finish_ns, state.start_ns))
        plan.position[plan.order] = np.arange(len(plan.order))
        self._note(close_window(self._annealing, 0, 0, np.inf))

    def _price(self) -> None:
        """Memory becomes dearer where it is short, cheaper elsewhere."""
        plan = self._annealing.plan
        short = plan.free_bytes < 2 * self._mean_bytes
        step = _DEARER * self._mean_ns / self._mean_bytes
        plan.price[:] = np.where(short, plan.price + step, plan.price * _CHEAPER)

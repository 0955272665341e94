"""Local search over orders and devices: simulated annealing, window after window."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moirai_tf.placement.blackboard import Search
from moirai_tf.placement.construct.driver import construct_all, relax_ways
from moirai_tf.placement.deadline import Deadline
from moirai_tf.placement.evaluate.events import order_by_start
from moirai_tf.placement.evaluate.insertion import new_state, play
from moirai_tf.placement.evaluate.partial import schedule_in
from moirai_tf.placement.improve.anneal import (
    anneal,
    close_window,
    new_move,
    new_saved,
    open_window,
)
from moirai_tf.placement.improve.plan import plan_of, units_of
from moirai_tf.placement.improve.window import outside_of
from moirai_tf.placement.problem import Problem
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
_HOT, _COLD = 0.15, 0.02
"""First and last temperature of a run, in shares of a mean operator's time."""
_ERROR = 3.0
"""By how many temperatures the value of a window may be wrong."""
_SWEEPS = 8
"""Of the first run after a single cold sweep; each has twice as many as the one before."""
_LEAST_GAIN = 0.002
_PATIENCE = 6
"""Runs in a row that improve by a smaller share; then it ends."""
_GLANCE_SHARE, _GLANCE_S = 0.1, 2.0
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

    def glance(self, search: Search) -> None:
        """Improves the best schedule for a little of the time."""
        share = _GLANCE_S / max(_GLANCE_S, search.deadline.remaining_s())
        with search.deadline.limited(min(_GLANCE_SHARE, share)):
            self.improve(search)

    def improve(self, search: Search) -> None:
        """Improves the best schedule so far until runs gain little or the gap is closed."""
        if len(search.problem.devices) == 1 or not search.problem.operators:
            return
        walk = _Walk(search.problem, search.best, search.seed)
        sweep_s = self._cool(search, walk, 1)
        relax_ways(search)
        sweeps, failures = _SWEEPS, 0
        while failures < _PATIENCE and not search.closed:
            sweeps = _affordable(sweeps, search.deadline.remaining_s() / sweep_s)
            before_ns = search.best.makespan_ns
            sweep_s = self._cool(search, walk, sweeps)
            gain = 1 - search.best.makespan_ns / before_ns
            failures = 0 if gain >= _LEAST_GAIN else failures + 1
            sweeps *= 2

    def _cool(self, search: Search, walk: _Walk, sweeps: int) -> float:
        """A run from hot to cold, from the best schedule on; seconds of a sweep."""
        began_s = search.deadline.elapsed_s()
        walk.reset()
        for number in range(sweeps):
            share = _HOT * (_COLD / _HOT) ** ((number + 1) / sweeps)
            wide = number % _WIDE_EVERY == _WIDE_EVERY - 1
            try:
                walk.sweep(share, search.deadline, wide=wide)
            finally:
                if walk.best_ns < search.best.makespan_ns:
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

    def __init__(self, problem: Problem, schedule: Schedule, seed: int) -> None:
        self.arrays, self.problem = problem.arrays, problem
        self._generator = random.Random(seed)
        placed, order = schedule.placed, order_by_start(problem, schedule)
        self._units = units_of(problem)
        self._plan = plan_of(problem, order, schedule.assignment)
        self._state = new_state(problem.arrays)
        self._outside = outside_of(self._state)
        self._move, self._saved = new_move(), new_saved(len(order))
        self._mean_ns = sum(p.finish_ns - p.start_ns for p in placed) / len(placed)
        self._mean_bytes = max(1.0, sum(problem.unit_memory_bytes) / len(problem.units))
        self.best_ns = self._play()
        self._best = self._plan.order.copy(), self._plan.assignment.copy()

    def reset(self) -> None:
        """Goes back to the best plan."""
        price = self._plan.price
        order, assignment = self._best
        self._plan = plan_of(self.problem, order.tolist(), tuple(assignment.tolist()))
        self._plan.price[:] = price

    def sweep(self, share: float, deadline: Deadline, *, wide: bool) -> None:
        """All windows at one temperature; then operators are sorted by start, and prices follow."""
        temperature_ns = share * self._mean_ns
        for first, last in self._windows(wide=wide):
            self._anneal(first, last, temperature_ns, deadline)
        self._sort()
        self._price()

    def schedule(self) -> Schedule:
        """The best plan, played."""
        play(self.arrays, self._state, *self._best)
        return schedule_in(self.problem, self._state)

    def _windows(self, *, wide: bool) -> Iterator[tuple[int, int]]:
        """Ranges of positions, each half over the one before, from a random place on."""
        count = len(self._plan.order)
        size = _WINDOW
        if wide:
            size = count if self.problem.colocation else _WIDE_WINDOW
        if size >= count:
            yield 0, count
            return
        first = -self._generator.randrange(size // 2)
        while first < count:
            yield max(0, first), min(count, first + size)
            first += size // 2

    def _anneal(self, first: int, last: int, temperature_ns: float, deadline: Deadline) -> None:
        """One window; steps fall with its size so that all sweeps take about equally long."""
        arrays, units, plan, state = self.arrays, self._units, self._plan, self._state
        outside, move, saved = self._outside, self._move, self._saved
        size = last - first
        steps = _STEPS_PER_OPERATOR * min(size, _WIDE_WINDOW)
        chunk = max(1, _CHUNK_PLACED // size)
        open_window(arrays, plan, state, outside, saved, first, last)
        try:
            for done in range(0, steps, chunk):
                deadline.check()
                seed = self._generator.randrange(2**31)
                anneal(
                    arrays, units, plan, state, outside, move, saved, first, last,
                    min(chunk, steps - done), temperature_ns, seed,
                )  # fmt: skip
        finally:
            error_ns = _ERROR * temperature_ns
            self._note(close_window(arrays, units, plan, state, saved, first, last, error_ns))

    def _note(self, makespan_ns: int) -> None:
        if makespan_ns < self.best_ns:
            self.best_ns = makespan_ns
            self._best = self._plan.order.copy(), self._plan.assignment.copy()

    def _sort(self) -> None:
        """Positions follow starts again, so that a window is a range of time."""
        state, plan = self._state, self._plan
        last = np.array(self.problem.topological_position)
        plan.order[:] = np.lexsort((last, state.finish_ns, state.start_ns))
        plan.position[plan.order] = np.arange(len(plan.order))
        self._note(self._play())

    def _price(self) -> None:
        """Memory becomes dearer where it is short, cheaper elsewhere."""
        plan = self._plan
        short = plan.free_bytes < 2 * self._mean_bytes
        step = _DEARER * self._mean_ns / self._mean_bytes
        plan.price[:] = np.where(short, plan.price + step, plan.price * _CHEAPER)

    def _play(self) -> int:
        return play(self.arrays, self._state, self._plan.order, self._plan.assignment)

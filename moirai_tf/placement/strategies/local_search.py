"""Local search over orders and devices: simulated annealing, window after window."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from moirai_tf.placement.annealing.anneal import (
    anneal,
    close_window,
    new_move,
    new_saved,
    open_window,
)
from moirai_tf.placement.annealing.plan import plan_of, units_of
from moirai_tf.placement.annealing.window import outside_of
from moirai_tf.placement.deadline import Deadline
from moirai_tf.placement.list_schedule import new_state, play
from moirai_tf.placement.partial import schedule_in
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule
from moirai_tf.placement.strategies.constructive import construct_all
from moirai_tf.placement.strategies.search import Search

_WINDOWS = (30, 100, 300)
"""Operators in a window; sweeps over the schedule take one size after another."""
_MOST_WHOLE = 1_000
"""Up to so many operators the whole schedule is a window too."""
_STEPS_PER_OPERATOR = 40
_CHUNK_PLACED = 500_000
"""Operators placed between two looks at the clock, and at Ctrl-C. Counted, not timed, so that
equal seeds give equal answers."""
_HOTTEST, _COOLEST = 3.0, 0.05
"""Each window begins at a random temperature between these, in shares of a mean operator's time:
the best one differs between graphs."""
_COLD = 0.02
"""Share of its first temperature at which a window ends."""
_LEAST_GAIN = 0.002
_SLOWER = 2
_PATIENCE = 4
"""A round of sweeps that improves by a smaller share is followed by slower ones, so many times in
a row."""


@dataclass(frozen=True)
class LocalSearch:
    """Heuristics for a start, then windows of the best schedule, annealed one after another."""

    name: str = "local-search"

    def run(self, search: Search) -> None:
        """Constructs and improves."""
        construct_all(search)
        self.improve(search)

    def improve(self, search: Search) -> None:
        """Improves the best schedule so far until sweeps gain little or the gap is closed."""
        if len(search.problem.devices) == 1 or not search.problem.operators:
            return
        walk = _Walk(search.problem, search.best, search.seed)
        effort = 1
        while effort <= _SLOWER**_PATIENCE and not search.closed:
            before_ns = search.best.makespan_ns
            for size in walk.sizes():
                self._sweep(search, walk, size, effort)
            gain = 1 - search.best.makespan_ns / before_ns
            effort = 1 if gain >= _LEAST_GAIN else _SLOWER * effort

    def _sweep(self, search: Search, walk: _Walk, size: int, effort: int) -> None:
        """All windows of one size; what was found is offered even if time ends it."""
        try:
            for first, last in walk.windows(size):
                walk.anneal(first, last, effort, search.deadline)
        finally:
            if walk.makespan_ns < search.best.makespan_ns:
                search.offer(walk.schedule(), self.name)


class _Walk:
    """A plan that only gets better."""

    def __init__(self, problem: Problem, schedule: Schedule, seed: int) -> None:
        self.arrays, self.problem = problem.arrays, problem
        self._generator = random.Random(seed)
        placed, position = schedule.placed, problem.topological_position
        order = sorted(
            range(len(placed)), key=lambda i: (placed[i].start_ns, placed[i].finish_ns, position[i])
        )
        self._units = units_of(problem)
        self._plan = plan_of(problem, order, schedule.assignment)
        self._state = new_state(problem.arrays)
        self._outside = outside_of(self._state)
        self._move, self._saved = new_move(), new_saved(len(order))
        self._mean_ns = sum(p.finish_ns - p.start_ns for p in placed) / len(placed)
        self.makespan_ns = self._play()

    def sizes(self) -> list[int]:
        """Sizes of windows that make sense."""
        count = len(self._plan.order)
        smaller = [size for size in _WINDOWS if size < count]
        return [*smaller, count] if count <= _MOST_WHOLE else smaller

    def windows(self, size: int) -> Iterator[tuple[int, int]]:
        """Ranges of positions, each half over the one before, from a random place on."""
        count = len(self._plan.order)
        if size == count:
            yield 0, count
            return
        first = -self._generator.randrange(size // 2)
        while first < count:
            yield max(0, first), min(count, first + size)
            first += size // 2

    def anneal(self, first: int, last: int, effort: int, deadline: Deadline) -> None:
        """Improves one window; the better, the larger the effort."""
        arrays, units, plan, state = self.arrays, self._units, self._plan, self._state
        outside, move, saved = self._outside, self._move, self._saved
        chunk = max(1, _CHUNK_PLACED // (last - first))
        chunks = -(-_STEPS_PER_OPERATOR * effort * (last - first) // chunk)
        steps = -(-_STEPS_PER_OPERATOR * effort * (last - first) // chunks)
        hottest_ns = self._mean_ns * _COOLEST * (_HOTTEST / _COOLEST) ** self._generator.random()
        open_window(arrays, plan, state, outside, saved, first, last)
        try:
            for number in range(chunks):
                deadline.check()
                hot_ns = hottest_ns * _COLD ** (number / chunks)
                seed = self._generator.randrange(2**31)
                anneal(
                    arrays, units, plan, state, outside, move, saved, first, last, steps, hot_ns,
                    hot_ns * _COLD ** (1 / chunks), seed,
                )  # fmt: skip
        finally:
            self.makespan_ns = close_window(arrays, units, plan, state, saved, first, last)

    def schedule(self) -> Schedule:
        """The plan, played."""
        self._play()
        return schedule_in(self.problem, self._state)

    def _play(self) -> int:
        return play(self.arrays, self._state, self._plan.order, self._plan.assignment)

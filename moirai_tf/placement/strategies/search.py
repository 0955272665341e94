"""What a strategy is, and the state that strategies share while a problem is being solved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

from moirai_tf.placement.bounds import Bound, round_up
from moirai_tf.placement.check import check
from moirai_tf.placement.deadline import Deadline
from moirai_tf.placement.memory import Packing
from moirai_tf.placement.milp.outcome import Limits
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Incumbent:
    """An improvement: when, to what, by whom."""

    time_s: float
    makespan_ns: int
    found_by: str


Progress = Callable[[Incumbent, int], None]
"""Called with every improvement and the lower bound at that time."""


@dataclass
class Search:
    """The best schedule and bound so far; strategies `offer` to it and `prove` to it."""

    problem: Problem
    packing: Packing
    deadline: Deadline
    mip_gap: float
    threads: int
    seed: int
    best: Schedule
    """A checked schedule; never absent, so that an interrupted search has an answer."""
    progress: Progress | None = None
    bound: Bound = field(default_factory=lambda: Bound(0, "nothing finishes before it starts"))
    history: list[Incumbent] = field(default_factory=list)
    baselines: dict[str, int] = field(default_factory=dict)
    """Makespan of each heuristic that was run."""
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What the checker said about schedules that were offered and refused."""

    def offer(self, schedule: Schedule, found_by: str, time_s: float | None = None) -> None:
        """Keeps a schedule if it is better and the checker finds no fault in it."""
        if self.history and schedule.makespan_ns >= self.best.makespan_ns:
            return
        found = check(self.problem, schedule)
        if found:
            self.faults += [f"{found_by}: {fault}" for fault in found]
            return
        self.best = schedule
        elapsed_s = self.deadline.elapsed_s() if time_s is None else time_s
        self.history.append(Incumbent(elapsed_s, schedule.makespan_ns, found_by))
        if self.progress:
            self.progress(self.history[-1], self.bound.value_ns)

    def prove(self, bound: Bound) -> None:
        """Keeps a lower bound if it is better, rounded up to what an optimum can be."""
        value_ns = round_up(self.problem, bound.value_ns)
        if value_ns > self.bound.value_ns:
            self.bound = Bound(value_ns, bound.how)

    @property
    def closed(self) -> bool:
        """Whether the bound is within the requested gap of the best schedule."""
        allowed = Fraction(self.mip_gap) * self.best.makespan_ns
        return self.best.makespan_ns - self.bound.value_ns <= allowed

    def limits(self) -> Limits:
        """What is left, for a solver; half the gap, since its bound is rounded down later."""
        return Limits(self.deadline.remaining_s(), self.mip_gap / 2, self.threads, self.seed)


class Strategy(Protocol):
    """One way to search, chosen by name."""

    @property
    def name(self) -> str:
        """As in the option `solver`."""

    def run(self, search: Search) -> None:
        """Offers schedules and proves bounds until it is done.

        Raises:
          OutOfTimeError: when the deadline passes; KeyboardInterrupt likewise passes through.
        """

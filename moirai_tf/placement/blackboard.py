"""What a strategy is, and the state that strategies share while a problem is being solved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

from moirai_tf.placement.bound.packing import Packing
from moirai_tf.placement.bound.paths import Bound, round_up
from moirai_tf.placement.check import check
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.construct.single import OneDevice
from moirai_tf.placement.exact.milp.backends import Limits
from moirai_tf.placement.objective import LATENCY, MAKESPAN, THROUGHPUT, Objective, bottleneck_ns
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Incumbent:
    """An improvement: when, to what, by whom."""

    time_s: float
    makespan_ns: int
    found_by: str
    objective_ns: Fraction


Progress = Callable[[Incumbent, int], None]
"""Called with every improvement and the lower bound on the objective then, in whole ns."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a method by itself arrived at."""

    schedule: Schedule
    time_s: float
    """How long it took, without bounds."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A step of a learned method."""

    time_s: float
    makespan_ns: int
    """Of the placement that it ended with, whether or not that fits memory."""
    best_ns: int
    """The least so far that does."""


@dataclass(frozen=True, slots=True)
class SumBound:
    """A proved lower bound on a weighted sum, and the argument that proved it."""

    value_ns: Fraction
    how: str


@dataclass
class Search:
    """The best schedule and bounds so far; strategies `offer` to it and `prove` to it.

    Schedules are compared by the objective, then by makespan. A bound on the makespan holds
    whatever the objective is, so every strategy may prove one.
    """

    problem: Problem
    packing: Packing
    deadline: Deadline
    mip_gap: float
    threads: int
    seed: int
    best: Schedule
    """A checked schedule; never absent, so that an interrupted search has an answer."""
    alone: OneDevice | None = None
    """The best single device, if one suffices."""
    progress: Progress | None = None
    objective: Objective = MAKESPAN
    bound: Bound = field(default_factory=lambda: Bound(0, "nothing finishes before it starts"))
    """On the makespan."""
    bottleneck_bound: Bound = field(default_factory=lambda: Bound(0, "no load is negative"))
    sum_bound: SumBound | None = None
    """On the objective itself, if it is a weighted sum and was bounded as one."""
    history: list[Incumbent] = field(default_factory=list)
    made: dict[str, Made] = field(default_factory=dict)
    """By each method that was run to compare with."""
    episodes: int = 0
    """The most that a learned method plays."""
    learned: list[Episode] = field(default_factory=list)
    """The learning curve, if a method has one."""
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What the checker said about schedules that were offered and refused."""

    def offer(self, schedule: Schedule, found_by: str, time_s: float | None = None) -> None:
        """Keeps a schedule if it is better and the checker finds no fault in it."""
        value_ns = self.value_ns(schedule)
        known = self.value_ns(self.best), self.best.makespan_ns
        if self.history and (value_ns, schedule.makespan_ns) >= known:
            return
        found = check(self.problem, schedule)
        if found:
            self.faults += [f"{found_by}: {fault}" for fault in found]
            return
        self.best = schedule
        elapsed_s = self.deadline.elapsed_s() if time_s is None else time_s
        self.history.append(Incumbent(elapsed_s, schedule.makespan_ns, found_by, value_ns))
        if self.progress:
            self.progress(self.history[-1], math.floor(self.lower_bound_ns))

    def baseline(self, schedule: Schedule, name: str, time_s: float) -> None:
        """Notes what a heuristic reaches, and offers its schedule."""
        self.made[name] = Made(schedule, time_s)
        self.offer(schedule, name)

    def prove(self, bound: Bound) -> None:
        """Keeps a lower bound on the makespan if it is better, rounded up to an optimum's."""
        value_ns = round_up(self.problem, bound.value_ns)
        if value_ns > self.bound.value_ns:
            self.bound = Bound(value_ns, bound.how)

    def prove_bottleneck(self, bound: Bound) -> None:
        """Keeps a lower bound on the bottleneck; the makespan, never below it, has it as well."""
        value_ns = round_up(self.problem, bound.value_ns)
        if value_ns > self.bottleneck_bound.value_ns:
            self.bottleneck_bound = Bound(value_ns, bound.how)
        self.prove(bound)

    def prove_sum(self, bound: SumBound) -> None:
        """Keeps a lower bound on the objective if it is better than what is known."""
        if bound.value_ns > self.lower_bound_ns:
            self.sum_bound = bound

    def value_ns(self, schedule: Schedule) -> Fraction:
        """The objective of a schedule."""
        bottleneck = 0 if self.objective == MAKESPAN else bottleneck_ns(self.problem, schedule)
        return self.objective.value_ns(schedule.makespan_ns, bottleneck)

    @property
    def lower_bound_ns(self) -> Fraction:
        """The best proved lower bound on the objective."""
        parts_ns = self.objective.value_ns(self.bound.value_ns, self.bottleneck_bound.value_ns)
        return parts_ns if self.sum_bound is None else max(parts_ns, self.sum_bound.value_ns)

    @property
    def how_bounded(self) -> str:
        """What proved the bound on the objective."""
        if self.objective.name == LATENCY:
            return self.bound.how
        if self.objective.name == THROUGHPUT:
            return self.bottleneck_bound.how
        if self.sum_bound is not None and self.sum_bound.value_ns == self.lower_bound_ns:
            return self.sum_bound.how
        return f"{self.bound.how} for the makespan, {self.bottleneck_bound.how} for the bottleneck"

    @property
    def closed(self) -> bool:
        """Whether the bound is within the requested gap of the best schedule."""
        value_ns = self.value_ns(self.best)
        return value_ns - self.lower_bound_ns <= Fraction(self.mip_gap) * value_ns

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

"""Smaller problems with the same optimum, and the way back from their schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule
from moirai_tf.placement.zero_time import Folded, fold_zero_time

REDUCTIONS: tuple[Callable[[Problem], Folded], ...] = (fold_zero_time,)
"""In the order in which they are applied."""


@dataclass(frozen=True)
class Reduced:
    """A problem before and after all reductions."""

    original: Problem
    problem: Problem
    steps: tuple[Folded, ...]

    def invert(self, schedule: Schedule) -> Schedule:
        """A schedule of the problem before the reductions, with the same makespan."""
        for step in reversed(self.steps):
            schedule = step.invert(schedule)
        return schedule


def reduce(problem: Problem) -> Reduced:
    """Applies every reduction that makes the problem smaller."""
    steps = []
    smaller = problem
    for reduction in REDUCTIONS:
        step = reduction(smaller)
        if len(step.problem.operators) < len(smaller.operators):
            steps.append(step)
            smaller = step.problem
    return Reduced(problem, smaller, tuple(steps))


__all__ = ["REDUCTIONS", "Reduced", "reduce"]

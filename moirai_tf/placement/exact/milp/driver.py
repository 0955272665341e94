"""The mixed integer program as a strategy, on either backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from moirai_tf.placement.blackboard import Search, SumBound
from moirai_tf.placement.bound.linear_program import FloatArray, LinearModel
from moirai_tf.placement.bound.paths import Bound, round_up
from moirai_tf.placement.construct.heuristics import construct_all
from moirai_tf.placement.exact.milp.backends import (
    NO_SOLUTION,
    Backend,
    BackendRefusalError,
    Outcome,
    solve_with_highs,
)
from moirai_tf.placement.exact.milp.formulation import build, decoded, row_estimate, start_values
from moirai_tf.placement.exact.milp.loads import (
    build_loads,
    load_decoded,
    load_start,
    size_estimate,
)
from moirai_tf.placement.objective import LATENCY, THROUGHPUT, bottleneck_ns
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule

_MOST_OPERATORS = 3_000
_MOST_ROWS = 1_000_000
"""Beyond either the model alone would take gigabytes."""
_SMALL = 20_000
"""Beyond so many rows the exact model gains little on schedule or bound in minutes."""
_TOLERANCE = 1e-6
"""Share of the horizon by which a solver's bound may be off; its own tolerances are smaller."""


@dataclass(frozen=True)
class Program:
    """A model of a search's objective, with its schedules as integer columns and back."""

    linear: LinearModel
    start: Mapping[int, int]
    decode: Callable[[FloatArray], Schedule]

    @classmethod
    def of(cls, search: Search) -> Program:
        """The model of all schedules that are no worse than the best so far."""
        problem, best = search.problem, search.best
        if search.objective.name == THROUGHPUT:
            loads = build_loads(problem, bottleneck_ns(problem, best))
            return cls(loads.linear, load_start(loads, best), partial(load_decoded, loads))
        model = build(problem, _horizon_ns(search), search.objective)
        return cls(model.linear, start_values(model, best), partial(decoded, model))


def _horizon_ns(search: Search) -> int:
    """No schedule that is at least as good as the best one needs a longer makespan.

    From `w T + (1 - w) B <= V` follows `T <= (V - (1 - w) bound on B) / w`; and no assignment
    needs more than all its operators and transfers one after another.
    """
    weight, best_ns = search.objective.latency_weight, search.best.makespan_ns
    serial_ns = max(best_ns, _serial_ns(search.problem))
    if weight == 0:
        return serial_ns
    loads_ns = (1 - weight) * search.bottleneck_bound.value_ns
    return min(serial_ns, math.floor((search.value_ns(search.best) - loads_ns) / weight))


def _serial_ns(problem: Problem) -> int:
    """A makespan that the best schedule of any assignment stays within."""
    moved_ns = sum(
        int(table.max()) * len(tensor.consumers)
        for tensor, table in zip(problem.tensors, problem.time_ns, strict=True)
    )
    return int(problem.compute_ns.max(axis=1, initial=0).sum()) + moved_ns


@dataclass(frozen=True)
class Milp:
    """Heuristics for a start, then the exact model with one backend."""

    name: str
    backend: Backend

    def run(self, search: Search) -> None:
        """Proves the least makespan, if time and memory allow."""
        construct_all(search)
        self.attempt(search)

    def attempt(self, search: Search) -> None:
        """Improves unless nothing is open, or the model would be too large."""
        if not search.closed and size(search) > _MOST_ROWS:
            search.notes.append(f"{self.name}: the model would be too large; heuristics answer")
        elif not search.closed:
            self.improve(search)

    def finish(self, search: Search) -> None:
        """Closes the gap where the model is small."""
        if search.closed:
            return
        if size(search) <= _SMALL:
            self.improve(search)
        else:
            search.notes.append("too large for the exact model: the schedule comes with a bound")

    def improve(self, search: Search) -> None:
        """Solves the model of all schedules that are no worse than the best so far."""
        program = Program.of(search)
        search.deadline.check()
        began_s = search.deadline.elapsed_s()
        outcome, solver = self._solve(search, program)
        for seconds, values in outcome.incumbents:
            search.offer(program.decode(values), solver, began_s + seconds)
        if outcome.state == NO_SOLUTION:
            search.notes.append(f"{solver}: numerical trouble, its bound is not used")
        elif math.isfinite(outcome.bound):
            most = int(program.linear.cost @ program.linear.upper)
            _prove(search, math.ceil(outcome.bound - _TOLERANCE * most), solver)
        if outcome.interrupted:
            raise KeyboardInterrupt

    def _solve(self, search: Search, program: Program) -> tuple[Outcome, str]:
        """The outcome and the name of the solver that gave it."""
        try:
            return self.backend(program.linear, program.start, search.limits()), self.name
        except BackendRefusalError as refusal:
            search.notes.append(f"{self.name} was refused ({refusal}); HiGHS was used instead")
            return solve_with_highs(program.linear, program.start, search.limits()), "milp-highs"


def _prove(search: Search, value: int, solver: str) -> None:
    """A bound on the objective; of a weighted sum in units of 1 ns over the denominator."""
    if search.objective.name == LATENCY:
        search.prove(Bound(value, solver))
    elif search.objective.name == THROUGHPUT:
        search.prove_bottleneck(Bound(value, solver))
    else:
        whole = round_up(search.problem, value)
        search.prove_sum(
            SumBound(Fraction(whole, search.objective.latency_weight.denominator), solver)
        )


def size(search: Search) -> int:
    """About how many rows the model of the objective would have, or columns where they are more."""
    if search.objective.name == THROUGHPUT:
        return size_estimate(search.problem)
    return rows(search)


def rows(search: Search) -> int:
    """About how many rows the model with times would have."""
    if len(search.problem.operators) > _MOST_OPERATORS:
        return _MOST_ROWS + 1
    return row_estimate(search.problem)

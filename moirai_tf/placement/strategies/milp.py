"""The mixed integer program as a strategy, on either backend."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moirai_tf.placement.bounds import Bound
from moirai_tf.placement.milp import highs
from moirai_tf.placement.milp.incumbent import decoded, start_values
from moirai_tf.placement.milp.model import PlacementModel, build, row_estimate
from moirai_tf.placement.milp.outcome import NO_SOLUTION, Backend, BackendRefusalError, Outcome
from moirai_tf.placement.strategies.constructive import construct_all
from moirai_tf.placement.strategies.search import Search

_MOST_OPERATORS = 3_000
_MOST_ROWS = 1_000_000
"""Beyond either the model alone would take gigabytes."""
_TOLERANCE = 1e-6
"""Share of the horizon by which a solver's bound may be off; its own tolerances are smaller."""


@dataclass(frozen=True)
class Milp:
    """Heuristics for a start, then the exact model with one backend."""

    name: str
    backend: Backend

    def run(self, search: Search) -> None:
        """Proves the optimum, if time and memory allow."""
        construct_all(search)
        if not search.closed and rows(search) > _MOST_ROWS:
            search.notes.append(f"{self.name}: the model would be too large; heuristics answer")
        elif not search.closed:
            self.improve(search)

    def improve(self, search: Search) -> None:
        """Solves the model of all schedules that are no worse than the best so far."""
        horizon_ns = search.best.makespan_ns
        model = build(search.problem, horizon_ns)
        search.deadline.check()
        began_s = search.deadline.elapsed_s()
        outcome, solver = self._solve(search, model)
        for seconds, values in outcome.incumbents:
            search.offer(decoded(model, values), solver, began_s + seconds)
        if outcome.state == NO_SOLUTION:
            search.notes.append(f"{solver}: numerical trouble, its bound is not used")
        elif math.isfinite(outcome.bound):
            safe_ns = math.ceil(outcome.bound - _TOLERANCE * horizon_ns)
            search.prove(Bound(safe_ns, solver))
        if outcome.interrupted:
            raise KeyboardInterrupt

    def _solve(self, search: Search, model: PlacementModel) -> tuple[Outcome, str]:
        """The outcome and the name of the solver that gave it."""
        start = start_values(model, search.best)
        try:
            return self.backend(model.linear, start, search.limits()), self.name
        except BackendRefusalError as refusal:
            search.notes.append(f"{self.name} was refused ({refusal}); HiGHS was used instead")
            return highs.solve(model.linear, start, search.limits()), "milp-highs"


def rows(search: Search) -> int:
    """About how many rows the model would have."""
    if len(search.problem.operators) > _MOST_OPERATORS:
        return _MOST_ROWS + 1
    return row_estimate(search.problem)

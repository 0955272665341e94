"""Strategies for objectives other than latency, and which of them knows which objective."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moirai_tf.errors import MoiraiError
from moirai_tf.placement.deadline import Deadline, OutOfTimeError
from moirai_tf.placement.milp import gurobi, highs
from moirai_tf.placement.objective import MAKESPAN, THROUGHPUT, WEIGHTED
from moirai_tf.placement.strategies.constructive import HEURISTICS, relax
from moirai_tf.placement.strategies.decomposition import Decomposition
from moirai_tf.placement.strategies.load_search import LoadSearch
from moirai_tf.placement.strategies.local_search import LocalSearch
from moirai_tf.placement.strategies.milp import Milp
from moirai_tf.placement.strategies.search import Search, Strategy
from moirai_tf.placement.strategies.sum_search import SumSearch
from moirai_tf.placement.throughput.relaxation import priced_work

_SHORTENING = 0.5
"""Share of the time that is left for the makespan alone, where it is a part of a sum."""


@dataclass(frozen=True)
class Exact:
    """The integer program alone, after heuristics for a start."""

    exact: Milp

    @property
    def name(self) -> str:
        """The backend's."""
        return self.exact.name

    def run(self, search: Search) -> None:
        """Proves the optimum, if time and memory allow."""
        compare(search)
        self.exact.attempt(search)


@dataclass(frozen=True)
class Throughput:
    """Heuristics, relaxation and load search, then the load model if it is small."""

    loads: LoadSearch
    exact: Milp
    name: str = "auto"

    def run(self, search: Search) -> None:
        """Improves until the gap is closed or nothing is left to try."""
        compare(search)
        self.loads.improve(search)
        self.exact.finish(search)


@dataclass(frozen=True)
class Weighted:
    """Either part of the sum by itself, then the sum, then the full model if it is small."""

    loads: LoadSearch
    decomposition: Decomposition
    sums: SumSearch
    exact: Milp
    name: str = "auto"

    def run(self, search: Search) -> None:
        """Improves until the gap is closed or nothing is left to try."""
        compare(search)
        relax(search)
        self.loads.improve(search)
        if not search.closed:
            shorten(search, self.decomposition)
            self.sums.improve(search)
        self.exact.finish(search)


def compare(search: Search) -> None:
    """Proves the simplest bound, offers every heuristic's schedule and notes its objective."""
    search.prove_bottleneck(priced_work(search.problem))
    for heuristic in HEURISTICS:
        heuristic.construct(search)


def shorten(search: Search, decomposition: Decomposition) -> None:
    """Minimises the makespan alone for a part of the time, then weighs what was found."""
    deadline = Deadline(_SHORTENING * search.deadline.remaining_s())
    own = replace(
        search,
        objective=MAKESPAN,
        deadline=deadline,
        history=list(search.history),
        progress=None,
    )
    try:
        LocalSearch().glance(own)
        decomposition.improve(own)
    except OutOfTimeError:
        search.notes.append(f"{decomposition.name}: stopped after its part of the time")
    finally:
        search.prove(own.bound)
        search.offer(own.best, decomposition.name)


_HIGHS, _GUROBI = Milp("milp-highs", highs.solve), Milp("milp-gurobi", gurobi.solve)
_STRATEGIES: dict[str, tuple[Strategy, ...]] = {
    THROUGHPUT: (Throughput(LoadSearch(), _HIGHS), Exact(_HIGHS), Exact(_GUROBI)),
    WEIGHTED: (
        Weighted(LoadSearch(patience=1), Decomposition(), SumSearch(), _HIGHS),
        Exact(_HIGHS),
        Exact(_GUROBI),
    ),
}


def strategy_for(objective: str, solver: str) -> Strategy:
    """The strategy of a name for an objective other than latency.

    Raises:
      MoiraiError: the strategy of that name minimises latency only.
    """
    known = {strategy.name: strategy for strategy in _STRATEGIES[objective]}
    if solver not in known:
        raise MoiraiError(
            f"solver {solver} does not know the objective {objective}",
            why="it minimises latency only",
            fix=f"use one of {', '.join(known)}, or the objective latency",
        )
    return known[solver]

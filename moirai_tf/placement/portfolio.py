"""Strategies by name and objective. A new one is a module with a `Strategy`, and an entry here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moirai_tf.errors import MoiraiError
from moirai_tf.placement.blackboard import Search, Strategy
from moirai_tf.placement.bound.load_relaxation import priced_work
from moirai_tf.placement.construct.driver import HEURISTICS, Single, construct_all, relax
from moirai_tf.placement.deadline import Deadline, OutOfTimeError
from moirai_tf.placement.exact.blocks.driver import Decomposition
from moirai_tf.placement.exact.milp import gurobi, highs
from moirai_tf.placement.exact.milp.driver import Milp
from moirai_tf.placement.improve.driver import LocalSearch
from moirai_tf.placement.improve.load_driver import LoadSearch
from moirai_tf.placement.improve.sum_driver import SumSearch
from moirai_tf.placement.objective import MAKESPAN, THROUGHPUT, WEIGHTED

_QUICK_OPERATORS = 3_000
"""Up to so many, a sweep of local search takes about a second."""
_BLOCKS_SHARE = 0.75
"""Of the time for decomposition, should it not end by itself."""
_SHORTENING = 0.5
"""Share of the time that is left for the makespan alone, where it is a part of a sum."""


@dataclass(frozen=True)
class Auto:
    """Runs its parts until the gap is closed or time is over."""

    decomposition: Decomposition
    local_search: LocalSearch
    exact: Milp
    name: str = "auto"

    def run(self, search: Search) -> None:
        """Heuristics, decomposition amid local search, exact model; says where it stopped."""
        construct_all(search)
        if not search.closed and len(search.problem.operators) <= _QUICK_OPERATORS:
            self.local_search.glance(search)
        if not search.closed:
            with search.deadline.limited(_BLOCKS_SHARE):
                self.decomposition.improve(search)
        if not search.closed:
            self.local_search.improve(search)
        self.exact.finish(search)


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

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Auto(Decomposition(LocalSearch().glance), LocalSearch(), _HIGHS),
        _HIGHS,
        _GUROBI,
        Decomposition(),
        LocalSearch(),
        Single(),
        *HEURISTICS,
    )
}

_FOR_OBJECTIVE: dict[str, tuple[Strategy, ...]] = {
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
    known = {strategy.name: strategy for strategy in _FOR_OBJECTIVE[objective]}
    if solver not in known:
        raise MoiraiError(
            f"solver {solver} does not know the objective {objective}",
            why="it minimises latency only",
            fix=f"use one of {', '.join(known)}, or the objective latency",
        )
    return known[solver]

"""Strategies by name and objective. A new one is a module with a `Strategy`, and an entry here."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache

from moirai_tf.errors import MoiraiError
from moirai_tf.placement.blackboard import Search, Strategy
from moirai_tf.placement.compiled import is_missing
from moirai_tf.placement.construct.heuristics import (
    HEURISTICS,
    PUBLISHED,
    Single,
    construct_all,
    relax_loads,
)
from moirai_tf.placement.construct.placeto import Placeto
from moirai_tf.placement.exact.blocks.driver import Decomposition
from moirai_tf.placement.exact.blocks.search import search_block
from moirai_tf.placement.exact.milp.backends import solve_with_gurobi, solve_with_highs
from moirai_tf.placement.exact.milp.driver import Milp, size
from moirai_tf.placement.improve.local_search import LocalSearch
from moirai_tf.placement.objective import LATENCY, MAKESPAN
from moirai_tf.placement.problem import Device, Operator, Problem, Tensor

_QUICK_OPERATORS = 3_000
"""Up to so many, a sweep of local search takes about a second."""
_BLOCKS_SHARE = 0.75
"""Of the time for decomposition, should it not end by itself."""
_PUBLISHED_SHARE = 0.1
"""Of the time for methods with a linear program."""
_TINY, _TINY_SHARE = 2_000, 0.5
"""Rows of a model that is solved first, and the share of the time for it: a second, mostly, in
which nothing has to be compiled."""


@dataclass(frozen=True)
class Auto:
    """Runs its parts until the gap is closed or time is over; for every objective."""

    decomposition: Decomposition
    local_search: LocalSearch
    exact: Milp
    name: str = "auto"

    def run(self, search: Search) -> None:
        """Heuristics, decomposition amid local search, exact model; says where it stopped."""
        construct_all(search)
        if not search.closed and search.objective.latency_weight > 0:
            with search.deadline.limited(_PUBLISHED_SHARE):
                for method in PUBLISHED:
                    method.construct(search)
        if not search.closed and size(search) <= _TINY:
            with search.deadline.limited(_TINY_SHARE):
                self.exact.improve(search)
        if not search.closed:
            compile_beside()
        weight = search.objective.latency_weight
        if weight < 1 and not search.closed:
            relax_loads(search)
        if weight > 0 and not search.closed:
            self._shorten(search)
        if not search.closed:
            self.local_search.improve(search)
        self.exact.finish(search)

    def _shorten(self, search: Search) -> None:
        """Minimises the makespan, by itself where it is a part of a sum."""
        own = search
        if search.objective.latency_weight < 1:
            own = replace(search, objective=MAKESPAN, history=list(search.history), progress=None)
        try:
            if len(search.problem.operators) <= _QUICK_OPERATORS:
                self.local_search.improve_briefly(own)
            if not own.closed:
                with search.deadline.limited(_BLOCKS_SHARE):
                    self.decomposition.improve(own)
        finally:
            search.prove(own.bound)
            search.offer(own.best, self.decomposition.name)


_HIGHS = Milp("milp-highs", solve_with_highs)
_EVERY_OBJECTIVE: tuple[Strategy, ...] = (
    Auto(Decomposition(LocalSearch().improve_briefly), LocalSearch(), _HIGHS),
    _HIGHS,
    Milp("milp-gurobi", solve_with_gurobi),
)

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        *_EVERY_OBJECTIVE,
        Decomposition(),
        LocalSearch(),
        Single(),
        *HEURISTICS,
        *PUBLISHED,
        Placeto(),
    )
}


def strategy_for(objective: str, solver: str) -> Strategy:
    """The strategy of a name for an objective.

    Raises:
      MoiraiError: the strategy of that name minimises latency only.
    """
    known = [strategy.name for strategy in _EVERY_OBJECTIVE]
    if objective != LATENCY and solver not in known:
        raise MoiraiError(
            f"solver {solver} does not know the objective {objective}",
            why="it minimises latency only",
            fix=f"use one of {', '.join(known)}, or the objective latency",
        )
    return STRATEGIES[solver]


_PROGRAM = """
import ctypes, sys
ctypes.CDLL(None).prctl(1, 9)  # killed if its parent dies, however that comes about
sys.path[:] = sys.argv[1:]
from moirai_tf.placement import SolveOptions, solve
from moirai_tf.placement.portfolio import sample
solve(sample(), SolveOptions(solver="decomposition", mip_gap=0.0, time_limit_s=3600))
"""


@cache
def compile_beside() -> None:
    """Starts a process that compiles, unless that was done; it ends with this one at the latest.

    Whoever needs a function that it is at waits for it.
    """
    if len(os.sched_getaffinity(0)) < 2 or not sys.executable or not is_missing(search_block):
        return
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *map(os.path.abspath, sys.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(process.kill)


def sample() -> Problem:
    """Equal layers of two branches that the faster device cannot hold, so every part has work."""
    operators, tensors = [Operator("in", (1, 2), 1)], []
    way = ((0, 3), (3, 0))
    for last in range(0, 12, 3):
        operators += [Operator(f"{part}{last}", (5, 9), 2) for part in ("left", "right")]
        operators.append(Operator(f"sum{last}", (1, 2), 1))
        tensors.append(Tensor(last, (last + 1, last + 2), way))
        tensors += [Tensor(last + branch, (last + 3,), way) for branch in (1, 2)]
    devices = (Device("a", 12), Device("b", 12))
    return Problem("sample", devices, tuple(operators), tuple(tensors))

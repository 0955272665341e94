"""The default strategy: heuristics, blocks between cuts, local search, the exact model."""

from __future__ import annotations

from dataclasses import dataclass

from moirai_tf.placement.strategies.constructive import construct_all
from moirai_tf.placement.strategies.decomposition import Decomposition
from moirai_tf.placement.strategies.local_search import LocalSearch
from moirai_tf.placement.strategies.milp import Milp
from moirai_tf.placement.strategies.search import Search

_QUICK_OPERATORS = 3_000
"""Up to so many, a sweep of local search takes about a second."""
_BLOCKS_SHARE = 0.75
"""Of the time for decomposition, should it not end by itself."""


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

"""The default strategy: heuristics, blocks between cuts, the exact model, local search."""

from __future__ import annotations

from dataclasses import dataclass

from moirai_tf.placement.strategies.constructive import construct_all
from moirai_tf.placement.strategies.decomposition import Decomposition
from moirai_tf.placement.strategies.local_search import LocalSearch
from moirai_tf.placement.strategies.milp import Milp, rows
from moirai_tf.placement.strategies.search import Search

_EXACT_ROWS = 20_000
"""Beyond so many rows the exact model gains little on schedule or bound in minutes."""


@dataclass(frozen=True)
class Auto:
    """Runs its parts until the gap is closed or time is over."""

    decomposition: Decomposition
    local_search: LocalSearch
    exact: Milp
    name: str = "auto"

    def run(self, search: Search) -> None:
        """Heuristics, decomposition, local search, exact model; says where it stopped."""
        construct_all(search)
        for part in (self.decomposition, self.local_search):
            if not search.closed:
                part.improve(search)
        if search.closed:
            return
        if rows(search) <= _EXACT_ROWS:
            self.exact.improve(search)
        else:
            search.notes.append("too large for the exact model: the schedule comes with a bound")

"""Strategies by name. A new one is a module with a `Strategy`, and an entry here."""

from moirai_tf.placement.milp import gurobi, highs
from moirai_tf.placement.strategies.auto import Auto
from moirai_tf.placement.strategies.constructive import HEURISTICS, Single
from moirai_tf.placement.strategies.decomposition import Decomposition
from moirai_tf.placement.strategies.local_search import LocalSearch
from moirai_tf.placement.strategies.milp import Milp
from moirai_tf.placement.strategies.search import Incumbent, Progress, Search, Strategy

_HIGHS = Milp("milp-highs", highs.solve)

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Auto(Decomposition(LocalSearch().glance), LocalSearch(), _HIGHS),
        _HIGHS,
        Milp("milp-gurobi", gurobi.solve),
        Decomposition(),
        LocalSearch(),
        Single(),
        *HEURISTICS,
    )
}

__all__ = ["STRATEGIES", "Incumbent", "Progress", "Search", "Strategy"]

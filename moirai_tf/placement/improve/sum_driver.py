"""Search for a small weighted sum of makespan and bottleneck, from the best schedule known."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from moirai_tf.placement.blackboard import Search
from moirai_tf.placement.deadline import Deadline
from moirai_tf.placement.evaluate.events import order_by_start, simulate
from moirai_tf.placement.evaluate.insertion import new_state
from moirai_tf.placement.improve.load_moves import new_move
from moirai_tf.placement.improve.load_network import loads_of, network_of
from moirai_tf.placement.improve.sum_annealing import Timed, anneal_sum, sum_ns
from moirai_tf.placement.schedule import Schedule

_CHUNK_PLACED = 500_000
"""Operators placed between two looks at the clock, and at Ctrl-C. Counted, not timed, so that
equal seeds give equal answers."""
_MOVES_PER_UNIT = 40
_MOST_PLACED = 20_000_000
"""Operators placed in a first round, few enough to cool within seconds."""
_PATIENCE = 4
"""Rounds without a gain, each twice as long as the one before, after which it ends."""
_HOTTEST, _COOLEST, _COLD = 0.3, 0.01, 0.03
"""Each round begins at a random temperature between the first two, in shares of a mean operator's
time, and ends at the third share of that."""


@dataclass(frozen=True)
class SumSearch:
    """Anneals the assignment of the best schedule, its order kept."""

    name: str = "sum-search"

    def improve(self, search: Search) -> None:
        """Improves until rounds of annealing gain nothing or the gap is closed."""
        if len(search.problem.devices) == 1 or not search.problem.operators:
            return
        generator = random.Random(search.seed)
        failures = 0
        while failures < _PATIENCE and not search.closed:
            before = search.best
            walk = _Walk(search)
            try:
                walk.anneal(2**failures, generator, search.deadline)
            finally:
                search.offer(walk.schedule(), self.name)
            failures = 0 if search.best is not before else failures + 1


class _Walk:
    """One round, from a search's best schedule."""

    def __init__(self, search: Search) -> None:
        problem, placed = search.problem, search.best.placed
        self._problem = problem
        self._weight = float(search.objective.latency_weight)
        self._network, self._state = network_of(problem), new_state(problem.arrays)
        self._loads = loads_of(problem, self._network, search.best.assignment)
        self._move = new_move()
        self._timed = Timed(
            order=np.array(order_by_start(problem, search.best), dtype=np.int64),
            unit_of=np.array(problem.unit_of, dtype=np.int64),
            assignment=np.zeros(len(placed), dtype=np.int64),
            device=self._loads.device.copy(),
            value_ns=np.zeros(2),
        )
        self._timed.value_ns[:] = sum_ns(
            problem.arrays, self._state, self._loads, self._timed, self._weight, np.inf
        )
        self._mean_ns = max(1.0, sum(p.finish_ns - p.start_ns for p in placed) / len(placed))

    def anneal(self, effort: int, generator: random.Random, deadline: Deadline) -> None:
        """The longer, the larger the effort."""
        operators = len(self._problem.operators)
        moves = effort * min(
            _MOVES_PER_UNIT * len(self._problem.units), -(-_MOST_PLACED // operators)
        )
        chunks = -(-moves * operators // _CHUNK_PLACED)
        steps = -(-moves // chunks)
        hottest_ns = self._mean_ns * _COOLEST * (_HOTTEST / _COOLEST) ** generator.random()
        for number in range(chunks):
            deadline.check()
            hot_ns = hottest_ns * _COLD ** (number / chunks)
            seed = generator.randrange(2**31)
            anneal_sum(
                self._problem.arrays, self._state, self._network, self._loads, self._timed,
                self._move, steps, hot_ns, hot_ns * _COLD ** (1 / chunks), self._weight, seed,
            )  # fmt: skip

    def schedule(self) -> Schedule:
        """The best assignment of the round, played in its order."""
        device = self._timed.device.tolist()
        assignment = [device[unit] for unit in self._problem.unit_of]
        return simulate(self._problem, assignment, self._timed.order.tolist())

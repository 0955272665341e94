"""Search for a small bottleneck: relaxation and rounding, then annealing of the loads."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from moirai_tf.placement.blackboard import Search
from moirai_tf.placement.bottleneck import bottleneck_ns
from moirai_tf.placement.bound.load_relaxation import relax_loads, rounded
from moirai_tf.placement.deadline import Deadline
from moirai_tf.placement.evaluate.events import simulate
from moirai_tf.placement.exact.milp.loads import size_estimate
from moirai_tf.placement.improve.load_annealing import anneal, new_best
from moirai_tf.placement.improve.load_moves import new_move
from moirai_tf.placement.improve.load_network import loads_of, network_of
from moirai_tf.placement.problem import NONE, Problem

_LINEAR_COLUMNS = 50_000
"""Above so many columns a relaxation is not tried."""
_CHUNK = 100_000
"""Moves between two looks at the clock, and at Ctrl-C. Counted, not timed, so that equal seeds
give equal answers."""
_MOVES_PER_UNIT = 1_000
_HOTTEST, _COOLEST, _COLD = 0.1, 0.003, 0.03
"""Each round begins at a random temperature between the first two, in shares of a mean unit's
time, and ends at the third share of that."""


@dataclass(frozen=True)
class LoadSearch:
    """Bounds the bottleneck, then anneals the best assignment known."""

    patience: int = 4
    """Rounds without a gain, each twice as long as the one before, after which it ends."""
    name: str = "load-search"

    def improve(self, search: Search) -> None:
        """Improves until rounds of annealing gain nothing or the bound is reached."""
        starts = [search.best.assignment, *_rounded(search)]
        if len(search.problem.devices) == 1 or not search.problem.operators:
            return
        walk = _Walk(search.problem, starts, search.seed)
        self._offer(search, walk)
        failures = 0
        while failures < self.patience and walk.bottleneck_ns > search.bottleneck_bound.value_ns:
            before_ns = walk.bottleneck_ns
            try:
                walk.anneal(2**failures, search.bottleneck_bound.value_ns, search.deadline)
            finally:
                self._offer(search, walk)
            failures = 0 if walk.bottleneck_ns < before_ns else failures + 1

    def _offer(self, search: Search, walk: _Walk) -> None:
        search.offer(simulate(search.problem, walk.assignment()), self.name)


def _rounded(search: Search) -> Iterator[list[int]]:
    """Proves the bounds of relaxations that are small enough; their rounded assignments."""
    problem = search.problem
    ceiling_ns = bottleneck_ns(problem, search.best)
    devices_only = len(problem.units) * len(problem.devices)
    for crossing, columns in ((False, devices_only), (True, size_estimate(problem))):
        search.deadline.check()
        if columns > _LINEAR_COLUMNS or (crossing and problem.congestion == NONE):
            continue
        limits = search.limits()
        limits = replace(limits, time_s=limits.time_s / 4)
        relaxed = relax_loads(problem, ceiling_ns, limits, crossing=crossing)
        search.prove_bottleneck(relaxed.bound)
        assignment = rounded(problem, search.packing, relaxed)
        if assignment is not None:
            yield assignment


class _Walk:
    """An assignment whose bottleneck only falls."""

    def __init__(self, problem: Problem, starts: Sequence[Sequence[int]], seed: int) -> None:
        self._problem, self._network = problem, network_of(problem)
        self._generator = random.Random(seed)
        found = [loads_of(problem, self._network, start) for start in starts]
        loads = min(found, key=lambda start: int(start.load_ns.max()))
        self._best, self._move = new_best(loads), new_move()
        self._mean_ns = max(1.0, float(loads.load_ns.sum()) / len(problem.units))

    @property
    def bottleneck_ns(self) -> int:
        """Of the best assignment."""
        return int(self._best.bottleneck_ns[0])

    def assignment(self) -> list[int]:
        """Device of each operator in the best assignment."""
        device = self._best.device.tolist()
        return [device[unit] for unit in self._problem.unit_of]

    def anneal(self, effort: int, target_ns: int, deadline: Deadline) -> None:
        """One round from the best assignment; the longer, the larger the effort."""
        loads = loads_of(self._problem, self._network, self.assignment())
        moves = _MOVES_PER_UNIT * effort * len(self._problem.units)
        chunks = -(-moves // _CHUNK)
        hottest_ns = self._mean_ns * _COOLEST * (_HOTTEST / _COOLEST) ** self._generator.random()
        for number in range(chunks):
            deadline.check()
            if self.bottleneck_ns <= target_ns:
                return
            hot_ns = hottest_ns * _COLD ** (number / chunks)
            seed = self._generator.randrange(2**31)
            anneal(
                self._network, loads, self._best, self._move, moves // chunks, hot_ns,
                hot_ns * _COLD ** (1 / chunks), target_ns, seed,
            )  # fmt: skip

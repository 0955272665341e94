"""Block by block: exact blocks, shortest paths over cuts, prices where memory couples them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from moirai_tf.placement.blackboard import Search
from moirai_tf.placement.bound.packing import fits
from moirai_tf.placement.bound.paths import Bound
from moirai_tf.placement.construct.heuristics import construct_all
from moirai_tf.placement.evaluate.events import simulate
from moirai_tf.placement.exact.blocks.assemble import assemble
from moirai_tf.placement.exact.blocks.block import split
from moirai_tf.placement.exact.blocks.block_pool import Column, Pool, Priced, Prices
from moirai_tf.placement.exact.blocks.cut import Cutting, cuttings
from moirai_tf.placement.exact.blocks.gap_closing import Closing
from moirai_tf.placement.exact.blocks.memory_pricing import Coupling
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule

_TICKS = 2**42
"""Ticks in the makespan of the heuristics, about; prices are rounded down to ticks."""
_SHARES = (0.3, 0.5, 1.0)
"""Of the time for the ways without prices, each followed by a polish if it did not suffice."""
_FIRST_SHARE = 0.5
"""Of the time for the first of several cuttings."""


@dataclass(frozen=True)
class Decomposition:
    """Heuristics for a start, then the optimum over the blocks between cuts."""

    polish: Callable[[Search], None] | None = None
    """Improves the best schedule, whose columns then say what a block's search has to beat."""
    name: str = "decomposition"

    def run(self, search: Search) -> None:
        """Constructs and improves."""
        construct_all(search)
        if not search.closed:
            self.improve(search)

    def improve(self, search: Search) -> None:
        """Proves the optimum, or a bound, over the blocks of one cutting after another."""
        options = cuttings(search.problem)
        if not options:
            search.notes.append(f"{self.name}: blocks between cuts are too large")
        for place, cut in enumerate(options, start=1):
            with search.deadline.limited(1.0 if place == len(options) else _FIRST_SHARE):
                self._improve(search, cut)
            if search.closed:
                return

    def _improve(self, search: Search, cut: Cutting) -> None:
        problem = search.problem
        scale = 1 << max(0, (_TICKS // max(1, search.best.makespan_ns)).bit_length() - 1)
        pool = Pool(split(problem, cut, scale), len(problem.devices), search.deadline)
        pool.adopt(search.best.assignment)
        search.notes.append(
            f"{self.name}: {len(pool.blocks)} blocks between cuts, {len(pool.kinds)} different"
            + ("" if cut.exact else ", without what spans many of them")
        )
        free = Priced(pool, Prices((0,) * len(problem.devices)))
        for share in _SHARES:
            with search.deadline.limited(share if self.polish else 1.0):
                free.close(search.mip_gap / 2)
            self._prove(search, free.bound, scale, "best ways through all blocks")
            self._offer(search, pool, free.path(), cut)
            if search.closed or free.closed or self.polish is None:
                break
            self.polish(search)
            pool.adopt(search.best.assignment)
            free.learn()
        if not search.closed:
            self._couple(search, Coupling(pool, problem.capacity_bytes, free), scale, cut)

    def _couple(self, search: Search, coupling: Coupling, scale: int, cut: Cutting) -> None:
        """Prices, a few ways by annealing, then labels and the master program."""
        try:
            coupling.prove()
        finally:
            self._prove(search, coupling.bound, scale, "blocks with prices of memory")
        for path in coupling.dives(search.seed):
            self._offer(search, coupling.pool, path, cut)
        closing = Closing(
            coupling, search.best.makespan_ns * scale, scale, replace(search.limits(), mip_gap=0.0)
        )
        for found in closing.steps():
            self._prove(search, closing.bound, scale, "whole columns for all blocks")
            self._offer(search, coupling.pool, found, cut)
            if search.closed:
                return

    def _prove(self, search: Search, ticks: int, scale: int, how: str) -> None:
        search.prove(Bound(-(-ticks // scale), f"{self.name}: {how}"))

    def _offer(
        self, search: Search, pool: Pool, path: Sequence[Column] | None, cut: Cutting
    ) -> None:
        """Offers the schedule of a path, its groups brought together and within memory."""
        if not path:
            return
        played = assemble(search.problem, pool, path, exact=cut.exact)
        schedule = gathered(search.problem, played)
        if schedule:
            search.offer(schedule, self.name)


def gathered(problem: Problem, schedule: Schedule) -> Schedule | None:
    """The schedule, or a new one with every group on one device; None if memory does not suffice.

    Blocks do not know of groups that span several of them. Such a group goes to the device that
    holds most of its memory.
    """
    assignment = list(schedule.assignment)
    devices = []
    for unit, members in enumerate(problem.units):
        held = dict.fromkeys(problem.unit_devices[unit], 0)
        for operator in members:
            if assignment[operator] in held:
                held[assignment[operator]] += 1 + problem.operators[operator].memory_bytes
        devices.append(max(held, key=lambda device: held[device]))
        for operator in members:
            assignment[operator] = devices[unit]
    if not fits(problem, devices):
        return None
    if tuple(assignment) == schedule.assignment:
        return schedule
    return simulate(problem, assignment)

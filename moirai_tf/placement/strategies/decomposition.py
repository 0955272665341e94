"""Block by block: exact blocks, shortest paths over cuts, prices where memory couples them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moirai_tf.placement.bounds import Bound
from moirai_tf.placement.decomposition.assemble import assemble
from moirai_tf.placement.decomposition.blocks import clean_cuts, split
from moirai_tf.placement.decomposition.columns import Column, Pool, Priced, Prices
from moirai_tf.placement.decomposition.coupled import Coupling
from moirai_tf.placement.memory import fits
from moirai_tf.placement.schedule import Schedule
from moirai_tf.placement.strategies.constructive import construct_all
from moirai_tf.placement.strategies.search import Search

_TICKS = 2**42
"""Ticks in the makespan of the heuristics, about; prices are rounded down to ticks."""
_LARGEST_BLOCK = 60
"""A block of more operators would not be solved, nor bounded better than by simpler means."""


@dataclass(frozen=True)
class Decomposition:
    """Heuristics for a start, then the optimum over the blocks between cuts."""

    name: str = "decomposition"

    def run(self, search: Search) -> None:
        """Constructs and improves."""
        construct_all(search)
        if not search.closed:
            self.improve(search)

    def improve(self, search: Search) -> None:
        """Proves the optimum, or a bound by prices where memory couples the blocks."""
        problem = search.problem
        marks = clean_cuts(problem)
        scale = 1 << max(0, (_TICKS // max(1, search.best.makespan_ns)).bit_length() - 1)
        blocks = split(problem, marks, scale)
        if max(len(block.operators) for block in blocks) > _LARGEST_BLOCK:
            search.notes.append(f"{self.name}: blocks between cuts are too large")
            return
        pool = Pool(blocks, len(problem.devices), search.deadline)
        kinds = len(pool.kinds)
        search.notes.append(f"{self.name}: {len(blocks)} blocks between cuts, {kinds} different")
        free = Priced(pool, Prices((0,) * len(problem.devices)))
        try:
            free.close(search.mip_gap / 2)
        finally:
            self._prove(search, free.bound, scale, "best ways through all blocks")
            self._offer(search, pool, free.path())
        if not search.closed:
            self._couple(search, Coupling(pool, problem.capacity_bytes, free), scale)

    def _couple(self, search: Search, coupling: Coupling, scale: int) -> None:
        try:
            coupling.prove()
        finally:
            self._prove(search, coupling.bound, scale, "blocks with prices of memory")
        for path in coupling.paths(search.seed):
            self._offer(search, coupling.pool, path)
            if search.closed:
                return

    def _prove(self, search: Search, ticks: int, scale: int, how: str) -> None:
        search.prove(Bound(-(-ticks // scale), f"{self.name}: {how}"))

    def _offer(self, search: Search, pool: Pool, path: Sequence[Column] | None) -> None:
        """Offers the schedule of a path, its groups brought together and within memory."""
        if not path:
            return
        schedule = assemble(search.problem, pool, path)
        if allowed(search, schedule):
            search.offer(schedule, self.name)


def allowed(search: Search, schedule: Schedule) -> bool:
    """Whether groups that span blocks are together and memory suffices."""
    problem = search.problem
    devices = [schedule.placed[members[0]].device for members in problem.units]
    together = all(
        schedule.placed[operator].device == devices[unit]
        for operator, unit in enumerate(problem.unit_of)
    )
    return together and fits(problem, devices)

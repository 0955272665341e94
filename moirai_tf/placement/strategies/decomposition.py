"""Block by block: exact blocks, shortest paths over cuts, prices where memory couples them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moirai_tf.placement.bounds import Bound
from moirai_tf.placement.deadline import Deadline, OutOfTimeError
from moirai_tf.placement.decomposition.assemble import assemble
from moirai_tf.placement.decomposition.blocks import split
from moirai_tf.placement.decomposition.closing import Closing
from moirai_tf.placement.decomposition.columns import Column, Pool, Priced, Prices
from moirai_tf.placement.decomposition.coupled import Coupling
from moirai_tf.placement.decomposition.cutting import Cutting, cuttings
from moirai_tf.placement.memory import fits
from moirai_tf.placement.schedule import Schedule
from moirai_tf.placement.strategies.constructive import construct_all
from moirai_tf.placement.strategies.search import Search

_TICKS = 2**42
"""Ticks in the makespan of the heuristics, about; prices are rounded down to ticks."""
_FIRST_SHARE = 0.5
"""Of the time for the first of several cuttings."""


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
        """Proves the optimum, or a bound, over the blocks of one cutting after another."""
        options = cuttings(search.problem)
        if not options:
            search.notes.append(f"{self.name}: blocks between cuts are too large")
        for place, cut in enumerate(options, start=1):
            deadline = search.deadline.part(1.0 if place == len(options) else _FIRST_SHARE)
            try:
                self._improve(search, cut, deadline)
            except OutOfTimeError:
                search.deadline.check()
            if search.closed:
                return

    def _improve(self, search: Search, cut: Cutting, deadline: Deadline) -> None:
        problem = search.problem
        scale = 1 << max(0, (_TICKS // max(1, search.best.makespan_ns)).bit_length() - 1)
        pool = Pool(split(problem, cut, scale), len(problem.devices), deadline)
        search.notes.append(
            f"{self.name}: {len(pool.blocks)} blocks between cuts, {len(pool.kinds)} different"
            + ("" if cut.exact else ", without what spans many of them")
        )
        free = Priced(pool, Prices((0,) * len(problem.devices)))
        try:
            free.close(search.mip_gap / 2)
        finally:
            self._prove(search, free.bound, scale, "best ways through all blocks")
            self._offer(search, pool, free.path(), cut)
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
        schedule = assemble(search.problem, pool, path, exact=cut.exact)
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

"""Block by block: exact blocks, shortest paths over cuts, prices where memory couples them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from moirai_tf.placement.blackboard import Search
from moirai_tf.placement.bound.packing import fits
from moirai_tf.placement.bound.paths import Bound
from moirai_tf.placement.construct.heuristics import construct_all
from moirai_tf.placement.evaluate.events import TransferKey, replay, simulate
from moirai_tf.placement.exact.blocks.block import NOBODY, split
from moirai_tf.placement.exact.blocks.block_pool import BlockPool, Column, PricedArcs, Prices
from moirai_tf.placement.exact.blocks.cut import Cutting, cuttings
from moirai_tf.placement.exact.blocks.gap_closing import GapClosing
from moirai_tf.placement.exact.blocks.memory_prices import MemoryPricing
from moirai_tf.placement.exact.blocks.search import Found
from moirai_tf.placement.problem import PER_EDGE, Problem
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
        pool = BlockPool(split(problem, cut, scale), len(problem.devices), search.deadline)
        pool.add_schedule(search.best.assignment)
        search.notes.append(
            f"{self.name}: {len(pool.blocks)} blocks between cuts, {len(pool.kinds)} different"
            + ("" if cut.exact else ", without what spans many of them")
        )
        free = PricedArcs(pool, Prices((0,) * len(problem.devices)))
        for share in _SHARES:
            with search.deadline.limited(share if self.polish else 1.0):
                free.close(search.mip_gap / 2)
            self._prove(search, free.bound, scale, "best ways through all blocks")
            self._offer(search, pool, free.path(), cut)
            if search.closed or free.closed or self.polish is None:
                break
            self.polish(search)
            pool.add_schedule(search.best.assignment)
            free.add_known()
        if not search.closed:
            self._share_memory(
                search, MemoryPricing(pool, problem.capacity_bytes, free), scale, cut
            )

    def _share_memory(
        self, search: Search, pricing: MemoryPricing, scale: int, cut: Cutting
    ) -> None:
        """Prices of memory, then whole columns for all blocks."""
        try:
            pricing.prove()
        finally:
            self._prove(search, pricing.bound, scale, "blocks with prices of memory")
        limits = replace(search.limits(), mip_gap=0.0)
        closing = GapClosing(pricing, search.best.makespan_ns * scale, scale, limits)
        for found in closing.steps():
            self._prove(search, closing.bound, scale, "whole columns for all blocks")
            self._offer(search, pricing.pool, found, cut)
            if search.closed:
                return

    def _prove(self, search: Search, ticks: int, scale: int, how: str) -> None:
        search.prove(Bound(-(-ticks // scale), f"{self.name}: {how}"))

    def _offer(
        self, search: Search, pool: BlockPool, path: Sequence[Column] | None, cut: Cutting
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


def assemble(
    problem: Problem, pool: BlockPool, columns: Sequence[Column], *, exact: bool
) -> Schedule:
    """Plays the blocks' orders one after another.

    The columns say devices and orders; times are worked out anew. Tensors that the blocks do not
    know of are moved as soon as they can be, and operators that may run in an earlier block are
    also tried in the gaps there.
    """
    assignment = [0] * len(problem.operators)
    starts: list[float] = [0.0] * len(problem.operators)
    moves: dict[TransferKey, float] = {}
    begin = 0
    known: dict[Column, Found] = {}
    for block, column in zip(pool.blocks, columns, strict=True):
        if column not in known:
            known[column] = pool.orders(column)
        found = known[column]
        devices, local = column.device, found.start.tolist()
        for place, operator in enumerate(block.operators):
            if place and operator != NOBODY:
                assignment[operator] = devices[place]
                starts[operator] = begin + local[place]
        for tensor, key, start in found.transfers.tolist():
            name = block.tensors[tensor]
            if name != NOBODY:
                last = block.operators[key] if problem.transfers == PER_EDGE else key
                moves[name, last] = begin + start
        begin += column.ticks
    schedule = replay(problem, assignment, starts, moves)
    if exact:
        return schedule
    gaps = simulate(problem, assignment, producers_first(problem, starts))
    return min(schedule, gaps, key=lambda option: option.makespan_ns)


def producers_first(problem: Problem, starts: list[float]) -> list[int]:
    """Operators in order of their starts, but none before what it waits for."""
    for operator in problem.topological_order:
        for tensor in problem.incoming[operator]:
            producer = problem.tensors[tensor].producer
            starts[operator] = max(starts[operator], starts[producer])
    position = problem.topological_position
    return sorted(range(len(starts)), key=lambda operator: (starts[operator], position[operator]))

"""Whole columns for every block within memory, and bounds beyond those that prices prove."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.exact.blocks.block_pool import ORDER_NODES, Arc, Column
from moirai_tf.placement.exact.blocks.master_program import MasterProgram
from moirai_tf.placement.exact.blocks.memory_prices import MemoryPricing
from moirai_tf.placement.exact.blocks.search import enumerate_block
from moirai_tf.placement.exact.milp.backends import Limits
from moirai_tf.placement.problem import IntArray

_CHOICES_PER_S = 5_000
"""Fewer than are enumerated in a second, so that no enumeration goes far beyond the deadline."""
_COLLECTION_SHARE = 0.15
"""Of what is left, for one collection of columns."""
_MOST_COLUMNS = 20_000
"""Of one arc, and in all; with more the program does not get far."""
_FEW_COLUMNS, _MANY_COLUMNS = 400, 1_500
"""So few are good for a first schedule; with more proofs become slow."""
_FIRST_SHARE, _LEAST_SHARE = 0.1, 0.002
"""Of the gap: how far above the bound cutoffs are."""
_GROWTH, _FALL = 2.0, 3.0
"""This share grows while proofs are quick and falls where one fails."""
_LONG = 0.5
"""Share of the remaining time after which a solution of the program ends."""


@dataclass
class GapClosing:
    """Narrows the gap between bound and best schedule of blocks that share memory.

    For one cutoff after another all columns are collected that a faster schedule may need, and the
    program over these finds such a schedule or proves that there is none. The lower a cutoff, the
    fewer columns.
    """

    pricing: MemoryPricing
    upper: int
    """Ticks of the best schedule that is known."""
    scale: int
    """Ticks in a nanosecond."""
    limits: Limits
    """Seed and threads."""
    bound: int = field(init=False)
    """Proved, in ticks."""

    def __post_init__(self) -> None:
        self.bound = self.pricing.bound
        self.path: list[Column] = []
        self.settled = False
        """Whether the last solution of the program ended the search below its cutoff."""

    def steps(self) -> Iterator[list[Column] | None]:
        """After each step the bound may be better, and a faster way may have been found.

        Raises:
          OutOfTimeError: when the deadline passes; KeyboardInterrupt likewise.
        """
        pool = self.pricing.pool
        pool.add_changes_of_device(_MOST_COLUMNS)
        yield from self._first_way()
        share, ended = _FIRST_SHARE, self.bound >= self.upper
        while not ended and share >= _LEAST_SHARE:
            pool.deadline.check()
            cutoff = self._cutoff(share)
            columns = self._columns(cutoff, _MOST_COLUMNS)
            if columns is None:
                share /= _FALL
                continue
            last = cutoff == self.upper
            yield from self._by_program(columns, cutoff, cutoff)
            if not self.settled:
                share /= _FALL
            elif len(columns) <= _MANY_COLUMNS:
                share = min(1.0, share * _GROWTH)
            ended = self.bound >= self.upper or (last and self.settled)

    def _first_way(self) -> Iterator[list[Column] | None]:
        """A good way from columns that cost little at the best prices."""
        share = _FIRST_SHARE
        columns = self._columns(self._cutoff(share), _FEW_COLUMNS)
        while columns is None and share >= _LEAST_SHARE:
            share /= _FALL
            columns = self._columns(self._cutoff(share), _FEW_COLUMNS)
        complete_below = 0 if columns is None else self._cutoff(share)
        yield from self._by_program(
            columns or self.pricing.pool.columns, complete_below, self.upper
        )

    def _cutoff(self, share: float) -> int:
        gap = self.upper - self.bound
        return min(self.upper, self.bound + max(self.scale, int(share * gap)))

    def _columns(self, cutoff: int, most: int) -> list[Column] | None:
        """All columns that a way within memory below a cutoff may need; None if too many."""
        arcs = self.pricing.arcs
        limits = arcs.limits(cutoff + arcs.prices.of_bytes(self.pricing.capacity))
        if not self._complete(limits, most):
            return None
        columns = [c for c in arcs.pool.columns if arcs.cost(c) < limits[c[:3]]]
        return columns if len(columns) <= most else None

    def _complete(self, limits: IntArray, most: int) -> bool:
        """Adds every column that costs less than its arc's limit; whether none is missing.

        Of columns with the same devices at both ends one is enough of those that take no less
        time and no less of any device's memory than it. With more than `most` one gives up.
        """
        pool = self.pricing.pool
        left = set(pool.arcs)
        with pool.deadline.limited(_COLLECTION_SHARE):
            for arc in pool.arcs:
                pool.deadline.check()
                if self._enumerate(arc, int(limits[arc]), most):
                    left.remove(arc)
        return not left

    def _enumerate(self, arc: Arc, limit: int, most: int) -> bool:
        """`_complete` for one arc."""
        arcs, pool = self.pricing.arcs, self.pricing.pool
        if limit <= arcs.complete.get(arc, int(arcs.lower[arc])):
            return True
        most = min(most, 1 + int(_CHOICES_PER_S * pool.deadline.remaining_s()))
        data, price = pool.kinds[arc[0]].data, arcs.price[arc[0]]
        found = enumerate_block(data, pool.arcs[arc], price, limit, most, ORDER_NODES)
        devices, ticks, whole = found
        for place in undominated(ticks, memory_of(data.memory, devices, pool.devices)):
            pool.add(arc[0], int(ticks[place]), devices[place].tolist())
        if whole:
            arcs.complete[arc] = limit
        return whole

    def _by_program(
        self, columns: list[Column], complete_below: int, cutoff: int
    ) -> Iterator[list[Column] | None]:
        """Solves the program over columns that are complete below `complete_below`."""
        pool = self.pricing.pool
        self.settled = len({column.kind for column in columns}) < len(pool.kinds)
        if self.settled:
            self.bound = max(self.bound, complete_below)
            return
        program = MasterProgram(pool.kind_of.tolist(), columns, self.pricing.capacity, self.scale)
        limits = replace(
            self.limits, time_s=_LONG * pool.deadline.remaining_s(), proof=cutoff < self.upper
        )
        answer = program.solve(cutoff, self.path, limits)
        self.bound = max(self.bound, min(complete_below, answer.bound))
        self.settled = answer.settled
        ticks = sum(column.ticks for column in answer.path or ())
        if answer.path and ticks < self.upper:
            self.path, self.upper = answer.path, ticks
            yield answer.path
        else:
            yield None
        if answer.interrupted:
            raise KeyboardInterrupt


@compiled
def memory_of(size: IntArray, device: IntArray, devices: int) -> IntArray:
    """(choices, devices): bytes on each device.

    Args:
      size: bytes of each operator.
      device: (choices, operators).
      devices: number of them.
    """
    memory = np.zeros((len(device), devices), dtype=np.int64)
    for choice in range(len(device)):
        for operator in range(len(size)):
            memory[choice, device[choice, operator]] += size[operator]
    return memory


@compiled
def undominated(ticks: IntArray, memory: IntArray) -> IntArray:
    """Enough of the choices: any other takes no less time and memory than one of these.

    Args:
      ticks: of each choice.
      memory: (choices, devices).
    """
    kept = np.empty(len(ticks), dtype=np.int64)
    count = 0
    for choice in np.argsort(ticks, kind="mergesort"):
        replaced = False
        for place in range(count - 1, -1, -1):
            replaced = True
            for device in range(memory.shape[1]):
                if memory[kept[place], device] > memory[choice, device]:
                    replaced = False
                    break
            if replaced:
                break
        if not replaced:
            kept[count] = choice
            count += 1
    return kept[:count]

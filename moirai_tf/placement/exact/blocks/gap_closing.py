"""Whole columns for every block within memory, and bounds beyond those that prices prove."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from moirai_tf.placement.exact.blocks.block_pool import Column
from moirai_tf.placement.exact.blocks.labels import several_prices, shortest
from moirai_tf.placement.exact.blocks.master_program import Master
from moirai_tf.placement.exact.blocks.memory_prices import choices
from moirai_tf.placement.exact.blocks.memory_pricing import Coupling
from moirai_tf.placement.exact.blocks.repeated_layers import runs
from moirai_tf.placement.exact.milp.outcome import Limits

_MOST_COLUMNS = 20_000
"""Of one arc, and in all; with more neither labels nor the program get far."""
_FEW_BLOCKS = 64
"""Up to so many blocks, labels are tried; the program counts blocks and so needs many of them."""
_NARROW, _WIDTH = 1_000, 20_000
"""Labels that are kept, to find a way and to prove a bound."""
_ACCURACY = 1e-6
_FEW_COLUMNS, _MANY_COLUMNS = 400, 1_500
"""So few are good for a first schedule; with more proofs become slow."""
_FIRST_SHARE, _LEAST_SHARE = 0.1, 0.002
"""Of the gap: how far above the bound cutoffs are."""
_GROWTH, _FALL = 2.0, 3.0
"""This share grows while proofs are quick and falls where one fails."""
_LONG = 0.5
"""Share of the remaining time after which a solution of the program ends."""


@dataclass
class Closing:
    """Narrows the gap between bound and best schedule of blocks that share memory.

    For one cutoff after another all columns are collected that a faster schedule may need, and a
    search over these finds such a schedule or proves that there is none. The lower a cutoff, the
    fewer columns.
    """

    coupling: Coupling
    upper: int
    """Ticks of the best schedule that is known."""
    scale: int
    """Ticks in a nanosecond."""
    limits: Limits
    """Seed and threads."""
    bound: int = field(init=False)
    """Proved, in ticks."""

    def __post_init__(self) -> None:
        self.bound = self.coupling.bound
        self.path: list[Column] = []
        self.settled = False
        """Whether the last solution of the program ended the search below its cutoff."""

    def steps(self) -> Iterator[list[Column] | None]:
        """After each step the bound may be better, and a faster way may have been found.

        Raises:
          OutOfTimeError: when the deadline passes; KeyboardInterrupt likewise.
        """
        yield from self._by_few()
        if len(self.coupling.pool.blocks) <= _FEW_BLOCKS:
            yield from self._labelled()
        share, ended = _FIRST_SHARE, self.bound >= self.upper
        while not ended and share >= _LEAST_SHARE:
            self.coupling.pool.deadline.check()
            cutoff = self._cutoff(share)
            columns = self._columns(cutoff)
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

    def _labelled(self) -> Iterator[list[Column] | None]:
        """Labels, as long as they find faster ways."""
        improved = True
        while improved and self.bound < self.upper:
            columns = self._columns(self.upper)
            found = None if columns is None else self._by_labels(columns, self.upper, _WIDTH)
            improved = found is not None
            yield found

    def _cutoff(self, share: float) -> int:
        gap = self.upper - self.bound
        return min(self.upper, self.bound + max(self.scale, int(share * gap)))

    def _by_few(self) -> Iterator[list[Column] | None]:
        """Good ways from columns that cost little at the best prices."""
        self.coupling.pool.split_once(_MOST_COLUMNS)
        share = _FIRST_SHARE
        columns = self._columns(self._cutoff(share), _FEW_COLUMNS)
        while columns is None and share >= _LEAST_SHARE:
            share /= _FALL
            columns = self._columns(self._cutoff(share), _FEW_COLUMNS)
        complete_below = 0 if columns is None else self._cutoff(share)
        yield self._by_labels(self.coupling.pool.columns, complete_below, _NARROW)
        columns = [*self.path, *(columns or self.coupling.pool.columns)]
        yield from self._by_program(list(dict.fromkeys(columns)), complete_below, self.upper)

    def _columns(self, cutoff: int, most: int = _MOST_COLUMNS) -> list[Column] | None:
        """All columns that a way within memory below a cutoff may need; None if too many."""
        pool, priced = self.coupling.pool, self.coupling.priced
        cost = cutoff + priced.prices.of_bytes(self.coupling.capacity)
        if not pool.complete(priced, cost, most):
            return None
        limits = priced.limits(cost)
        columns = [c for c in pool.columns if priced.cost(c) < limits[c[:3]]]
        return columns if len(columns) <= most else None

    def _impossible(self, columns: list[Column]) -> bool:
        """Whether some block has no column."""
        return len({column.kind for column in columns}) < len(self.coupling.pool.kinds)

    def _by_labels(
        self, columns: list[Column], complete_below: int, width: int
    ) -> list[Column] | None:
        if self._impossible(columns):
            self.bound = max(self.bound, complete_below)
            return None
        coupling = self.coupling
        deadline = coupling.pool.deadline
        arrays, ordered = choices(coupling.pool, columns, coupling.capacity, coupling.price)
        price = several_prices(arrays, coupling.price, _ACCURACY * self.bound, deadline)
        path, bound = shortest(
            arrays, ordered, coupling.capacity, price, self.upper, width, deadline
        )
        self.bound = max(self.bound, min(complete_below, bound))
        return self._taken(path)

    def _by_program(
        self, columns: list[Column], complete_below: int, cutoff: int
    ) -> Iterator[list[Column] | None]:
        self.settled = self._impossible(columns)
        if self.settled:
            self.bound = max(self.bound, complete_below)
            return
        pool = self.coupling.pool
        kinds = pool.kind_of.tolist()
        master = Master(kinds, runs(kinds), columns, self.coupling.capacity, self.scale)
        limits = replace(
            self.limits, time_s=_LONG * pool.deadline.remaining_s(), proof=cutoff < self.upper
        )
        answer = master.solve(cutoff, self.path, limits)
        self.bound = max(self.bound, min(complete_below, answer.bound))
        self.settled = answer.settled
        yield self._taken(answer.path)
        if answer.interrupted:
            raise KeyboardInterrupt

    def _taken(self, path: list[Column] | None) -> list[Column] | None:
        """A way, if it is the fastest so far."""
        ticks = sum(column.ticks for column in path or ())
        if not path or ticks >= self.upper:
            return None
        self.path, self.upper = path, ticks
        return path

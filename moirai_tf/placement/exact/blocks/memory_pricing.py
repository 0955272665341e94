"""Blocks that share memory: bounds by prices, then whole columns for every block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.exact.blocks.block_pool import Column, Pool, Priced, Prices
from moirai_tf.placement.exact.blocks.column_annealing import anneal
from moirai_tf.placement.exact.blocks.memory_prices import best_prices, choices, dive

_ROUNDS = 60
_ROUGH, _FINE = 3e-3, 2e-5
_CONVERGED = 5e-5
_SHARE_OF_TIME = 0.4
"""Of what is left when prices are sought; after it no further round begins."""
_RADIUS = 8.0
"""Prices are sought up to so many times the cost of the best path for a full device."""
_STEPS = 1_000_000
_DIVE_ACCURACY = 1e-5
_LEAST_PRICE = 0.1
"""Of the largest price: what annealing at least pays for the overfull memory of any device."""


@dataclass
class Coupling:
    """Capacities over a pool of columns."""

    pool: Pool
    capacity: tuple[int, ...]
    free: Priced
    """At no price."""
    bound: int = field(init=False)
    """Proved, in ticks."""

    def __post_init__(self) -> None:
        self.bound = self.free.bound
        self.priced = self.free
        self.price: FloatArray = np.zeros(len(self.capacity))
        """Of each device's whole memory, at the best bound."""

    def prove(self) -> None:
        """Generates columns until prices cannot raise the bound any more.

        For any prices, a schedule within memory costs at least the cheapest way through all
        blocks with the prices of its memory added, less what all memory would bring.

        Raises:
          OutOfTimeError: when the deadline passes; the bound so far stands.
        """
        accuracy = _ROUGH
        enough_s = (1 - _SHARE_OF_TIME) * self.pool.deadline.remaining_s()
        for _ in range(_ROUNDS):
            if self.pool.deadline.remaining_s() < enough_s:
                return
            arrays, _columns = choices(self.pool, self.pool.columns, self.capacity)
            price, limit = best_prices(
                arrays,
                np.zeros(len(self.capacity)),
                _RADIUS * self.free.bound,
                np.ones(len(self.capacity)),
                0,
                -1,
                accuracy / 10 * self.free.bound,
            )
            rates = [p / max(c, 0.5) for p, c in zip(price, self.capacity, strict=True)]
            prices = Prices.of(rates)
            priced = Priced(self.pool, prices)
            try:
                priced.close(accuracy)
            finally:
                bound = priced.bound - prices.of_bytes(self.capacity)
                if bound > self.bound:
                    self.bound, self.price, self.priced = bound, price, priced
            gap = limit - self.bound
            if gap <= _CONVERGED * limit and accuracy == _FINE:
                return
            accuracy = _FINE if gap <= 10 * accuracy * limit else accuracy

    def dives(self, seed: int) -> Iterator[list[Column]]:
        """Ways within memory from the columns that prices brought, each better than the last.

        Raises:
          OutOfTimeError: when the deadline passes.
        """
        best: list[Column] = []
        for begin in (False, True):
            self.pool.deadline.check()
            path = self._annealed(seed + begin, best if begin else [])
            if path and (not best or _ticks(path) < _ticks(best)):
                best = path
                yield path

    def _annealed(self, seed: int, begin: list[Column]) -> list[Column] | None:
        """The best path within memory that one run of annealing meets."""
        arrays, columns = choices(self.pool, self.pool.columns, self.capacity, self.price)
        chosen = np.zeros(len(self.pool.blocks), dtype=np.int64)
        if begin:
            place_of = {column: place for place, column in enumerate(columns)}
            chosen[:] = [place_of[column] for column in begin]
        else:
            dive(arrays, self.price, _DIVE_ACCURACY * self.bound, chosen)
        best = chosen.copy()
        floor = max(_LEAST_PRICE * float(self.price.max()), self.bound / len(chosen))
        ticks = anneal(arrays, chosen, np.maximum(self.price, floor), _STEPS, seed, best)
        return None if np.isinf(ticks) else [columns[place] for place in best]


def _ticks(path: list[Column]) -> int:
    return sum(column.ticks for column in path)

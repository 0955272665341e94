"""Prices of memory that make the cheapest way through all blocks as dear as possible."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.exact.blocks.block import NEVER
from moirai_tf.placement.exact.blocks.block_pool import (
    BlockPool,
    PricedArcs,
    Prices,
    shortest_path,
)
from moirai_tf.placement.problem import IntArray

_ROUNDS = 60
_ROUGH, _FINE = 3e-3, 2e-5
_CONVERGED = 5e-5
_SHARE_OF_TIME = 0.4
"""Of what is left when prices are sought; after it no further round begins."""
_RADIUS = 8.0
"""Prices are sought up to so many times the cost of the best path for a full device."""
_ROUNDS_PER_DIMENSION = 120


@dataclass
class MemoryPricing:
    """Capacities over a pool of columns."""

    pool: BlockPool
    capacity: tuple[int, ...]
    arcs: PricedArcs
    """At the prices of the best bound; at first at no price."""
    bound: int = field(init=False)
    """Proved, in ticks."""

    def __post_init__(self) -> None:
        self.bound = self.arcs.bound

    def prove(self) -> None:
        """Generates columns until prices cannot raise the bound any more.

        For any prices, a schedule within memory costs at least the cheapest way through all
        blocks with the prices of its memory added, less what all memory would bring.

        Raises:
          OutOfTimeError: when the deadline passes; the bound so far stands.
        """
        accuracy, free = _ROUGH, self.bound
        enough_s = (1 - _SHARE_OF_TIME) * self.pool.deadline.remaining_s()
        for _ in range(_ROUNDS):
            if self.pool.deadline.remaining_s() < enough_s:
                return
            known = column_arrays(self.pool, self.capacity)
            price, limit = best_prices(known, _RADIUS * free, accuracy / 10 * free)
            rates = [p / max(c, 0.5) for p, c in zip(price, self.capacity, strict=True)]
            prices = Prices.of(rates)
            arcs = PricedArcs(self.pool, prices)
            try:
                arcs.close(accuracy)
            finally:
                bound = arcs.bound - prices.of_bytes(self.capacity)
                if bound > self.bound:
                    self.bound, self.arcs = bound, arcs
            gap = limit - self.bound
            if gap <= _CONVERGED * limit and accuracy == _FINE:
                return
            accuracy = _FINE if gap <= 10 * accuracy * limit else accuracy


class ColumnArrays(NamedTuple):
    """Columns as arrays, those of one arc together."""

    kind_of: IntArray
    """(blocks,): class of each."""
    first: IntArray
    """(arcs + 1,): columns of arc (class, entry, exit), numbered in this order, begin there."""
    ticks: FloatArray
    """(columns,)"""
    share: FloatArray
    """(columns, devices): memory over the device's capacity."""


def column_arrays(pool: BlockPool, capacity: tuple[int, ...]) -> ColumnArrays:
    """All columns of a pool as arrays."""
    count = pool.devices
    columns = sorted(pool.columns, key=lambda column: column[:3])
    arcs = [(c.kind * count + c.entry) * count + c.exit for c in columns]
    sizes = np.bincount(arcs, minlength=len(pool.kinds) * count * count)
    memory = np.array([c.memory_bytes for c in columns], dtype=np.float64).reshape(-1, count)
    return ColumnArrays(
        kind_of=pool.kind_of,
        first=np.cumsum([0, *sizes], dtype=np.int64),
        ticks=np.array([c.ticks for c in columns], dtype=np.float64),
        share=memory / np.maximum(capacity, 0.5),
    )


@compiled
def cheapest_way(known: ColumnArrays, price: FloatArray, used: FloatArray) -> float:
    """The cost of the cheapest path over the columns; infinity if there is none.

    Args:
      known: the columns.
      price: (devices,): of each device's whole memory, in ticks.
      used: (devices,): output: share of each device's memory that the path needs.
    """
    devices = len(price)
    arcs = len(known.first) - 1
    cost = known.ticks + known.share @ price
    least = np.full(arcs, np.inf)
    best = np.zeros(arcs, dtype=np.int64)
    for arc in range(arcs):
        for column in range(known.first[arc], known.first[arc + 1]):
            if cost[column] < least[arc]:
                least[arc] = cost[column]
                best[arc] = column
    table = least.reshape(arcs // devices**2, devices, devices)
    path, total = shortest_path(table, known.kind_of)
    if total >= NEVER:
        return np.inf
    used[:] = 0.0
    for block in range(len(path) - 1):
        arc = (known.kind_of[block] * devices + path[block]) * devices + path[block + 1]
        used += known.share[best[arc]]
    return total


@compiled
def best_prices(known: ColumnArrays, radius: float, accuracy: float) -> tuple[FloatArray, float]:
    """Maximises the Lagrangian bound over prices by the ellipsoid method with deep cuts.

    The bound at a price is the cheapest path minus what all memory would bring; it is concave, and
    what a path uses beyond the memory is a subgradient (Bland, Goldfarb and Todd 1981).

    Args:
      known: the columns that exist so far.
      radius: of the ball around 0 that is searched, in ticks.
      accuracy: of the bound, in ticks, at which the search may end.

    Returns:
      (devices,) the price of each device's whole memory, and the bound over these columns.
    """
    devices = known.share.shape[1]
    used = np.zeros(devices)
    centre = np.zeros(devices)
    best_price = np.zeros(devices)
    best = cheapest_way(known, best_price, used)
    if best == np.inf:
        return best_price, best
    shape = np.eye(devices) * radius**2
    slope = np.zeros(devices)
    for _ in range(_ROUNDS_PER_DIMENSION * devices * devices):
        negative = np.argmin(centre)
        if centre[negative] < 0:
            slope[:] = 0.0
            slope[negative] = 1.0
            depth = -centre[negative]
        else:
            value = cheapest_way(known, centre, used) - centre.sum()
            slope[:] = used - 1.0
            if value > best:
                best = value
                best_price[:] = centre
            depth = best - value
        width = np.sqrt(max(float(slope @ shape @ slope), 0.0))
        if width <= accuracy or depth >= width:
            break
        _cut(centre, shape, shape @ slope / width, depth / width)
    return best_price, best


@compiled
def _cut(centre: FloatArray, shape: FloatArray, step: FloatArray, depth: float) -> None:
    """The least ellipsoid around what a deep cut leaves of another one, in place.

    Args:
      centre: of the ellipsoid.
      shape: (devices, devices), its matrix.
      step: from the centre to its border, across the cut.
      depth: of the cut, as a share of that step.
    """
    if len(centre) == 1:
        centre += step * (1 + depth) / 2
        shape *= ((1 - depth) / 2) ** 2
        return
    size = float(len(centre))
    centre += step * (1 + size * depth) / (size + 1)
    factor = 2 * (1 + size * depth) / ((size + 1) * (1 + depth))
    growth = size**2 / (size**2 - 1) * (1 - depth**2)
    shape[:] = growth * (shape - factor * np.outer(step, step))

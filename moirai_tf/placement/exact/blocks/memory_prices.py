"""Prices of memory that make the cheapest way through all blocks as dear as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.exact.blocks.block_pool import Column, Pool
from moirai_tf.placement.problem import IntArray

_ROUNDS_PER_DIMENSION = 120
_DIVE_STEPS = 100
_DIVE_RADIUS = 0.5


class Choices(NamedTuple):
    """Columns as arrays, those of one arc together."""

    kind_of: IntArray
    """Class of each block."""
    first: IntArray
    """Columns of arc (class, entry, exit) begin at `first[(class * K + entry) * K + exit]`."""
    ticks: FloatArray
    share: FloatArray
    """(columns, devices): memory over the device's capacity."""
    entry: IntArray
    exit: IntArray


def choices(
    pool: Pool,
    columns: Sequence[Column],
    capacity: tuple[int, ...],
    price: FloatArray | None = None,
) -> tuple[Choices, list[Column]]:
    """Columns of a pool as arrays, and in the arrays' order: by arc, the cheapest first."""
    count = pool.devices
    rates = np.zeros(count) if price is None else price / np.maximum(capacity, 0.5)

    def rank(column: Column) -> tuple[int, int, int, float]:
        return (*column[:3], column.ticks + float(rates @ column.memory_bytes))

    columns = sorted(columns, key=rank)
    arcs = [(c.kind * count + c.entry) * count + c.exit for c in columns]
    sizes = np.bincount(arcs, minlength=len(pool.kinds) * count * count)
    first = np.zeros(len(sizes) + 1, dtype=np.int64)
    first[1:] = np.cumsum(sizes)
    room = np.maximum(np.array(capacity, dtype=np.float64), 0.5)
    memory = np.array([c.memory_bytes for c in columns], dtype=np.float64)
    return (
        Choices(
            kind_of=pool.kind_of,
            first=first,
            ticks=np.array([c.ticks for c in columns], dtype=np.float64),
            share=memory / room,
            entry=np.array([c.entry for c in columns], dtype=np.int64),
            exit=np.array([c.exit for c in columns], dtype=np.int64),
        ),
        columns,
    )


@compiled
def cheapest(
    chosen_from: Choices, price: FloatArray, begin: int, start: int, chosen: IntArray
) -> float:
    """The cheapest path over the columns: its cost, and the column of each block.

    Args:
      chosen_from: the columns.
      price: of each device's whole memory.
      begin: the first block of the path.
      start: device before it; -1 for any.
      chosen: output, one column per block from `begin`; -1 for all if there is no path.
    """
    devices = chosen_from.share.shape[1]
    blocks = len(chosen_from.kind_of)
    arcs = len(chosen_from.first) - 1
    cost = np.full(arcs, np.inf)
    best = np.full(arcs, -1, dtype=np.int64)
    for arc in range(arcs):
        for column in range(chosen_from.first[arc], chosen_from.first[arc + 1]):
            total = chosen_from.ticks[column]
            for device in range(devices):
                total += price[device] * chosen_from.share[column, device]
            if total < cost[arc]:
                cost[arc] = total
                best[arc] = column
    least = np.zeros(devices)
    if start >= 0:
        least[:] = np.inf
        least[start] = 0.0
    came = np.full((blocks, devices), -1, dtype=np.int64)
    for block in range(begin, blocks):
        following = np.full(devices, np.inf)
        for before in range(devices):
            base = (chosen_from.kind_of[block] * devices + before) * devices
            for after in range(devices):
                if least[before] + cost[base + after] < following[after]:
                    following[after] = least[before] + cost[base + after]
                    came[block, after] = best[base + after]
        least = following
    end = int(np.argmin(least))
    total = float(least[end])
    chosen[begin:] = -1
    if total == np.inf:
        return total
    for block in range(blocks - 1, begin - 1, -1):
        chosen[block] = came[block, end]
        end = chosen_from.entry[chosen[block]]
    return total


@compiled
def best_prices(
    chosen_from: Choices,
    centre: FloatArray,
    radius: float,
    room: FloatArray,
    begin: int,
    start: int,
    accuracy: float,
) -> tuple[FloatArray, float]:
    """Maximises the Lagrangian bound over prices by the ellipsoid method with deep cuts.

    The bound at a price is the cheapest path minus what the room would bring; it is concave, and
    what a path uses beyond the room is a subgradient (Bland, Goldfarb and Todd 1981).

    Args:
      chosen_from: the columns that exist so far.
      centre: where the search begins.
      radius: of the ball around it that is searched.
      room: share of each device's memory that the path may use.
      begin: the first block of the path.
      start: device before it; -1 for any.
      accuracy: of the bound, at which the search may end.

    Returns:
      The price of each device's whole memory, and the bound over these columns.
    """
    devices = chosen_from.share.shape[1]
    chosen = np.zeros(len(chosen_from.kind_of), dtype=np.int64)
    centre = centre.copy()
    best_price = np.zeros(devices)
    best = cheapest(chosen_from, best_price, begin, start, chosen)
    shape = np.eye(devices) * radius**2
    slope = np.zeros(devices)
    for _ in range(_ROUNDS_PER_DIMENSION * devices * devices):
        negative = np.argmin(centre)
        if centre[negative] < 0:
            slope[:] = 0.0
            slope[negative] = 1.0
            depth = -centre[negative]
        else:
            value = cheapest(chosen_from, centre, begin, start, chosen)
            slope[:] = -room
            for column in chosen[begin:]:
                slope += chosen_from.share[column]
            for device in range(devices):
                value -= centre[device] * room[device]
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


@compiled
def dive(chosen_from: Choices, price: FloatArray, accuracy: float, chosen: IntArray) -> None:
    """Fixes a few blocks at a time, with prices for the room that is left for the others.

    Args:
      chosen_from: the columns.
      price: of each device's whole memory, for all blocks.
      accuracy: of the bounds.
      chosen: output: column of each block; their memory need not suffice.
    """
    blocks = len(chosen_from.kind_of)
    room = np.ones(len(price))
    chunk = 1 + blocks // _DIVE_STEPS
    start = -1
    radius = _DIVE_RADIUS * price.max() + accuracy
    for begin in range(0, blocks, chunk):
        price, _ = best_prices(chosen_from, price, radius, room, begin, start, accuracy)
        cheapest(chosen_from, price, begin, start, chosen)
        for block in range(begin, min(begin + chunk, blocks)):
            room -= chosen_from.share[chosen[block]]
            start = chosen_from.exit[chosen[block]]

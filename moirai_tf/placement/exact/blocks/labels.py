"""One column per block within memory: labels, bounded from below by prices.

A label is a way through the first blocks: the device it ends on, its time and the memory it uses.
Every column of the next block extends it. Whatever a label leads to costs at least the cheapest
way through the other blocks at any prices, less what its free memory brings, so a label whose
bound reaches a cutoff is of no use. Of labels with equal device and memory the fastest is enough.
If too many are left, those of least bound stay and the bounds of the others are remembered: the
search is then a beam search, and still proves something.

Source: label setting for resource constrained shortest paths with Lagrangian bounds (Dumitrescu
and Boland 2003); with a limited width, restricted decision diagrams (Bergman, Cire, van Hoeve and
Hooker 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.deadline import Deadline
from moirai_tf.placement.exact.blocks.block_pool import Column
from moirai_tf.placement.exact.blocks.memory_prices import Choices, best_prices
from moirai_tf.placement.problem import IntArray

_PARTS, _SCARCE, _AMPLE, _RADIUS = 6, 0.75, 1.25, 1.0
"""Prices are also sought for later parts of the blocks, with less or more room on one device."""
_CROWD = 4
"""Room for labels, as a multiple of the width."""
_ROUNDING, _USUAL = 2**-4, 2**46
"""Ticks, far above the rounding of one sum, where all a way costs is at most so many."""


class Guide(NamedTuple):
    """Several prices for memory, and what everything costs at each."""

    price: FloatArray
    """(prices, devices): of each device's whole memory."""
    cost: FloatArray
    """(prices, columns): time and price of a column's memory."""
    rest: FloatArray
    """(prices, blocks + 1, devices): cheapest way from before a block to the end."""


class Labels(NamedTuple):
    """Ways through the first blocks; the arrays are longer than their number."""

    device: IntArray
    ticks: FloatArray
    """Whole numbers."""
    used: FloatArray
    """(labels, devices): bytes, whole numbers."""
    bound: FloatArray
    parent: IntArray
    """Label before the last block."""
    column: IntArray
    """Of the last block."""
    slots: IntArray
    """Hash table of labels by device and memory."""
    counts: FloatArray
    """(3,): number of labels, the limit on bounds, the least bound of what was dropped."""


@compiled
def guide(chosen_from: Choices, price: FloatArray) -> Guide:
    """Costs of all columns and ways at some prices, (prices, devices)."""
    prices, devices = price.shape
    blocks, columns = len(chosen_from.kind_of), len(chosen_from.ticks)
    cost = np.empty((prices, columns))
    rest = np.zeros((prices, blocks + 1, devices))
    for p in range(prices):
        arc_cost = np.full(len(chosen_from.first) - 1, np.inf)
        for arc in range(len(arc_cost)):
            for column in range(chosen_from.first[arc], chosen_from.first[arc + 1]):
                total = chosen_from.ticks[column]
                for device in range(devices):
                    total += price[p, device] * chosen_from.share[column, device]
                cost[p, column] = total
                arc_cost[arc] = min(arc_cost[arc], total)
        for block in range(blocks - 1, -1, -1):
            for device in range(devices):
                base = (chosen_from.kind_of[block] * devices + device) * devices
                least = np.inf
                for after in range(devices):
                    least = min(least, arc_cost[base + after] + rest[p, block + 1, after])
                rest[p, block, device] = least
    return Guide(price, cost, rest)


def several_prices(
    chosen_from: Choices, price: FloatArray, accuracy: float, deadline: Deadline
) -> FloatArray:
    """(prices, devices): the given ones, then the best for later blocks and other rooms.

    Args:
      chosen_from: the columns.
      price: the best for all blocks.
      accuracy: of the bounds.
      deadline: asked before each search for prices.

    Raises:
      OutOfTimeError: when the deadline passes.
    """
    blocks, devices = len(chosen_from.kind_of), len(price)
    radius = _RADIUS * float(price.max()) + accuracy
    found = [price]
    for begin in sorted({blocks * part // _PARTS for part in range(_PARTS)}):
        for other in range(-devices, devices + 1):
            deadline.check()
            room = np.full(devices, 1 - begin / blocks)
            if other:
                room[abs(other) - 1] *= _SCARCE if other < 0 else _AMPLE
            found.append(best_prices(chosen_from, price, radius, room, begin, -1, accuracy)[0])
    return np.array(found)


def shortest(
    chosen_from: Choices,
    columns: list[Column],
    capacity: tuple[int, ...],
    price: FloatArray,
    cutoff: int,
    width: int,
    deadline: Deadline,
) -> tuple[list[Column] | None, int]:
    """The fastest way of less than `cutoff` ticks within memory.

    Args:
      chosen_from: `columns` as arrays, those of an arc in order of cost at the first prices.
      columns: what may be chosen.
      capacity: bytes of each device.
      price: (prices, devices), of each device's whole memory.
      cutoff: ticks.
      width: labels that are kept at each block.
      deadline: asked at each block.

    Returns:
      The best way found, if any, and ticks that no way below the cutoff is faster than.

    Raises:
      OutOfTimeError: when the deadline passes.
    """
    blocks, devices = len(chosen_from.kind_of), len(capacity)
    memory = np.array([column.memory_bytes for column in columns], dtype=np.float64)
    room = np.array(capacity, dtype=np.float64)
    guided = guide(chosen_from, price)
    margin = _ROUNDING * (blocks + devices) * max(1.0, cutoff / _USUAL)
    labels, following = (_new_labels(_CROWD * width, devices) for _ in range(2))
    labels.counts[:] = devices, cutoff, np.inf
    labels.device[:devices] = np.arange(devices)
    steps = []
    least = np.inf
    for block in range(blocks):
        deadline.check()
        extend(chosen_from, memory, room, guided, block, labels, following, cutoff + margin, width)
        count = int(following.counts[0])
        least = min(least, following.counts[2])
        steps.append((following.parent[:count].copy(), following.column[:count].copy()))
        labels, following = following, labels
    bound = min(cutoff, int(np.ceil(min(least, cutoff + margin) - margin)))
    if not labels.counts[0]:
        return None, bound
    last = int(np.argmin(labels.ticks[: int(labels.counts[0])]))
    return list(_traced(steps, last, columns))[::-1], min(bound, int(labels.ticks[last]))


def _traced(
    steps: list[tuple[IntArray, IntArray]], label: int, columns: list[Column]
) -> Iterator[Column]:
    """Columns of a way, the last first."""
    for parent, column in reversed(steps):
        yield columns[column[label]]
        label = int(parent[label])


def _new_labels(room: int, devices: int) -> Labels:
    """Room for a number of labels."""
    slots = 1 << (2 * room).bit_length()
    return Labels(
        device=np.zeros(room, dtype=np.int64),
        ticks=np.zeros(room),
        used=np.zeros((room, devices)),
        bound=np.zeros(room),
        parent=np.zeros(room, dtype=np.int64),
        column=np.zeros(room, dtype=np.int64),
        slots=np.zeros(slots, dtype=np.int64),
        counts=np.zeros(3),
    )


@compiled
def extend(
    chosen_from: Choices,
    memory: FloatArray,
    capacity: FloatArray,
    guided: Guide,
    block: int,
    labels: Labels,
    following: Labels,
    cutoff: float,
    width: int,
) -> None:
    """All extensions of labels by one block that may lead below a cutoff, at most `width` of them.

    Args:
      chosen_from: the columns, those of an arc in order of their cost at the first prices.
      memory: (columns, devices), in bytes.
      capacity: of each device, in bytes.
      guided: prices.
      block: the block.
      labels: ways up to it.
      following: output: ways through it.
      cutoff: only less time is of interest.
      width: labels to keep; the output has room for at least one more.
    """
    prices, devices = guided.price.shape
    following.counts[0], following.counts[1], following.counts[2] = 0.0, cutoff, np.inf
    following.slots[:] = -1
    base = np.empty(prices)
    for label in range(int(labels.counts[0])):
        for p in range(prices):
            base[p] = labels.ticks[label]
            for device in range(devices):
                share = labels.used[label, device] / max(capacity[device], 0.5)
                base[p] -= guided.price[p, device] * (1 - share)
        for after in range(devices):
            arc = (chosen_from.kind_of[block] * devices + labels.device[label]) * devices + after
            for column in range(chosen_from.first[arc], chosen_from.first[arc + 1]):
                least = base[0] + guided.cost[0, column] + guided.rest[0, block + 1, after]
                if least >= following.counts[1]:  # as are all later columns of the arc
                    following.counts[2] = min(following.counts[2], least)
                    break
                bound = _bound(guided, base, column, block + 1, after, following.counts[1])
                if bound >= following.counts[1]:
                    following.counts[2] = min(following.counts[2], bound)
                elif _fits(memory, capacity, labels, label, column):
                    ticks = labels.ticks[label] + chosen_from.ticks[column]
                    _insert(memory, labels, label, column, after, ticks, bound, following)
                    if following.counts[0] == len(following.ticks):
                        _shrink(following, width)
    if following.counts[0] > width:
        _shrink(following, width)


@compiled
def _bound(
    guided: Guide, base: FloatArray, column: int, stage: int, device: int, enough: float
) -> float:
    """The best bound that any prices prove for an extension; stops where it is `enough`."""
    best = 0.0
    for p in range(len(base)):
        best = max(best, base[p] + guided.cost[p, column] + guided.rest[p, stage, device])
        if best >= enough:
            break
    return best


@compiled
def _fits(
    memory: FloatArray, capacity: FloatArray, labels: Labels, label: int, column: int
) -> bool:
    for device in range(len(capacity)):
        if labels.used[label, device] + memory[column, device] > capacity[device]:
            return False
    return True


@compiled
def _slot(following: Labels, device: int, used: FloatArray) -> int:
    """Where a label of this device and memory is in the table, or may be put."""
    key = device
    for size in used:
        key = key * 1_000_003 + int(size)
    key *= 2_654_435_761
    slot = (key ^ (key >> 29)) & (len(following.slots) - 1)
    while following.slots[slot] >= 0:
        place = following.slots[slot]
        same = following.device[place] == device
        for k in range(len(used)):
            same = same and following.used[place, k] == used[k]
        if same:
            break
        slot = (slot + 1) & (len(following.slots) - 1)
    return slot


@compiled
def _insert(
    memory: FloatArray,
    labels: Labels,
    label: int,
    column: int,
    device: int,
    ticks: float,
    bound: float,
    following: Labels,
) -> None:
    """Adds a label unless one of the same device and memory is as fast."""
    used = labels.used[label] + memory[column]
    slot = _slot(following, device, used)
    place = following.slots[slot]
    if place < 0:
        place = int(following.counts[0])
        following.counts[0] += 1
        following.slots[slot] = place
        following.device[place] = device
        following.used[place] = used
    elif following.ticks[place] <= ticks:
        return
    following.ticks[place] = ticks
    following.bound[place] = bound
    following.parent[place] = label
    following.column[place] = column


@compiled
def _shrink(following: Labels, width: int) -> None:
    """Keeps the labels of least bound, and remembers the least bound of the others."""
    count = int(following.counts[0])
    limit = np.partition(following.bound[:count], width)[width]
    following.counts[1] = limit
    following.counts[2] = min(following.counts[2], limit)
    following.slots[:] = -1
    kept = 0
    for place in range(count):
        if following.bound[place] >= limit:
            continue
        following.device[kept] = following.device[place]
        following.ticks[kept] = following.ticks[place]
        following.used[kept] = following.used[place]
        following.bound[kept] = following.bound[place]
        following.parent[kept] = following.parent[place]
        following.column[kept] = following.column[place]
        following.slots[_slot(following, following.device[kept], following.used[kept])] = kept
        kept += 1
    following.counts[0] = kept

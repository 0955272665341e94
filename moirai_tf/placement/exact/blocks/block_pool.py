"""What block searches have found so far, and shortest paths through layers of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.exact.blocks.block import NEVER, NOBODY, Block, BlockClass
from moirai_tf.placement.exact.blocks.search import Found, search_block
from moirai_tf.placement.problem import BoolArray, IntArray

ORDER_NODES = 5_000
"""Of each search over orders."""
_FIRST_NODES, _GROWTH = 3_000, 10
_NODES_PER_S = 20_000
"""Fewer than are searched in a second, so that no search goes far beyond the deadline."""
_PRICE_SHIFT = 30
"""Prices per byte are multiples of 2**-30 ticks, so that sums of prices are exact."""
_MOST_PRICE = 2**50
"""Of an operator; more than any good schedule pays."""


Costs = npt.NDArray[np.number[Any]]
"""(classes, devices, devices) of a block from its entry's to its exit's device; NEVER if none."""
Arc = tuple[int, int, int]
"""Class of a block, devices of its entry and of its exit."""


class Column(NamedTuple):
    """One way to run a block."""

    kind: int
    """Index of its class."""
    entry: int
    exit: int
    ticks: int
    memory_bytes: tuple[int, ...]
    """Per device."""
    device: tuple[int, ...]
    """Of each operator of the block."""


@dataclass(frozen=True)
class Prices:
    """What a byte costs on each device, as a multiple of 2**-30 ticks; exact sums follow."""

    shifted: tuple[int, ...]

    @classmethod
    def of(cls, ticks_per_byte: list[float]) -> Prices:
        """Rounded, at least 0."""
        return cls(tuple(max(0, round(price * 2**_PRICE_SHIFT)) for price in ticks_per_byte))

    def of_operators(self, kind: BlockClass) -> IntArray:
        """(operators, devices) in ticks, rounded down; sums of them fit 64 bits."""
        rows = [
            [min(_MOST_PRICE, (price * size) >> _PRICE_SHIFT) for price in self.shifted]
            for size in kind.data.memory.tolist()
        ]
        return np.array(rows, dtype=np.int64)

    def of_bytes(self, sizes: tuple[int, ...]) -> int:
        """Ticks for an amount on each device, rounded up."""
        total = sum(price * size for price, size in zip(self.shifted, sizes, strict=True))
        return -((-total) >> _PRICE_SHIFT)


@dataclass
class BlockPool:
    """Columns found for every class, entry and exit device."""

    blocks: list[Block]
    devices: int
    deadline: Deadline
    kinds: list[BlockClass] = field(init=False)
    kind_of: IntArray = field(init=False)
    """Class of each block."""
    arcs: dict[Arc, BoolArray] = field(init=False, default_factory=dict)
    """Devices allowed for every possible (class, entry device, exit device)."""
    columns: list[Column] = field(init=False, default_factory=list)
    _known: set[tuple[int, int, int, int, tuple[int, ...]]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        index: dict[int, int] = {}
        self.kinds = []
        for block in self.blocks:
            if id(block.kind) not in index:
                index[id(block.kind)] = len(self.kinds)
                self.kinds.append(block.kind)
        self.kind_of = np.array([index[id(block.kind)] for block in self.blocks], dtype=np.int64)
        for number, kind in enumerate(self.kinds):
            for entry in kind.entries:
                for exit_device in kind.exits:
                    allowed = kind.between(entry, exit_device)
                    if allowed is not None:
                        self.arcs[number, entry, exit_device] = allowed

    def add(self, kind: int, ticks: int, device: list[int]) -> Column:
        """Keeps a way to run a block of a class."""
        memory = [0] * self.devices
        for place, size in zip(device, self.kinds[kind].data.memory.tolist(), strict=True):
            memory[place] += size
        column = Column(kind, device[0], device[-1], ticks, tuple(memory), tuple(device))
        if column[:5] not in self._known:
            self._known.add(column[:5])
            self.columns.append(column)
        return column

    def orders(self, column: Column) -> Found:
        """The starts of a column's operators and transfers."""
        return self._played(column.kind, column.device, column.ticks + 1)

    def add_schedule(self, assignment: Sequence[int]) -> None:
        """Adds the columns of a schedule's assignment, where blocks allow them."""
        known = set()
        for block, kind in zip(self.blocks, self.kind_of.tolist(), strict=True):
            device = tuple(0 if o == NOBODY else assignment[o] for o in block.operators)
            able = self.arcs.get((kind, device[0], device[-1]))
            if (kind, device) in known or able is None:
                continue
            known.add((kind, device))
            self.deadline.check()
            self._add_played(kind, device, able)

    def add_changes_of_device(self, most: int) -> None:
        """Adds the columns that go from the entry's to the exit's device at one place.

        Args:
          most: of them; with more, only those that change at either end of a block.

        Raises:
          OutOfTimeError: when the deadline passes.
        """
        sizes = [len(self.kinds[kind].data.unit) for kind, _, _ in self.arcs]
        step = 1 if sum(sizes) <= most else max(sizes)
        for (kind, entry, exit_device), allowed in self.arcs.items():
            self.deadline.check()
            count = len(allowed)
            places = {count - 1} if entry == exit_device else {*range(1, count, step), count - 1}
            for place in places:
                device = (entry,) * place + (exit_device,) * (count - place)
                self._add_played(kind, device, allowed)

    def _add_played(self, kind: int, device: tuple[int, ...], allowed: BoolArray) -> None:
        """Adds the column of given devices, if they are allowed and fit."""
        if allowed[np.arange(len(device)), device].all():
            found = self._played(kind, device, NEVER)
            if found.value < NEVER:
                self.add(kind, found.value, list(device))

    def _played(self, kind: int, device: tuple[int, ...], cutoff: int) -> Found:
        """The best orders for given devices."""
        data = self.kinds[kind].data
        fixed = np.zeros(data.compute.shape, dtype=np.bool_)
        fixed[np.arange(len(device)), device] = True
        free = np.zeros_like(data.compute)
        return search_block(data, fixed, free, cutoff, NEVER, ORDER_NODES)


class PricedArcs:
    """Bounds and best columns of all arcs (class, entry, exit) at one set of prices."""

    def __init__(self, pool: BlockPool, prices: Prices) -> None:
        self.pool = pool
        self.prices = prices
        shape = (len(pool.kinds), pool.devices, pool.devices)
        self.lower = np.full(shape, NEVER, dtype=np.int64)
        self.upper = np.full(shape, NEVER, dtype=np.int64)
        self.best: dict[Arc, Column] = {}
        self.price = [prices.of_operators(kind) for kind in pool.kinds]
        self.complete: dict[Arc, int] = {}
        """Costs below which no useful column of an arc is missing in the pool."""
        self._limit: dict[Arc, int] = {}
        self._stuck: set[Arc] = set()
        """Arcs that more nodes do not help."""
        self.closed = False
        """Whether `close` has come to its end."""
        self.add_known()
        for arc in pool.arcs:
            pool.deadline.check()
            self.lower[arc] = self._search(arc, NEVER, 0).bound

    def close(self, allowance: float) -> None:
        """Solves the arcs of the shortest path by lower bounds until it is proved.

        Raises:
          OutOfTimeError: when the deadline passes.
        """
        while True:
            bound, path = self.shortest(self.lower)
            cost = self.shortest(self.upper)[0]
            arcs = {arc for arc in self._arcs(path) if self.lower[arc] < self.upper[arc]}
            arcs -= self._stuck
            if cost - bound <= allowance * cost or not arcs:
                self.closed = True
                return
            least = min(self._limit.get(arc, 0) for arc in arcs)
            for arc in sorted(arcs):
                if self._limit.get(arc, 0) == least:
                    self.pool.deadline.check()
                    self._solve(arc)

    def add_known(self) -> None:
        """Takes the pool's columns into account."""
        for column in self.pool.columns:
            self._keep(column)

    def limits(self, cutoff: int) -> IntArray:
        """What a column of each arc must cost less than, in a way of a cost below a cutoff."""
        return cutoff - cheapest_around(self.lower, self.pool.kind_of)

    def cost(self, column: Column) -> int:
        """Time and price of a column."""
        places = np.array(column.device)
        price = self.price[column.kind]
        return column.ticks + int(price[np.arange(len(places)), places].sum())

    @property
    def bound(self) -> int:
        """No way through all blocks costs less."""
        return self.shortest(self.lower)[0]

    def path(self) -> list[Column] | None:
        """The cheapest known way through all blocks, if any is known yet."""
        cost, devices = self.shortest(self.upper)
        return None if cost >= NEVER else [self.best[arc] for arc in self._arcs(devices)]

    def shortest(self, cost: IntArray) -> tuple[int, IntArray]:
        """Cost of a shortest path, and the device before each block and after the last."""
        devices, total = shortest_path(cost, self.pool.kind_of)
        return int(total), devices

    def _arcs(self, devices: IntArray) -> list[Arc]:
        kinds, ends = self.pool.kind_of.tolist(), devices.tolist()
        return list(zip(kinds, ends[:-1], ends[1:], strict=True))

    def _keep(self, column: Column) -> None:
        cost = self.cost(column)
        arc = column[:3]
        if cost < self.upper[arc]:
            self.upper[arc] = cost
            self.best[arc] = column

    def _search(self, arc: Arc, cutoff: int, nodes: int) -> Found:
        return search_block(
            self.pool.kinds[arc[0]].data,
            self.pool.arcs[arc],
            self.price[arc[0]],
            cutoff,
            nodes,
            ORDER_NODES,
        )

    def _solve(self, arc: Arc) -> None:
        """Improves an arc's bounds; a cost that no better path could use is not looked for.

        A path through the arc costs at least the arc and shortest ways before and after it.
        """
        nodes = self._limit.get(arc, 0) * _GROWTH or _FIRST_NODES
        self._limit[arc] = nodes
        nodes = min(nodes, int(_NODES_PER_S * self.pool.deadline.remaining_s()))
        cost = self.shortest(self.upper)[0]
        around = int(cheapest_around(self.lower, self.pool.kind_of)[arc])
        cutoff = min(int(self.upper[arc]), max(cost - around, int(self.lower[arc])))
        found = self._search(arc, cutoff, nodes)
        if found.nodes <= nodes and found.bound <= self.lower[arc] and found.value >= cutoff:
            self._stuck.add(arc)
        self.lower[arc] = max(self.lower[arc], found.bound)
        if found.value < cutoff:
            data = self.pool.kinds[arc[0]].data
            ticks = int(found.start[-1] + data.compute[-1, found.device[-1]])
            self._keep(self.pool.add(arc[0], ticks, found.device.tolist()))


@compiled
def costs_to_end(cost: Costs, kind_of: IntArray) -> Costs:
    """(blocks + 1, devices): least cost from a device before a block to the end, at most NEVER.

    Args:
      cost: of an arc.
      kind_of: (blocks,): class of each.
    """
    blocks, devices = len(kind_of), cost.shape[1]
    least = np.zeros((blocks + 1, devices), dtype=cost.dtype)
    for block in range(blocks - 1, -1, -1):
        for before in range(devices):
            best = least.dtype.type(NEVER)
            for after in range(devices):
                best = min(best, cost[kind_of[block], before, after] + least[block + 1, after])
            least[block, before] = best
    return least


@compiled
def shortest_path(cost: Costs, kind_of: IntArray) -> tuple[IntArray, int | float]:
    """Devices before each block and after the last on a shortest path, and its cost.

    Args:
      cost: of an arc.
      kind_of: (blocks,): class of each.
    """
    least = costs_to_end(cost, kind_of)
    path = np.zeros(len(kind_of) + 1, dtype=np.int64)
    path[0] = np.argmin(least[0])
    for block in range(len(kind_of)):
        path[block + 1] = np.argmin(cost[kind_of[block], path[block]] + least[block + 1])
    return path, least[0, path[0]]


@compiled
def cheapest_around(cost: IntArray, kind_of: IntArray) -> IntArray:
    """For each arc the least cost of the rest of a path that uses it for a block of its class."""
    devices = cost.shape[1]
    after = costs_to_end(cost, kind_of)
    before = costs_to_end(cost.transpose((0, 2, 1)).copy(), kind_of[::-1].copy())[::-1]
    least = np.full(cost.shape, NEVER, dtype=np.int64)
    for block in range(len(kind_of)):
        for device in range(devices):
            for other in range(devices):
                rest = before[block, device] + after[block + 1, other]
                arc = least[kind_of[block], device]
                arc[other] = min(arc[other], rest)
    return least

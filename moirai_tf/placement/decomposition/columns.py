"""What block searches have found so far, and shortest paths over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from moirai_tf.placement.decomposition.assignment import NEVER, Found, search_block
from moirai_tf.placement.decomposition.blocks import Block, BlockClass
from moirai_tf.placement.decomposition.compiled import compiled
from moirai_tf.placement.deadline import Deadline
from moirai_tf.placement.problem import BoolArray, IntArray

_SEQUENCE_NODES = 5_000
_FIRST_NODES, _GROWTH = 3_000, 10
_PRICE_SHIFT = 30
"""Prices per byte are multiples of 2**-30 ticks, so that sums of prices are exact."""


class Column(NamedTuple):
    """One way to run a block."""

    kind: int
    """Index of its class."""
    entry: int
    exit: int
    ticks: int
    memory_bytes: tuple[int, ...]
    """Per device."""
    found: Found


@dataclass(frozen=True)
class Prices:
    """What a byte costs on each device, as a multiple of 2**-30 ticks."""

    shifted: tuple[int, ...]

    @classmethod
    def of(cls, ticks_per_byte: list[float]) -> Prices:
        """Rounded, at least 0."""
        return cls(tuple(max(0, round(price * 2**_PRICE_SHIFT)) for price in ticks_per_byte))

    def of_operators(self, kind: BlockClass) -> IntArray:
        """(operators, devices) in ticks, rounded down."""
        rows = [
            [(price * size) >> _PRICE_SHIFT for price in self.shifted]
            for size in kind.memory_bytes.tolist()
        ]
        return np.array(rows, dtype=np.int64)

    def of_bytes(self, sizes: tuple[int, ...]) -> int:
        """Ticks for an amount on each device, rounded up."""
        total = sum(price * size for price, size in zip(self.shifted, sizes, strict=True))
        return -(-total // 2**_PRICE_SHIFT)


@dataclass
class Pool:
    """Columns found for every class, entry and exit device."""

    blocks: list[Block]
    devices: int
    deadline: Deadline
    kinds: list[BlockClass] = field(init=False)
    kind_of: IntArray = field(init=False)
    """Class of each block."""
    columns: list[Column] = field(init=False, default_factory=list)
    _known: set[tuple[int, int, int, int, tuple[int, ...]]] = field(
        init=False, default_factory=set
    )

    def __post_init__(self) -> None:
        index: dict[int, int] = {}
        self.kinds = []
        for block in self.blocks:
            if id(block.kind) not in index:
                index[id(block.kind)] = len(self.kinds)
                self.kinds.append(block.kind)
        self.kind_of = np.array([index[id(block.kind)] for block in self.blocks], dtype=np.int64)
        self._allowed: dict[tuple[int, int, int], BoolArray] = {}
        for number, kind in enumerate(self.kinds):
            for entry in kind.entries:
                for exit_device in kind.exits:
                    allowed = kind.between(entry, exit_device)
                    if allowed is not None:
                        self._allowed[number, entry, exit_device] = allowed

    def price(self, prices: Prices, allowance: float) -> Priced:
        """The cheapest way through all blocks at given prices.

        Args:
          prices: of memory.
          allowance: relative gap between path and bound that is good enough.
        """
        run = Priced(self, prices)
        run.close(allowance)
        return run

    def add(self, kind: int, entry: int, exit_device: int, found: Found) -> Column:
        """Keeps what a search found."""
        block = self.kinds[kind]
        memory = [0] * self.devices
        for device, size in zip(found.device.tolist(), block.memory_bytes.tolist(), strict=True):
            memory[device] += size
        ticks = int(found.start[-1] + block.data.compute[-1, found.device[-1]])
        column = Column(kind, entry, exit_device, ticks, tuple(memory), found)
        key = column[:5]
        if key not in self._known:
            self._known.add(key)
            self.columns.append(column)
        return column

    @property
    def arcs(self) -> dict[tuple[int, int, int], BoolArray]:
        """Devices allowed for every possible (class, entry device, exit device)."""
        return self._allowed


class Priced:
    """Bounds and best columns of all arcs (class, entry, exit) at one set of prices."""

    def __init__(self, pool: Pool, prices: Prices) -> None:
        self.pool = pool
        self.prices = prices
        shape = (len(pool.kinds), pool.devices, pool.devices)
        self.lower = np.full(shape, NEVER, dtype=np.int64)
        self.upper = np.full(shape, NEVER, dtype=np.int64)
        self.best: dict[tuple[int, int, int], Column] = {}
        self._price = [prices.of_operators(kind) for kind in pool.kinds]
        self._limit: dict[tuple[int, int, int], int] = {}
        for column in pool.columns:
            self._keep(column)
        for arc in pool.arcs:
            self.lower[arc] = self._search(arc, NEVER, 0).bound

    def close(self, allowance: float) -> None:
        """Solves the arcs of the shortest path by lower bounds until it is proved.

        Raises:
          OutOfTimeError: when the deadline passes.
        """
        while True:
            bound, path = self.shortest(self.lower)
            cost = self.shortest(self.upper)[0]
            if cost - bound <= allowance * cost:
                return
            arcs = {arc for arc in self._arcs(path) if self.lower[arc] < self.upper[arc]}
            if not arcs:
                return
            least = min(self._limit.get(arc, 0) for arc in arcs)
            for arc in sorted(arcs):
                if self._limit.get(arc, 0) == least:
                    self.pool.deadline.check()
                    self._solve(arc, bound)

    @property
    def bound(self) -> int:
        """No way through all blocks costs less."""
        return self.shortest(self.lower)[0]

    def path(self) -> list[Column]:
        """The cheapest known way through all blocks."""
        return [self.best[arc] for arc in self._arcs(self.shortest(self.upper)[1])]

    def shortest(self, cost: IntArray) -> tuple[int, IntArray]:
        """Cost of a shortest path, and the device before each block and after the last."""
        devices, total = shortest_path(cost, self.pool.kind_of)
        return total, devices

    def _arcs(self, devices: IntArray) -> list[tuple[int, int, int]]:
        kinds, ends = self.pool.kind_of.tolist(), devices.tolist()
        return list(zip(kinds, ends[:-1], ends[1:], strict=True))

    def _keep(self, column: Column) -> None:
        price = self._price[column.kind]
        device = column.found.device
        cost = column.ticks + int(price[np.arange(len(device)), device].sum())
        arc = column[:3]
        if cost < self.upper[arc]:
            self.upper[arc] = cost
            self.best[arc] = column

    def _search(self, arc: tuple[int, int, int], cutoff: int, nodes: int) -> Found:
        return search_block(
            self.pool.kinds[arc[0]].data,
            self.pool.arcs[arc],
            self._price[arc[0]],
            cutoff,
            nodes,
            _SEQUENCE_NODES,
        )

    def _solve(self, arc: tuple[int, int, int], bound: int) -> None:
        """Improves an arc's bounds; a cost that no better path could use is not looked at."""
        nodes = self._limit.get(arc, 0) * _GROWTH or _FIRST_NODES
        self._limit[arc] = nodes
        found = self._search(arc, int(self.upper[arc]), nodes)
        self.lower[arc] = max(self.lower[arc], found.bound)
        if found.value < self.upper[arc]:
            self._keep(self.pool.add(*arc, found))


@compiled
def shortest_path(cost: IntArray, kind_of: IntArray) -> tuple[IntArray, int]:
    """Devices before each block and after the last on a shortest path, and its cost.

    Args:
      cost: (classes, devices, devices) of a block from its entry's to its exit's device.
      kind_of: class of each block.
    """
    devices = cost.shape[1]
    blocks = len(kind_of)
    least = np.zeros((blocks + 1, devices), dtype=np.int64)
    came = np.zeros((blocks + 1, devices), dtype=np.int64)
    for block in range(blocks):
        for after in range(devices):
            best = NEVER
            for before in range(devices):
                total = least[block, before] + cost[kind_of[block], before, after]
                if total < best:
                    best = total
                    came[block + 1, after] = before
            least[block + 1, after] = best
    path = np.zeros(blocks + 1, dtype=np.int64)
    path[blocks] = np.argmin(least[blocks])
    for block in range(blocks, 0, -1):
        path[block - 1] = came[block, path[block]]
    return path, least[blocks, path[blocks]]

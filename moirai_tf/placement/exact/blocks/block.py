"""Blocks between cuts that no tensor jumps over, as arrays; equal blocks share their arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from moirai_tf.placement.evaluate.channels import congestion_code, resource_count
from moirai_tf.placement.exact.blocks.cut import Cutting
from moirai_tf.placement.problem import PER_EDGE, BoolArray, IntArray, Problem, flat

NEVER = 2**60
"""Ticks that stand for "cannot be"; above every sum of times."""
OPEN = -1
"""In place of a device: several are possible."""
NOBODY = -1
"""In place of an operator: the entry of a block that starts the graph, the exit of the last."""
_MOST_TICKS = 2**48


class BlockArrays(NamedTuple):
    """A block as arrays, its operators numbered in the order in which devices are chosen.

    The first operator is the entry, which ends at time 0, and the last one the exit.
    """

    compute: IntArray
    """(operators, devices), in ticks; never negative."""
    producer: IntArray
    """(tensors,)"""
    time: IntArray
    """(tensors, devices, devices), in ticks."""
    first_reader: IntArray
    reader: IntArray
    """Tensor t is read by `reader[first_reader[t]:first_reader[t + 1]]`."""
    first_input: IntArray
    input: IntArray
    """Operator i reads the tensors `input[first_input[i]:first_input[i + 1]]`."""
    first_output: IntArray
    output: IntArray
    """The same for those that it writes."""
    memory: IntArray
    """(operators,) bytes; 0 for the entry, which the block before counts."""
    room: IntArray
    """(devices,) bytes."""
    unit: IntArray
    """(operators,): those with the same number share a device, the first one's number."""
    per_edge: int
    congestion: int
    """Code of the mode, as `channels` takes it."""
    resources: int
    """Number of devices and of what transfers occupy."""


@dataclass(frozen=True)
class BlockClass:
    """What equal blocks have in common."""

    data: BlockArrays
    allowed: BoolArray

    @cached_property
    def entries(self) -> tuple[int, ...]:
        """Devices on which the entry can be; only 0 where there is none."""
        return tuple(np.flatnonzero(self.allowed[0]).tolist())

    @cached_property
    def exits(self) -> tuple[int, ...]:
        """Devices on which the exit can be; only 0 where there is none."""
        return tuple(np.flatnonzero(self.allowed[-1]).tolist())

    def between(self, entry: int, exit_device: int) -> BoolArray | None:
        """`allowed` with entry and exit fixed and units respected; None if that is impossible."""
        allowed = self.allowed.copy()
        allowed[0], allowed[-1] = False, False
        allowed[0, entry] = self.allowed[0, entry]
        allowed[-1, exit_device] = self.allowed[-1, exit_device]
        common = np.ones_like(allowed)
        for operator, unit in enumerate(self.data.unit):
            common[unit] &= allowed[operator]
        allowed = common[self.data.unit]
        return allowed if bool(allowed.any(axis=1).all()) else None


@dataclass(frozen=True, slots=True)
class Block:
    """The operators between two cuts, with both."""

    operators: tuple[int, ...]
    """Of the problem, in the block's numbering; NOBODY where an entry or exit is made up."""
    tensors: tuple[int, ...]
    """Of the problem; NOBODY for those that lead to a made-up exit."""
    kind: BlockClass


def split(problem: Problem, cutting: Cutting, scale: int) -> list[Block]:
    """The blocks between cuts, in order.

    Args:
      problem: a valid problem.
      cutting: where it is cut.
      scale: ticks in a nanosecond.
    """
    known: dict[bytes, BlockClass] = {}
    ends = [NOBODY, *cutting.cuts, NOBODY]
    inner = list(cutting.inner)
    if cutting.cuts and not inner[-1]:
        del ends[-1], inner[-1]
    return [
        _Builder(problem, entry, members, exit_operator, cutting.floats, scale).block(known)
        for (entry, exit_operator), members in zip(pairwise(ends), inner, strict=True)
    ]


class _Builder:
    """Makes one block's arrays."""

    def __init__(
        self,
        problem: Problem,
        entry: int,
        inner: Sequence[int],
        exit_operator: int,
        floats: frozenset[int],
        scale: int,
    ) -> None:
        self.problem = problem
        self.floats = floats
        self.scale = scale
        members = (set(inner) | {exit_operator}) - {NOBODY} - floats
        producers = [o for o in (entry, *inner) if o != NOBODY and o not in floats]
        ids = [tensor for producer in producers for tensor in problem.outgoing[producer]]
        self.edges = {
            tensor: [c for c in problem.tensors[tensor].consumers if c in members] for tensor in ids
        }
        self.edges = {tensor: readers for tensor, readers in self.edges.items() if readers}
        self.operators = (entry, *_chain_order(problem, inner, self.edges), exit_operator)

    def block(self, known: dict[bytes, BlockClass]) -> Block:
        """The block; its class is taken from `known` where an equal one is there."""
        local = {operator: i for i, operator in enumerate(self.operators) if operator != NOBODY}
        ids = sorted(self.edges, key=lambda t: (local[self.problem.tensors[t].producer], t))
        ends = [(local[self.problem.tensors[t].producer], self.edges[t]) for t in ids]
        rows = [(producer, sorted(local[c] for c in readers)) for producer, readers in ends]
        times = [self._ticks(self.problem.time_ns[t]) for t in ids]
        if self.operators[-1] == NOBODY:
            last = len(self.operators) - 1
            sinks = set(range(1, last)) - {producer for producer, _ in rows}
            rows += [(sink, [last]) for sink in sorted(sinks)]
            times += [np.zeros((len(self.problem.devices),) * 2, dtype=np.int64)] * len(sinks)
            ids += [NOBODY] * len(sinks)
        data = self._arrays(rows, times)
        allowed = self._allowed()
        key = b"|".join(np.asarray(part).tobytes() for part in (*data, allowed))
        kind = known.setdefault(key, BlockClass(data, allowed))
        return Block(self.operators, tuple(ids), kind)

    def _ticks(self, time_ns: IntArray) -> IntArray:
        """Times in ticks, at least 0; larger ones than any good schedule has may count as less."""
        return np.clip(time_ns, 0, _MOST_TICKS // self.scale) * self.scale

    def _arrays(self, rows: list[tuple[int, list[int]]], times: list[IntArray]) -> BlockArrays:
        """The arrays, given producer, readers and times of each tensor."""
        problem, count, devices = self.problem, len(self.operators), len(self.problem.devices)
        inputs: list[list[int]] = [[] for _ in range(count)]
        outputs: list[list[int]] = [[] for _ in range(count)]
        for tensor, (producer, readers) in enumerate(rows):
            outputs[producer].append(tensor)
            for reader in readers:
                inputs[reader].append(tensor)
        compute = np.zeros((count, devices), dtype=np.int64)
        memory = np.zeros(count, dtype=np.int64)
        unit = np.zeros(count, dtype=np.int64)
        first: dict[int, int] = {}
        for i, operator in enumerate(self.operators):
            known = operator != NOBODY
            unit[i] = first.setdefault(problem.unit_of[operator] if known else -1 - i, i)
            if known and i:
                memory[i] = problem.operators[operator].memory_bytes
                if operator not in self.floats:
                    compute[i] = self._ticks(problem.compute_ns[operator])
        read_by, first_reader = flat([readers for _, readers in rows])
        read, first_input = flat(inputs)
        output, first_output = flat(outputs)
        return BlockArrays(
            compute=compute,
            producer=np.array([producer for producer, _ in rows], dtype=np.int64),
            time=np.array(times, dtype=np.int64).reshape(len(rows), devices, devices),
            first_reader=first_reader,
            reader=read_by,
            first_input=first_input,
            input=read,
            first_output=first_output,
            output=output,
            memory=memory,
            room=np.array(problem.capacity_bytes, dtype=np.int64),
            unit=unit,
            per_edge=int(problem.transfers == PER_EDGE),
            congestion=congestion_code(problem.congestion),
            resources=resource_count(problem.congestion, devices),
        )

    def _allowed(self) -> BoolArray:
        """(operators, devices); made-up ends are on device 0."""
        allowed = np.zeros((len(self.operators), len(self.problem.devices)), dtype=np.bool_)
        allowed[:, 0] = True
        for i, operator in enumerate(self.operators):
            if operator != NOBODY:
                allowed[i] = self.problem.runnable[operator]
        return allowed


def _chain_order(problem: Problem, inner: Sequence[int], edges: dict[int, list[int]]) -> list[int]:
    """Inner operators, producers first, each path followed to its end, the longest path first.

    Devices chosen along a path make its length known early, which bounds need.
    """
    inside = set(inner)
    successors: dict[int, list[int]] = {operator: [] for operator in inner}
    waiting = dict.fromkeys(inner, 0)
    for tensor, readers in edges.items():
        producer = problem.tensors[tensor].producer
        for reader in readers:
            if producer in inside and reader in inside:
                successors[producer].append(reader)
                waiting[reader] += 1
    tail: dict[int, int] = {}
    for operator in reversed(inner):
        work = min(time for time in problem.operators[operator].compute_ns if time is not None)
        tail[operator] = work + max((tail[s] for s in successors[operator]), default=0)
    position = problem.topological_position
    stack = sorted((o for o in inner if not waiting[o]), key=lambda o: (tail[o], -position[o]))
    order = []
    while stack:
        operator = stack.pop()
        order.append(operator)
        released = []
        for successor in successors[operator]:
            waiting[successor] -= 1
            if waiting[successor] == 0:
                released.append(successor)
        stack += sorted(released, key=lambda o: (tail[o], -position[o]))
    return order

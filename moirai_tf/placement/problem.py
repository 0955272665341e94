"""The placement problem as frozen values, with the views of it that solvers share.

Times are integer nanoseconds and memory is integer bytes, so that every check is exact.
Operators, devices and tensors are named by their index everywhere but in files and messages.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from moirai_tf.placement.evaluate.channels import CONGESTION_MODES as CONGESTION_MODES
from moirai_tf.placement.evaluate.channels import LINK as LINK
from moirai_tf.placement.evaluate.channels import NONE as NONE
from moirai_tf.placement.evaluate.channels import PORT as PORT
from moirai_tf.placement.evaluate.channels import congestion_code, resource_count

if TYPE_CHECKING:
    import networkx as nx

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PER_TENSOR, PER_EDGE = "per_tensor", "per_edge"
TRANSFER_MODES = (PER_TENSOR, PER_EDGE)


@dataclass(frozen=True, slots=True)
class Device:
    """Something that runs one operator at a time."""

    name: str
    memory_bytes: int | None = None
    """Capacity; None is unlimited."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One node of the graph, after fusion."""

    name: str
    compute_ns: tuple[int | None, ...]
    """Duration on each device; None where the device cannot run it."""
    memory_bytes: int = 0
    """What it keeps resident: its weights and its output."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One output of an operator and everything that reads it."""

    producer: int
    consumers: tuple[int, ...]
    time_ns: tuple[tuple[int, ...], ...]
    """`time_ns[k][l]` moves it from device k to device l; 0 where k == l. Tensors may share it."""


@dataclass(frozen=True)
class Problem:
    """Operators to be placed on devices so that the makespan is least.

    The views below assume a problem without `validation.violations`.
    """

    name: str
    devices: tuple[Device, ...]
    operators: tuple[Operator, ...]
    tensors: tuple[Tensor, ...] = ()
    colocation: tuple[tuple[int, ...], ...] = ()
    """Groups of operators that must share a device; groups may overlap."""
    transfers: str = PER_TENSOR
    """`per_tensor`: one transfer per (tensor, device); `per_edge`: one per (tensor, consumer)."""
    congestion: str = PORT
    """`port`: a device sends one and receives one at a time; `link`: a directed pair carries one
    at a time; `none`."""
    source: str = ""
    """Where the data came from, for people."""

    @cached_property
    def incoming(self) -> tuple[tuple[int, ...], ...]:
        """Tensors that each operator consumes."""
        lists: list[list[int]] = [[] for _ in self.operators]
        for index, tensor in enumerate(self.tensors):
            for consumer in tensor.consumers:
                lists[consumer].append(index)
        return tuple(map(tuple, lists))

    @cached_property
    def outgoing(self) -> tuple[tuple[int, ...], ...]:
        """Tensors that each operator produces."""
        lists: list[list[int]] = [[] for _ in self.operators]
        for index, tensor in enumerate(self.tensors):
            lists[tensor.producer].append(index)
        return tuple(map(tuple, lists))

    @cached_property
    def topological_order(self) -> tuple[int, ...]:
        """Operators, producers first; among the ready ones the lowest index first come."""
        edges = ((t.producer, consumer) for t in self.tensors for consumer in t.consumers)
        return topological_order(len(self.operators), edges)

    def used_bytes(self, assignment: Sequence[int]) -> list[int]:
        """What each device has to hold if every operator is on the device that is given."""
        used = [0] * len(self.devices)
        for operator, device in zip(self.operators, assignment, strict=True):
            used[device] += operator.memory_bytes
        return used

    def excess_bytes(self, used_bytes: Sequence[int]) -> int:
        """By how much devices are too small for that, together."""
        rooms = zip(used_bytes, self.capacity_bytes, strict=True)
        return sum(max(0, used - room) for used, room in rooms)

    @cached_property
    def topological_position(self) -> tuple[int, ...]:
        """Position of each operator in `topological_order`."""
        position = [0] * len(self.operators)
        for place, operator in enumerate(self.topological_order):
            position[operator] = place
        return tuple(position)

    @cached_property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """What is placed as one: overlapping colocation groups united, all others alone."""
        if not self.colocation:
            return tuple((operator,) for operator in range(len(self.operators)))
        from networkx.utils import UnionFind

        sets = UnionFind(range(len(self.operators)))
        for group in self.colocation:
            sets.union(*group)
        members: dict[int, list[int]] = {}
        for operator in range(len(self.operators)):
            members.setdefault(sets[operator], []).append(operator)
        return tuple(map(tuple, members.values()))

    @cached_property
    def unit_of(self) -> tuple[int, ...]:
        """Unit of each operator."""
        unit_of = [0] * len(self.operators)
        for unit, members in enumerate(self.units):
            for operator in members:
                unit_of[operator] = unit
        return tuple(unit_of)

    @cached_property
    def unit_devices(self) -> tuple[tuple[int, ...], ...]:
        """Devices that can run every operator of a unit."""
        return tuple(
            tuple(
                device
                for device in range(len(self.devices))
                if all(self.operators[i].compute_ns[device] is not None for i in members)
            )
            for members in self.units
        )

    @cached_property
    def unit_memory_bytes(self) -> tuple[int, ...]:
        """Resident bytes of each unit."""
        return tuple(sum(self.operators[i].memory_bytes for i in members) for members in self.units)

    @cached_property
    def compute_ns(self) -> IntArray:
        """Durations, (operators, devices); -1 where the operator cannot run."""
        rows = [[-1 if time is None else time for time in o.compute_ns] for o in self.operators]
        return np.array(rows, dtype=np.int64).reshape(len(self.operators), len(self.devices))

    @cached_property
    def runnable(self) -> BoolArray:
        """(operators, devices): whether the operator, with its unit, can be there."""
        allowed = np.zeros((len(self.units), len(self.devices)), dtype=np.bool_)
        for unit, devices in enumerate(self.unit_devices):
            allowed[unit, list(devices)] = True
        return allowed[list(self.unit_of)].reshape(len(self.operators), len(self.devices))

    @cached_property
    def time_ns(self) -> tuple[IntArray, ...]:
        """`Tensor.time_ns` as arrays; tensors that share a matrix share the array."""
        arrays: dict[int, IntArray] = {}
        for tensor in self.tensors:
            if id(tensor.time_ns) not in arrays:
                arrays[id(tensor.time_ns)] = np.array(tensor.time_ns, dtype=np.int64)
        return tuple(arrays[id(tensor.time_ns)] for tensor in self.tensors)

    @cached_property
    def arrays(self) -> Arrays:
        """The problem for compiled code."""
        return arrays_of(self)

    @cached_property
    def capacity_bytes(self) -> tuple[int, ...]:
        """Memory of each device; an unlimited one holds as much as all operators need."""
        need = sum(operator.memory_bytes for operator in self.operators)
        return tuple(
            need if device.memory_bytes is None else device.memory_bytes for device in self.devices
        )

    @cached_property
    def quantum_ns(self) -> int:
        """Greatest common divisor of all times: some optimal makespan is a multiple of it.

        With orders fixed, the earliest times are sums of durations and transfers.
        """
        values = {int(time) for time in np.unique(self.compute_ns) if time > 0}
        for array in {id(array): array for array in self.time_ns}.values():
            values.update(int(time) for time in np.unique(array))
        return math.gcd(*values) or 1

    def to_networkx(self) -> nx.DiGraph[str]:
        """The operators by name, in order, and what they hand on, for analysis and drawing.

        Nodes have `compute_ns` (device name -> ns, without devices that cannot run the operator)
        and `memory_bytes`. An edge goes from a producer to a consumer and has `tensors`, indices
        into `Problem.tensors`, and `time_ns`, (devices, devices): the sum of their times.
        """
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph(name=self.name)
        for operator in self.operators:
            named = zip(self.devices, operator.compute_ns, strict=True)
            compute_ns = {device.name: time for device, time in named if time is not None}
            graph.add_node(operator.name, compute_ns=compute_ns, memory_bytes=operator.memory_bytes)
        for index, tensor in enumerate(self.tensors):
            producer = self.operators[tensor.producer].name
            for consumer in tensor.consumers:
                ends = producer, self.operators[consumer].name
                known = graph.get_edge_data(*ends, {"tensors": (), "time_ns": 0})
                graph.add_edge(
                    *ends,
                    tensors=(*known["tensors"], index),
                    time_ns=known["time_ns"] + self.time_ns[index],
                )
        return graph

    def device_names(self, devices: Iterable[int]) -> str:
        """The devices' names, for messages."""
        return ", ".join(self.devices[device].name for device in devices)

    def operator_names(self, operators: Sequence[int], limit: int = 5) -> str:
        """The operators' names, for messages; a long list is cut and counted."""
        names = ", ".join(self.operators[operator].name for operator in operators[:limit])
        rest = len(operators) - limit
        return names if rest <= 0 else f"{names} and {rest} more"


def topological_order(count: int, edges: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Nodes 0..count-1, sources first. Nodes on or behind a cycle are left out."""
    successors: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for source, target in edges:
        successors[source].append(target)
        waiting[target] += 1
    ready = deque(node for node in range(count) if waiting[node] == 0)
    order = []
    while ready:
        node = ready.popleft()
        order.append(node)
        for successor in successors[node]:
            waiting[successor] -= 1
            if waiting[successor] == 0:
                ready.append(successor)
    return tuple(order)


class Arrays(NamedTuple):
    """Operators, tensors and devices by index; lists of lists are cut up by their `_at` array."""

    compute_ns: IntArray
    """(operators, devices); -1 where the operator cannot be."""
    producer: IntArray
    """(tensors,)"""
    time_ns: IntArray
    """(different matrices, devices, devices)."""
    matrix: IntArray
    """(tensors,): into `time_ns`."""
    incoming: IntArray
    """Tensors that operator i reads are `incoming[incoming_at[i]:incoming_at[i + 1]]`; a position
    in this array names an edge."""
    incoming_at: IntArray
    outgoing: IntArray
    """Tensors that each operator writes."""
    outgoing_at: IntArray
    readers: IntArray
    """Operators that read each tensor."""
    readers_at: IntArray
    per_edge: bool
    congestion: int
    """Code of the mode, as `channels` takes it."""
    devices: int
    resources: int
    """Devices, then what transfers occupy."""


def arrays_of(problem: Problem) -> Arrays:
    """The arrays of a valid problem."""
    devices = len(problem.devices)
    matrices = list({id(array): array for array in problem.time_ns}.values())
    number = {id(array): index for index, array in enumerate(matrices)}
    incoming, incoming_at = flat(problem.incoming)
    outgoing, outgoing_at = flat(problem.outgoing)
    readers, readers_at = flat(tensor.consumers for tensor in problem.tensors)
    return Arrays(
        compute_ns=np.where(problem.runnable, problem.compute_ns, -1),
        producer=np.array([tensor.producer for tensor in problem.tensors], dtype=np.int64),
        time_ns=np.array(matrices, dtype=np.int64).reshape(-1, devices, devices),
        matrix=np.array([number[id(array)] for array in problem.time_ns], dtype=np.int64),
        incoming=incoming,
        incoming_at=incoming_at,
        outgoing=outgoing,
        outgoing_at=outgoing_at,
        readers=readers,
        readers_at=readers_at,
        per_edge=problem.transfers == PER_EDGE,
        congestion=congestion_code(problem.congestion),
        devices=devices,
        resources=resource_count(problem.congestion, devices),
    )


def flat(lists: Iterable[Sequence[int]]) -> tuple[IntArray, IntArray]:
    """All entries one after another, and where each list begins and the last ends."""
    rows = list(lists)
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return np.array([entry for row in rows for entry in row], dtype=np.int64), ends

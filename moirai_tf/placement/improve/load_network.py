"""Loads of devices and channels under an assignment, kept up to date while units move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moirai_tf.placement.arrays import IntArray, flat
from moirai_tf.placement.bottleneck import unit_compute_ns
from moirai_tf.placement.compiled import compiled_lean
from moirai_tf.placement.problem import Problem


class Network(NamedTuple):
    """Units and the tensors that they share, by index."""

    work_ns: IntArray
    """(units, devices); -1 where the unit cannot be."""
    memory_bytes: IntArray
    capacity_bytes: IntArray
    touched: IntArray
    """Tensors that unit u writes or reads are `touched[touched_at[u]:touched_at[u + 1]]`."""
    touched_at: IntArray
    writes: IntArray
    """Beside `touched`: 1 where the unit writes the tensor, else 0."""
    reads: IntArray
    """Beside `touched`: how many of the unit's operators read the tensor."""
    near: IntArray
    """Units that share a tensor with unit u, as writer and reader."""
    near_at: IntArray
    order: IntArray
    """Units by the topological position of their first operators."""
    position: IntArray
    """Of each unit in `order`."""
    time_ns: IntArray
    """(different matrices, devices, devices)."""
    matrix: IntArray
    """Of each tensor, into `time_ns`."""
    per_edge: bool
    is_link: bool


class Loads(NamedTuple):
    """An assignment and what follows from it; the arrays are changed in place."""

    device: IntArray
    """Of each unit."""
    free_bytes: IntArray
    load_ns: IntArray
    """Of each device, then of each channel: send ports and receive ports, or links by source."""
    source: IntArray
    """Device of each tensor's producer."""
    readers: IntArray
    """(tensors, devices): how many operators there read the tensor."""


def network_of(problem: Problem) -> Network:
    """The units of a valid problem."""
    unit_of, arrays = problem.unit_of, problem.arrays
    writes: list[Counter[int]] = [Counter() for _ in problem.units]
    reads: list[Counter[int]] = [Counter() for _ in problem.units]
    near: list[set[int]] = [set() for _ in problem.units]
    for index, tensor in enumerate(problem.tensors):
        writer = unit_of[tensor.producer]
        writes[writer][index] = 1
        for consumer in tensor.consumers:
            reader = unit_of[consumer]
            reads[reader][index] += 1
            if reader != writer:
                near[reader].add(writer)
                near[writer].add(reader)
    tensors = [sorted(w.keys() | r.keys()) for w, r in zip(writes, reads, strict=True)]
    touched, touched_at = flat(tensors)
    neighbours, near_at = flat([sorted(units) for units in near])
    first = [min(problem.topological_position[i] for i in members) for members in problem.units]
    order = np.argsort(first)
    return Network(
        work_ns=unit_compute_ns(problem),
        memory_bytes=np.array(problem.unit_memory_bytes, dtype=np.int64),
        capacity_bytes=np.array(problem.capacity_bytes, dtype=np.int64),
        touched=touched,
        touched_at=touched_at,
        writes=flat([[w[t] for t in own] for w, own in zip(writes, tensors, strict=True)])[0],
        reads=flat([[r[t] for t in own] for r, own in zip(reads, tensors, strict=True)])[0],
        near=neighbours,
        near_at=near_at,
        order=order,
        position=np.argsort(order),
        time_ns=arrays.time_ns,
        matrix=arrays.matrix,
        per_edge=arrays.per_edge,
        is_link=arrays.is_link,
    )


def loads_of(problem: Problem, network: Network, assignment: Sequence[int]) -> Loads:
    """The loads of an assignment of operators that keeps units together."""
    devices = len(problem.devices)
    loads = Loads(
        device=np.array([assignment[members[0]] for members in problem.units], dtype=np.int64),
        free_bytes=network.capacity_bytes.copy(),
        load_ns=np.zeros(problem.arrays.resources, dtype=np.int64),
        source=np.zeros(len(problem.tensors), dtype=np.int64),
        readers=np.zeros((len(problem.tensors), devices), dtype=np.int64),
    )
    for index, tensor in enumerate(problem.tensors):
        loads.source[index] = assignment[tensor.producer]
        for consumer in tensor.consumers:
            loads.readers[index, assignment[consumer]] += 1
        carry(network, loads, index, 1)
    for unit, device in enumerate(loads.device.tolist()):
        loads.load_ns[device] += network.work_ns[unit, device]
        loads.free_bytes[device] -= network.memory_bytes[unit]
    return loads


@compiled_lean
def carry(network: Network, loads: Loads, tensor: int, sign: int) -> None:
    """Adds a tensor's transfers to the loads of channels, or with -1 takes them away."""
    devices = len(loads.free_bytes)
    if len(loads.load_ns) == devices:
        return
    source = loads.source[tensor]
    for target in range(devices):
        count = loads.readers[tensor, target]
        if target == source or count == 0:
            continue
        taken_ns = sign * network.time_ns[network.matrix[tensor], source, target]
        if network.per_edge:
            taken_ns *= count
        if network.is_link:
            loads.load_ns[devices + source * devices + target] += taken_ns
        else:
            loads.load_ns[devices + source] += taken_ns
            loads.load_ns[2 * devices + target] += taken_ns


@compiled_lean
def relocate(network: Network, loads: Loads, unit: int, target: int) -> None:
    """Moves a unit to a device that can run it, whether or not there is room."""
    old = loads.device[unit]
    loads.device[unit] = target
    loads.load_ns[old] -= network.work_ns[unit, old]
    loads.load_ns[target] += network.work_ns[unit, target]
    loads.free_bytes[old] += network.memory_bytes[unit]
    loads.free_bytes[target] -= network.memory_bytes[unit]
    for place in range(network.touched_at[unit], network.touched_at[unit + 1]):
        tensor = network.touched[place]
        carry(network, loads, tensor, -1)
        if network.writes[place]:
            loads.source[tensor] = target
        loads.readers[tensor, old] -= network.reads[place]
        loads.readers[tensor, target] += network.reads[place]
        carry(network, loads, tensor, 1)


@compiled_lean
def overfull(loads: Loads) -> bool:
    """Whether a device holds more than its memory."""
    least_bytes = 0
    for free_bytes in loads.free_bytes:
        least_bytes = min(least_bytes, free_bytes)
    return least_bytes < 0


@compiled_lean
def largest_ns(loads: Loads) -> int:
    """The bottleneck."""
    bottleneck_ns = 0
    for load_ns in loads.load_ns:
        bottleneck_ns = max(bottleneck_ns, load_ns)
    return bottleneck_ns

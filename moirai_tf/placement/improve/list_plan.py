"""What the annealing changes: an order and an assignment, with the memory and loads they need."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled_lean
from moirai_tf.placement.evaluate.channels import NOTHING, channels
from moirai_tf.placement.problem import Arrays, IntArray, Problem, flat


class Units(NamedTuple):
    """What is placed as one, as arrays."""

    of: IntArray
    """(operators,): unit of each."""
    members: IntArray
    """Operators of unit u are `members[members_at[u]:members_at[u + 1]]`."""
    members_at: IntArray
    memory_bytes: IntArray
    """(units,)"""


class ListPlan(NamedTuple):
    """A list schedule in its discrete decisions; the arrays are changed in place."""

    order: IntArray
    """(operators,): producers first."""
    position: IntArray
    """(operators,): place of each in `order`."""
    assignment: IntArray
    """(operators,): device of each."""
    free_bytes: IntArray
    """(devices,)"""
    price: FloatArray
    """(devices,): what a byte costs there, in ns."""
    load_ns: IntArray
    """(resources,): what devices compute and channels carry; empty where nobody asks."""
    readers: IntArray
    """(tensors, devices): operators there that read the tensor; empty likewise."""


def units_of(problem: Problem) -> Units:
    """A problem's units."""
    members, members_at = flat(problem.units)
    unit_of = np.array(problem.unit_of, dtype=np.int64)
    return Units(unit_of, members, members_at, np.array(problem.unit_memory_bytes, dtype=np.int64))


def plan_of(
    problem: Problem, order: list[int], assignment: tuple[int, ...], *, loads: bool = False
) -> ListPlan:
    """The plan of a feasible assignment, with or without its loads."""
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    free_bytes = np.array(problem.capacity_bytes, dtype=np.int64)
    for operator, device in zip(problem.operators, assignment, strict=True):
        free_bytes[device] -= operator.memory_bytes
    devices = len(free_bytes)
    plan = ListPlan(
        order=np.array(order, dtype=np.int64),
        position=position,
        assignment=np.array(assignment, dtype=np.int64),
        free_bytes=free_bytes,
        price=np.zeros(devices),
        load_ns=np.zeros(problem.arrays.resources if loads else 0, dtype=np.int64),
        readers=np.zeros((len(problem.tensors) if loads else 0, devices), dtype=np.int64),
    )
    if loads:
        _count_loads(problem.arrays, plan)
    return plan


@compiled_lean
def memory_price_ns(plan: ListPlan) -> int:
    """Price of the memory in use, but for a constant."""
    paid = 0.0
    for device in range(len(plan.price)):
        paid -= plan.price[device] * plan.free_bytes[device]
    return int(paid)


@compiled_lean
def relocate(arrays: Arrays, units: Units, plan: ListPlan, unit: int, device: int) -> None:
    """Moves a unit to a device that can run it, whether or not there is room."""
    first = units.members[units.members_at[unit]]
    plan.free_bytes[plan.assignment[first]] += units.memory_bytes[unit]
    plan.free_bytes[device] -= units.memory_bytes[unit]
    for index in range(units.members_at[unit], units.members_at[unit + 1]):
        if len(plan.load_ns):
            _move_loads(arrays, plan, units.members[index], device)
        plan.assignment[units.members[index]] = device


@compiled_lean
def _move_loads(arrays: Arrays, plan: ListPlan, operator: int, device: int) -> None:
    """The loads once an operator is on another device, where it then goes."""
    before = plan.assignment[operator]
    plan.load_ns[before] -= arrays.compute_ns[operator, before]
    plan.load_ns[device] += arrays.compute_ns[operator, device]
    for edge in range(arrays.incoming_at[operator], arrays.incoming_at[operator + 1]):
        tensor = arrays.incoming[edge]
        _change_readers(arrays, plan, tensor, before, -1)
        _change_readers(arrays, plan, tensor, device, 1)
    for sign in (-1, 1):
        for index in range(arrays.outgoing_at[operator], arrays.outgoing_at[operator + 1]):
            tensor = arrays.outgoing[index]
            for target in range(arrays.devices):
                count = _transfers(arrays, plan.readers[tensor, target])
                _carry(arrays, plan, tensor, target, sign * count)
        plan.assignment[operator] = device


@compiled_lean
def _change_readers(arrays: Arrays, plan: ListPlan, tensor: int, target: int, change: int) -> None:
    """More or fewer readers of a tensor on a device."""
    count = plan.readers[tensor, target]
    plan.readers[tensor, target] = count + change
    more = _transfers(arrays, count + change) - _transfers(arrays, count)
    _carry(arrays, plan, tensor, target, more)


@compiled_lean
def _transfers(arrays: Arrays, readers: int) -> int:
    """Transfers to a device with so many readers."""
    return readers if arrays.per_edge else min(readers, 1)


@compiled_lean
def _carry(arrays: Arrays, plan: ListPlan, tensor: int, target: int, count: int) -> None:
    """Adds transfers of a tensor to the loads of their channels; a negative number takes away."""
    source = plan.assignment[arrays.producer[tensor]]
    if source == target or count == 0:
        return
    for channel in channels(arrays.congestion, arrays.devices, source, target):
        if channel != NOTHING:
            plan.load_ns[channel] += count * arrays.time_ns[arrays.matrix[tensor], source, target]


@compiled_lean
def _count_loads(arrays: Arrays, plan: ListPlan) -> None:
    """Fills loads and readers that are zero."""
    for operator in plan.order:
        device = plan.assignment[operator]
        plan.load_ns[device] += arrays.compute_ns[operator, device]
        for edge in range(arrays.incoming_at[operator], arrays.incoming_at[operator + 1]):
            _change_readers(arrays, plan, arrays.incoming[edge], device, 1)


@compiled_lean
def largest_load_ns(plan: ListPlan) -> int:
    """The bottleneck, where loads are counted."""
    bottleneck_ns = 0
    for load_ns in plan.load_ns:
        bottleneck_ns = max(bottleneck_ns, load_ns)
    return bottleneck_ns


@compiled_lean
def smooth_load_ns(plan: ListPlan, floor_ns: float) -> float:
    """The 4-norm of the loads above a floor, and the floor.

    It is near the largest load, but every overloaded device and channel counts.
    """
    total = 0.0
    for load_ns in plan.load_ns:
        if load_ns > floor_ns:
            square = float(load_ns - floor_ns) ** 2
            total += square * square
    return floor_ns + np.sqrt(np.sqrt(total))  # type: ignore[no-any-return]


@compiled_lean
def can_run(arrays: Arrays, units: Units, unit: int, device: int) -> bool:
    """Whether a device can run a unit; a ban on one member bans them all."""
    return bool(arrays.compute_ns[units.members[units.members_at[unit]], device] >= 0)


@compiled_lean
def shift(plan: ListPlan, source: int, target: int) -> None:
    """Moves the operator at one position to another; those between close up."""
    operator = plan.order[source]
    step = 1 if target > source else -1
    for place in range(source, target, step):
        plan.order[place] = plan.order[place + step]
        plan.position[plan.order[place]] = place
    plan.order[target] = operator
    plan.position[operator] = target


@compiled_lean
def earliest_position(arrays: Arrays, plan: ListPlan, operator: int, least: int) -> int:
    """The first position, not before `least`, that is behind all producers."""
    for edge in range(arrays.incoming_at[operator], arrays.incoming_at[operator + 1]):
        least = max(least, plan.position[arrays.producer[arrays.incoming[edge]]] + 1)
    return least


@compiled_lean
def latest_position(arrays: Arrays, plan: ListPlan, operator: int, most: int) -> int:
    """The last position, not after `most`, that is before all consumers."""
    for index in range(arrays.outgoing_at[operator], arrays.outgoing_at[operator + 1]):
        tensor = arrays.outgoing[index]
        for reader in range(arrays.readers_at[tensor], arrays.readers_at[tensor + 1]):
            most = min(most, plan.position[arrays.readers[reader]] - 1)
    return most

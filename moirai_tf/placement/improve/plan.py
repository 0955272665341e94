"""What the annealing changes, an order and an assignment, and its elementary moves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.arrays import Arrays, IntArray
from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled_lean
from moirai_tf.placement.problem import Problem


class Units(NamedTuple):
    """What is placed as one, as arrays."""

    of: IntArray
    """Unit of each operator."""
    members: IntArray
    """Operators of unit u are `members[members_at[u]:members_at[u + 1]]`."""
    members_at: IntArray
    memory_bytes: IntArray


class Plan(NamedTuple):
    """A list schedule in its discrete decisions; the arrays are changed in place."""

    order: IntArray
    """Operators, producers first."""
    position: IntArray
    """Of each operator in `order`."""
    assignment: IntArray
    """Device of each operator."""
    free_bytes: IntArray
    """Of each device."""
    price: FloatArray
    """What a byte of each device costs, in ns."""


def units_of(problem: Problem) -> Units:
    """A problem's units."""
    sizes = [len(members) for members in problem.units]
    return Units(
        of=np.array(problem.unit_of, dtype=np.int64),
        members=np.array([i for members in problem.units for i in members], dtype=np.int64),
        members_at=np.cumsum([0, *sizes], dtype=np.int64),
        memory_bytes=np.array(problem.unit_memory_bytes, dtype=np.int64),
    )


def plan_of(problem: Problem, order: list[int], assignment: tuple[int, ...]) -> Plan:
    """The plan of a feasible assignment."""
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    free_bytes = np.array(problem.capacity_bytes, dtype=np.int64)
    for operator, device in zip(problem.operators, assignment, strict=True):
        free_bytes[device] -= operator.memory_bytes
    return Plan(
        order=np.array(order, dtype=np.int64),
        position=position,
        assignment=np.array(assignment, dtype=np.int64),
        free_bytes=free_bytes,
        price=np.zeros(len(free_bytes)),
    )


@compiled_lean
def rent_ns(plan: Plan) -> int:
    """Price of the memory in use, but for a constant."""
    paid = 0.0
    for device in range(len(plan.price)):
        paid -= plan.price[device] * plan.free_bytes[device]
    return int(paid)


@compiled_lean
def relocate(units: Units, plan: Plan, unit: int, device: int) -> None:
    """Moves a unit to a device."""
    first = units.members[units.members_at[unit]]
    plan.free_bytes[plan.assignment[first]] += units.memory_bytes[unit]
    plan.free_bytes[device] -= units.memory_bytes[unit]
    for index in range(units.members_at[unit], units.members_at[unit + 1]):
        plan.assignment[units.members[index]] = device


@compiled_lean
def can_run(arrays: Arrays, units: Units, unit: int, device: int) -> bool:
    """Whether a device can run a unit; a ban on one member bans them all."""
    return bool(arrays.compute_ns[units.members[units.members_at[unit]], device] >= 0)


@compiled_lean
def shift(plan: Plan, source: int, target: int) -> None:
    """Moves the operator at one position to another; those between close up."""
    operator = plan.order[source]
    step = 1 if target > source else -1
    for place in range(source, target, step):
        plan.order[place] = plan.order[place + step]
        plan.position[plan.order[place]] = place
    plan.order[target] = operator
    plan.position[operator] = target


@compiled_lean
def earliest_position(arrays: Arrays, plan: Plan, operator: int, least: int) -> int:
    """The first position, not before `least`, that is behind all producers."""
    for edge in range(arrays.incoming_at[operator], arrays.incoming_at[operator + 1]):
        least = max(least, plan.position[arrays.producer[arrays.incoming[edge]]] + 1)
    return least


@compiled_lean
def latest_position(arrays: Arrays, plan: Plan, operator: int, most: int) -> int:
    """The last position, not after `most`, that is before all consumers."""
    for index in range(arrays.outgoing_at[operator], arrays.outgoing_at[operator + 1]):
        tensor = arrays.outgoing[index]
        for reader in range(arrays.readers_at[tensor], arrays.readers_at[tensor + 1]):
            most = min(most, plan.position[arrays.readers[reader]] - 1)
    return most

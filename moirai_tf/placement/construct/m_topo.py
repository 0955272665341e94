"""m-TOPO: topological order, devices filled in turn."""

from __future__ import annotations

from moirai_tf.placement.bound.packing import Packing, Reservation
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.evaluate.events import simulate
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule


def m_topo(problem: Problem, packing: Packing, deadline: Deadline) -> Schedule:
    """Operators in topological order; each device is filled up to total / n + the largest unit.

    Source: Baechi (Jeon et al., SoCC 2020). Adapted to devices that differ: a device's share also
    stays within its own memory, and operators go to another device where the reservation does
    not allow the current one.
    """
    need = problem.unit_memory_bytes
    share = sum(need) // len(problem.devices) + max(need, default=0)
    reservation = Reservation(problem, packing)
    assignment = [-1] * len(problem.operators)
    filled = [0] * len(problem.devices)
    current = 0
    for operator in problem.topological_order:
        deadline.check()
        if assignment[operator] >= 0:
            continue
        unit = problem.unit_of[operator]
        last = len(problem.devices) - 1
        while current < last and filled[current] + need[unit] > _limit(problem, current, share):
            current += 1
        allowed = reservation.devices(operator)
        device = current if current in allowed else min(allowed, key=lambda k: (filled[k], k))
        reservation.decide(operator, device)
        filled[device] += need[unit]
        for member in problem.units[unit]:
            assignment[member] = device
    return simulate(problem, assignment)


def _limit(problem: Problem, device: int, share: int) -> int:
    return min(share, problem.capacity_bytes[device])

"""The order that a schedule plans for each device, and what a runtime that drops it loses."""

from __future__ import annotations

from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule
from moirai_tf.placement.simulate import ready_queue


def planned_orders(schedule: Schedule) -> tuple[tuple[int, ...], ...]:
    """For each device that is used, its operators of positive duration by start."""
    orders: dict[int, list[int]] = {}
    placed = schedule.placed
    for operator in sorted(range(len(placed)), key=lambda i: (placed[i].start_ns, i)):
        if placed[operator].finish_ns > placed[operator].start_ns:
            orders.setdefault(placed[operator].device, []).append(operator)
    return tuple(tuple(orders[device]) for device in sorted(orders))


def order_gain(problem: Problem, schedule: Schedule) -> float:
    """How much longer the ready queue takes than the schedule, as a share of the schedule.

    Negative where the queue happens to be faster; 0 for a schedule that takes no time.
    """
    if schedule.makespan_ns == 0:
        return 0.0
    queued = ready_queue(problem, schedule.assignment)
    return queued.makespan_ns / schedule.makespan_ns - 1

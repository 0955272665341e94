"""The order that a schedule plans for each device."""

from __future__ import annotations

from moirai_tf.placement.schedule import Schedule


def planned_orders(schedule: Schedule) -> tuple[tuple[int, ...], ...]:
    """For each device that is used, its operators of positive duration by start."""
    orders: dict[int, list[int]] = {}
    placed = schedule.placed
    for operator in sorted(range(len(placed)), key=lambda i: (placed[i].start_ns, i)):
        if placed[operator].finish_ns > placed[operator].start_ns:
            orders.setdefault(placed[operator].device, []).append(operator)
    return tuple(tuple(orders[device]) for device in sorted(orders))

"""The planned order of each device, and what a runtime loses that does not keep it."""

from __future__ import annotations

from moirai_tf.placement import Placed, Schedule, ready_queue
from moirai_tf.placement.schedule import planned_orders
from tests.placement_cases import problem_of


def test_orders_are_by_start_without_what_takes_no_time() -> None:
    placed = (Placed(1, 5, 9), Placed(0, 4, 6), Placed(0, 0, 0), Placed(0, 0, 4), Placed(1, 0, 5))
    assert planned_orders(Schedule(placed, (), 9)) == ((3, 1), (4, 0))


def test_the_planned_order_is_not_the_ready_queues() -> None:
    # Device 0 runs long (10) and first (1); after (10) on device 1 needs first. Planned: first at
    # 0, then long from 1 to 11 beside after from 1 to 11. The queue takes long first, by index:
    # first ends at 11 and after at 21.
    problem = problem_of(
        {"long": (10, None), "first": (1, None), "after": (None, 10)}, [("first", "after", 0)]
    )
    placed = (Placed(0, 1, 11), Placed(0, 0, 1), Placed(1, 1, 11))
    schedule = Schedule(placed, (), 11)
    assert ready_queue(problem, schedule.assignment).makespan_ns == 21
    assert planned_orders(schedule) == ((1, 0), (2,))

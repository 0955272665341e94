"""How many rows each device gets: all are to finish at the same time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

RowsToTime = Callable[[int], float]


def equal_finish(times: Sequence[RowsToTime], rows: int, most: int) -> list[int]:
    """Deals rows out one by one, each to the device that would then finish first.

    Args:
      times: for each device, how long it takes for a number of rows; never less for more.
      rows: of the batch.
      most: devices that may get any.

    Returns:
      Rows of each device. With times that grow evenly the last device to finish is as early as any
      division into whole rows allows.
    """
    allowed = sorted(range(len(times)), key=lambda d: (times[d](rows), d))[: min(most, rows)]
    shares = [0] * len(times)
    queue = [(times[d](1), d) for d in allowed]
    heapq.heapify(queue)
    for _ in range(rows):
        _, device = heapq.heappop(queue)
        shares[device] += 1
        heapq.heappush(queue, (times[device](shares[device] + 1), device))
    return shares


def in_proportion(total: float, rows: int) -> RowsToTime:
    """A device that takes the same time for every row."""
    return lambda n: total * n / rows


def between(few: tuple[int, float], all_rows: tuple[int, float]) -> RowsToTime:
    """A device that was timed for two numbers of rows: a straight line through both."""
    (a, at_a), (b, at_b) = few, all_rows
    slope = max((at_b - at_a) / (b - a), 0.0) if a != b else at_b / b
    return lambda n: max(at_a + slope * (n - a), 0.0)

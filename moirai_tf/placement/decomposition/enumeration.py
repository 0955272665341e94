"""All device choices of a block that cost little more than the best at given prices."""

from __future__ import annotations

import numpy as np

from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.decomposition.sequence import best_sequence
from moirai_tf.placement.decomposition.work import (
    BlockData,
    collect_jobs,
    decide,
    fill_tails,
    new_work,
    path_tails,
    paths_bound,
    possible,
    to_events,
)
from moirai_tf.placement.problem import BoolArray, IntArray


@compiled
def enumerate_block(
    data: BlockData, allowed: BoolArray, price: IntArray, limit: int, most: int, orders: int
) -> tuple[IntArray, IntArray, int]:
    """Device choices whose makespan plus prices is below a limit.

    Args:
      data: the block.
      allowed: (operators, devices).
      price: (operators, devices), >= 0.
      limit: on makespan plus prices.
      most: number of choices and, a hundredfold, of nodes after which the search ends.
      orders: nodes of each search over orders.

    Returns:
      (choices, operators) devices, (choices,) makespans, and how many choices there are; more
      than `most` if the search was ended.
    """
    operators, devices = data.compute.shape
    machines = 3 * devices + devices * devices
    tails = path_tails(data, allowed, data.compute)
    least = np.zeros(operators + 1, dtype=np.int64)
    for operator in range(operators - 1, -1, -1):
        cheapest = limit
        for device in range(devices):
            if allowed[operator, device]:
                cheapest = min(cheapest, price[operator, device])
        least[operator] = least[operator + 1] + cheapest
    work = new_work(data)
    chosen = np.zeros((most, operators), dtype=np.int64)
    makespans = np.zeros(most, dtype=np.int64)
    starts = np.zeros(operators + len(data.reader), dtype=np.int64)
    following = np.zeros(operators, dtype=np.int64)
    paid = np.zeros(operators + 1, dtype=np.int64)
    count, nodes, depth = 0, 0, 0
    while depth >= 0:
        device = following[depth]
        if device == devices:
            following[depth] = 0
            depth -= 1
            continue
        following[depth] += 1
        if not possible(data, allowed, work, depth, device):
            continue
        nodes += 1
        if nodes > 100 * most:
            return chosen[:count], makespans[:count], most + 1
        decide(data, work, depth, device)
        paid[depth + 1] = paid[depth] + price[depth, device]
        cost = paid[depth + 1] + least[depth + 1]
        bound = paths_bound(data, allowed, data.compute, tails, work, depth + 1)
        if cost + max(bound, work.finish[depth]) >= limit:
            continue
        if depth + 1 < operators:
            depth += 1
            continue
        fill_tails(data, allowed, tails, work, operators)
        jobs = collect_jobs(data, work, operators)
        events, _ = to_events(data, work, jobs, machines)
        makespan, _ = best_sequence(events, limit - cost, orders, starts)
        if makespan + cost >= limit:
            continue
        if count == most:
            return chosen, makespans, most + 1
        chosen[count] = work.device
        makespans[count] = makespan
        count += 1
    return chosen[:count], makespans[:count], count

"""Exact search over the devices of a block's operators, with prices for what they occupy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.decomposition.sequence import best_sequence
from moirai_tf.placement.decomposition.work import (
    NEVER,
    BlockData,
    Work,
    collect_jobs,
    decide,
    fill_tails,
    jobs_bound,
    new_work,
    path_tails,
    paths_bound,
    possible,
    to_events,
)
from moirai_tf.placement.problem import BoolArray, IntArray


class Found(NamedTuple):
    """What a block search brought back; the cutoff as value means that nothing was found."""

    value: int
    """Makespan plus prices."""
    bound: int
    """No schedule below the cutoff has less."""
    device: IntArray
    start: IntArray
    """Start of each operator."""
    transfers: IntArray
    """Rows of tensor, target device or (`per_edge`) consumer, start."""
    nodes: int


class _Costs(NamedTuple):
    """Prices of a block, made relative: the least of each operator is 0."""

    extra: IntArray
    """(operators, devices): price above the operator's least."""
    weight: IntArray
    """Time plus `extra`."""
    tails: IntArray
    """`path_tails` of `weight`."""
    base: int
    """Sum of the least prices."""


@compiled
def _relative(data: BlockData, allowed: BoolArray, price: IntArray) -> _Costs:
    operators, devices = data.compute.shape
    base = 0
    extra = np.zeros((operators, devices), dtype=np.int64)
    for operator in range(operators):
        least = NEVER
        for device in range(devices):
            if allowed[operator, device]:
                least = min(least, price[operator, device])
        base += least
        for device in range(devices):
            extra[operator, device] = price[operator, device] - least
    weight = data.compute + extra
    return _Costs(extra, weight, path_tails(data, allowed, weight), base)


@compiled
def _expand(
    data: BlockData,
    allowed: BoolArray,
    costs: _Costs,
    work: Work,
    operator: int,
    paid: int,
    best: int,
    options: IntArray,
    bounds: IntArray,
) -> int:
    """Devices for the next operator that may lead below `best`, with bounds, least bound first.

    For fixed devices of the operators so far a schedule costs what they pay, and at least the
    time that a path or one busy resource needs; a path's undecided operators pay as well.
    """
    machines = 3 * data.compute.shape[1] + data.compute.shape[1] ** 2
    count = 0
    for device in range(data.compute.shape[1]):
        if not possible(data, allowed, work, operator, device):
            continue
        decide(data, work, operator, device)
        cost = paid + costs.extra[operator, device]
        bound = cost + paths_bound(data, allowed, costs.weight, costs.tails, work, operator + 1)
        if bound < best:
            fill_tails(data, allowed, costs.tails, work, operator + 1)
            jobs = collect_jobs(data, work, operator + 1)
            bound = max(bound, cost + jobs_bound(work, jobs, machines))
            bound = max(bound, cost + work.finish[operator] + work.after[operator])
        if bound >= best:
            continue
        place = count
        while place and bounds[place - 1] > bound:
            bounds[place] = bounds[place - 1]
            options[place] = options[place - 1]
            place -= 1
        bounds[place] = bound
        options[place] = device
        count += 1
    return count


@compiled
def order_block(
    data: BlockData, allowed: BoolArray, costs: _Costs, work: Work, cutoff: int, limit: int
) -> tuple[int, int, IntArray, IntArray]:
    """The best orders when all operators have devices.

    Returns:
      Makespan (`cutoff` if none is less), a bound, operator starts, and transfers as in `Found`.
    """
    operators, devices = data.compute.shape
    machines = 3 * devices + devices * devices
    fill_tails(data, allowed, costs.tails, work, operators)
    jobs = collect_jobs(data, work, operators)
    events, job_of = to_events(data, work, jobs, machines)
    event_start = np.zeros(jobs, dtype=np.int64)
    value, bound = best_sequence(events, cutoff, limit, event_start)
    start = np.zeros(operators, dtype=np.int64)
    transfers = np.zeros((jobs - operators, 3), dtype=np.int64)
    for event in range(jobs):
        job = job_of[event]
        if job < operators:
            start[job] = event_start[event]
        else:
            transfers[job - operators, 0] = work.job_tensor[job]
            transfers[job - operators, 1] = work.job_key[job]
            transfers[job - operators, 2] = event_start[event]
    return value, bound, start, transfers


@compiled
def search_block(
    data: BlockData,
    allowed: BoolArray,
    price: IntArray,
    cutoff: int,
    node_limit: int,
    sequence_limit: int,
) -> Found:
    """Branch and bound over devices; orders are solved exactly once all devices are chosen.

    Args:
      data: the block.
      allowed: (operators, devices); at least one device each, one for entry and exit.
      price: (operators, devices): what an operator pays on a device besides its time; >= 0.
      cutoff: only a smaller value is of interest.
      node_limit: nodes after which the search gives up, with a valid bound.
      sequence_limit: the same for each search over orders.
    """
    operators, devices = data.compute.shape
    costs = _relative(data, allowed, price)
    work = new_work(data)
    best_device = np.zeros(operators, dtype=np.int64)
    best_start = np.zeros(operators, dtype=np.int64)
    best_transfers = np.zeros((0, 3), dtype=np.int64)
    options = np.zeros((operators, devices), dtype=np.int64)
    bounds = np.zeros((operators, devices), dtype=np.int64)
    sizes = np.zeros(operators, dtype=np.int64)
    taken = np.zeros(operators, dtype=np.int64)
    paid = np.zeros(operators + 1, dtype=np.int64)
    best = open_bound = cutoff - costs.base
    sizes[0] = _expand(data, allowed, costs, work, 0, 0, best, options[0], bounds[0])
    nodes, depth = 1, 0
    while depth >= 0:
        if taken[depth] == sizes[depth]:
            depth -= 1
            continue
        device, bound = options[depth, taken[depth]], bounds[depth, taken[depth]]
        taken[depth] += 1
        if bound >= best:
            continue
        if nodes > node_limit:
            open_bound = min(open_bound, bound)
            continue
        decide(data, work, depth, device)
        paid[depth + 1] = paid[depth] + costs.extra[depth, device]
        cost = paid[depth + 1]
        if depth + 1 < operators:
            depth += 1
            nodes += 1
            taken[depth] = 0
            sizes[depth] = _expand(
                data, allowed, costs, work, depth, cost, best, options[depth], bounds[depth]
            )
            continue
        value, proved, start, transfers = order_block(
            data, allowed, costs, work, best - cost, sequence_limit
        )
        if proved < value:
            open_bound = min(open_bound, proved + cost)
        if value + cost < best:
            best = value + cost
            best_device[:] = work.device
            best_start, best_transfers = start, transfers
    lower = min(best, open_bound) + costs.base
    return Found(best + costs.base, lower, best_device, best_start, best_transfers, nodes)

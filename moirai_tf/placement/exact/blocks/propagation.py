"""What follows from the devices that are still possible, and the least value they allow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled, compiled_lean
from moirai_tf.placement.exact.blocks.block_arrays import (
    NEVER,
    BlockData,
    Work,
    collect_jobs,
    jobs_bound,
    new_work,
)
from moirai_tf.placement.exact.blocks.device_filtering import (
    Windows,
    fill_heads,
    fill_tails,
    fit,
    new_windows,
    settle,
    shorten,
    unite,
)
from moirai_tf.placement.exact.blocks.giffler_thompson import best_sequence
from moirai_tf.placement.exact.blocks.job_graph import to_events
from moirai_tf.placement.exact.blocks.load_bound import Loads, loads_bound, new_loads
from moirai_tf.placement.problem import BoolArray, IntArray

_ORDER_NODES = 100
"""Of the search for an order of what has a device already."""


class State(NamedTuple):
    """A block, its prices, and scratch for one node of the search."""

    data: BlockData
    price: IntArray
    """(operators, devices): what an operator pays on a device besides its time."""
    extra: IntArray
    """(operators, devices): price above the least that is open to the operator."""
    pure: Windows
    """Of times."""
    priced: Windows
    """Of times and `extra`."""
    work: Work
    loads: Loads


@compiled
def new_state(data: BlockData, price: IntArray) -> State:
    """Scratch for a search of this block."""
    operators, devices = data.compute.shape
    pure = new_windows(operators, devices)
    pure.weight[:] = data.compute
    extra = np.zeros((operators, devices), dtype=np.int64)
    priced = new_windows(operators, devices)
    return State(data, price, extra, pure, priced, new_work(data), new_loads(data))


@compiled_lean
def _set_extra(state: State, domain: BoolArray) -> int:
    """Sets prices above the least that is open; returns the sum of the least."""
    operators, devices = domain.shape
    base = 0
    for operator in range(operators):
        least = NEVER
        for device in range(devices):
            if domain[operator, device]:
                least = min(least, state.price[operator, device])
        base += least
        for device in range(devices):
            extra = state.price[operator, device] - least
            state.extra[operator, device] = extra
            state.priced.weight[operator, device] = state.data.compute[operator, device] + extra
    return base


@compiled_lean
def propagate(state: State, domain: BoolArray, weights: FloatArray, best: int, steps: int) -> int:
    """Removes devices that lead to no value below `best`.

    Args:
      state: the block.
      domain: (operators, devices): what is possible; changed.
      weights: of resources, from which the bound by loads starts; changed.
      best: only a smaller value is of interest.
      steps: of that bound's ascent.

    Returns:
      A lower bound on makespan and prices; `best` if nothing below is possible.
    """
    data, work = state.data, state.work
    changed = True
    while changed:
        unite(data, domain)
        if not settle(domain, work.device):
            return best
        if fit(data, domain, work.device):
            continue
        base = _set_extra(state, domain)
        longest = fill_heads(data, domain, state.priced)
        fill_tails(data, domain, state.priced)
        if base + longest >= best:
            return best
        changed = shorten(domain, state.priced, best - base)
    base, jobs, floor = _measure(state, domain)
    bound = base + jobs_bound(work, jobs, longest)
    if bound >= best:
        return best
    goal = best - base
    device, extra, loads = work.device, state.extra, state.loads
    found = loads_bound(data, domain, device, extra, state.pure, loads, weights, floor, goal, steps)
    return min(best, max(bound, base + found))


@compiled_lean
def _measure(state: State, domain: BoolArray) -> tuple[int, int, int]:
    """Sets windows and jobs; returns the least prices, the number of jobs, the longest path."""
    settle(domain, state.work.device)
    base = _set_extra(state, domain)
    fill_tails(state.data, domain, state.priced)
    fill_tails(state.data, domain, state.pure)
    longest = fill_heads(state.data, domain, state.pure)
    jobs = collect_jobs(state.data, state.pure.head, state.priced.tail, state.work)
    return base, jobs, longest


@compiled
def orderable(state: State, domain: BoolArray, best: int) -> tuple[bool, int]:
    """Whether what has a device may be ordered so that the value is below `best`.

    Returns:
      False if that is proved impossible; and how many nodes the proof took.
    """
    base, jobs, _ = _measure(state, domain)
    events, _ = to_events(state.data, domain, state.work, jobs)
    start = np.zeros(jobs, dtype=np.int64)
    goal = best - base
    _, bound, nodes = best_sequence(events, goal, goal - 1, _ORDER_NODES, start)
    return bound < goal, nodes


class Ordered(NamedTuple):
    """The best orders when all operators have devices."""

    makespan: int
    """The cutoff if none is less."""
    bound: int
    start: IntArray
    """Of each operator."""
    transfers: IntArray
    """Rows of tensor, target device or (`per_edge`) consumer, start."""
    nodes: int


@compiled
def order_block(state: State, domain: BoolArray, cutoff: int, limit: int) -> Ordered:
    """Orders of everything for the least makespan below a cutoff; all have one device."""
    work = state.work
    operators = len(domain)
    _, jobs, _ = _measure(state, domain)
    events, job_of = to_events(state.data, domain, work, jobs)
    event_start = np.zeros(jobs, dtype=np.int64)
    value, bound, nodes = best_sequence(events, cutoff, 0, limit, event_start)
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
    return Ordered(value, bound, start, transfers, nodes)

"""Devices that the operators of a block can still have, and the least value they allow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled, compiled_lean
from moirai_tf.placement.exact.blocks.block import NEVER, OPEN, BlockArrays
from moirai_tf.placement.exact.blocks.jobs import Jobs, collect_jobs, new_jobs, resources_bound
from moirai_tf.placement.exact.blocks.load_bound import Loads, loads_bound, new_loads
from moirai_tf.placement.problem import BoolArray, IntArray


class Windows(NamedTuple):
    """Longest paths around operators by device: (operators, devices) each, in ticks."""

    weight: IntArray
    """What an operator adds to its paths."""
    head: IntArray
    """Least weight of the heaviest path to an operator."""
    tail: IntArray
    """Least weight of the heaviest path behind an operator."""


@compiled
def new_windows(operators: int, devices: int) -> Windows:
    """Scratch for so many operators and devices."""
    return Windows(
        np.zeros((operators, devices), dtype=np.int64),
        np.zeros((operators, devices), dtype=np.int64),
        np.zeros((operators, devices), dtype=np.int64),
    )


@compiled_lean
def fill_heads(data: BlockArrays, domain: BoolArray, windows: Windows) -> int:
    """Sets `head`; returns the weight of the heaviest path of all."""
    operators, devices = data.compute.shape
    weight, heads = windows.weight, windows.head
    longest = 0
    for operator in range(operators):
        for target in range(devices):
            heads[operator, target] = 0
        for entry in range(data.first_input[operator], data.first_input[operator + 1]):
            tensor = data.input[entry]
            producer = data.producer[tensor]
            for target in range(devices):
                if not domain[operator, target]:
                    continue
                came = NEVER
                for source in range(devices):
                    if domain[producer, source]:
                        left = heads[producer, source] + weight[producer, source]
                        came = min(came, left + data.time[tensor, source, target])
                heads[operator, target] = max(heads[operator, target], came)
        least = NEVER
        for target in range(devices):
            if domain[operator, target]:
                least = min(least, heads[operator, target] + weight[operator, target])
        longest = max(longest, least)
    return longest


@compiled_lean
def fill_tails(data: BlockArrays, domain: BoolArray, windows: Windows) -> None:
    """Sets `tail`."""
    operators, devices = data.compute.shape
    weight, tails = windows.weight, windows.tail
    for operator in range(operators - 1, -1, -1):
        for source in range(devices):
            longest = 0
            if domain[operator, source]:
                for entry in range(data.first_output[operator], data.first_output[operator + 1]):
                    tensor = data.output[entry]
                    for place in range(data.first_reader[tensor], data.first_reader[tensor + 1]):
                        reader = data.reader[place]
                        least = NEVER
                        for target in range(devices):
                            if domain[reader, target]:
                                way = data.time[tensor, source, target] + weight[reader, target]
                                least = min(least, way + tails[reader, target])
                        longest = max(longest, least)
            tails[operator, source] = longest


@compiled_lean
def settle(domain: BoolArray, device: IntArray) -> bool:
    """Sets the `device` (operators,) of those that have one left; False if one has none."""
    operators, devices = domain.shape
    for operator in range(operators):
        count = 0
        for place in range(devices):
            if domain[operator, place]:
                count += 1
                device[operator] = place
        if count == 0:
            return False
        if count > 1:
            device[operator] = OPEN
    return True


@compiled_lean
def unite(data: BlockArrays, domain: BoolArray) -> None:
    """Leaves each operator the devices that are open to its whole unit."""
    operators, devices = domain.shape
    for operator in range(operators):
        first = data.unit[operator]
        for place in range(devices):
            domain[first, place] &= domain[operator, place]
    for operator in range(operators):
        for place in range(devices):
            domain[operator, place] &= domain[data.unit[operator], place]


@compiled_lean
def fit(data: BlockArrays, domain: BoolArray, device: IntArray) -> bool:
    """Removes devices without memory for an operator; whether any was removed."""
    operators, devices = domain.shape
    changed = False
    for place in range(devices):
        left = data.room[place]
        for operator in range(operators):
            if device[operator] == place:
                left -= data.memory[operator]
        for operator in range(operators):
            need = data.memory[operator] if device[operator] == OPEN else 0
            if domain[operator, place] and need > left:
                domain[operator, place] = False
                changed = True
    return changed


@compiled_lean
def shorten(domain: BoolArray, windows: Windows, limit: int) -> bool:
    """Removes devices through which no path is lighter than a limit; whether any was removed."""
    operators, devices = domain.shape
    changed = False
    for operator in range(operators):
        for place in range(devices):
            if domain[operator, place]:
                path = windows.head[operator, place] + windows.weight[operator, place]
                if path + windows.tail[operator, place] >= limit:
                    domain[operator, place] = False
                    changed = True
    return changed


class SearchState(NamedTuple):
    """A block, its prices, and scratch for one node of the search."""

    data: BlockArrays
    price: IntArray
    """(operators, devices): what an operator pays on a device besides its time."""
    extra: IntArray
    """(operators, devices): price above the least that is open to the operator."""
    pure: Windows
    """Of times."""
    priced: Windows
    """Of times and `extra`."""
    jobs: Jobs
    loads: Loads


@compiled
def new_state(data: BlockArrays, price: IntArray) -> SearchState:
    """Scratch for a search of this block."""
    operators, devices = data.compute.shape
    pure = new_windows(operators, devices)
    pure.weight[:] = data.compute
    extra = np.zeros((operators, devices), dtype=np.int64)
    priced = new_windows(operators, devices)
    return SearchState(data, price, extra, pure, priced, new_jobs(data), new_loads(data))


@compiled_lean
def _set_extra(state: SearchState, domain: BoolArray) -> int:
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
def propagate(
    state: SearchState, domain: BoolArray, weights: FloatArray, best: int, steps: int
) -> int:
    """Removes devices that lead to no value below `best`.

    Args:
      state: the block.
      domain: (operators, devices): what is possible; changed.
      weights: (resources,), from which the bound by loads starts; changed.
      best: only a smaller value is of interest.
      steps: of that bound's ascent.

    Returns:
      A lower bound on makespan and prices; `best` if nothing below is possible.
    """
    data, jobs, pure = state.data, state.jobs, state.pure
    path = _narrow(state, domain, best)
    if path >= best:
        return best
    base, count, floor = measure(state, domain)
    bound = base + resources_bound(jobs.table, jobs.finish, count, jobs.scratch, path - base)
    if bound >= best:
        return best
    found = loads_bound(
        data,
        domain,
        jobs.device,
        state.extra,
        pure.head,
        pure.tail,
        state.loads,
        weights,
        floor,
        best - base,
        steps,
    )
    return min(best, max(bound, base + found))


@compiled_lean
def _narrow(state: SearchState, domain: BoolArray, best: int) -> int:
    """Removes devices by units, memory and paths; the heaviest path with prices, at most `best`."""
    data, device = state.data, state.jobs.device
    bound, changed = 0, True
    while changed:
        unite(data, domain)
        if not settle(domain, device):
            return best
        if fit(data, domain, device):
            continue
        base = _set_extra(state, domain)
        bound = base + fill_heads(data, domain, state.priced)
        fill_tails(data, domain, state.priced)
        if bound >= best:
            return best
        changed = shorten(domain, state.priced, best - base)
    return bound


@compiled_lean
def measure(state: SearchState, domain: BoolArray) -> tuple[int, int, int]:
    """Sets windows and jobs; returns the least prices, the number of jobs, the longest path."""
    settle(domain, state.jobs.device)
    base = _set_extra(state, domain)
    fill_tails(state.data, domain, state.priced)
    fill_tails(state.data, domain, state.pure)
    longest = fill_heads(state.data, domain, state.pure)
    count = collect_jobs(state.data, state.pure.head, state.priced.tail, state.jobs)
    return base, count, longest

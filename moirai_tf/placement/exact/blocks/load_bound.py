"""Lower bound on a block by the loads of all its resources together, undecided operators included.

The makespan is at least the load of each device, port or link, plus the least time before its
first and after its last job. So it is at least the average of these, with weights that sum to 1
(Lagrangian relaxation), and so are makespan and prices together for the devices that make this
average and the prices least. Those are found by dynamic programming along a forest of edges;
the weights by exponentiated subgradient steps (Kivinen and Warmuth 1997).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled, compiled_lean
from moirai_tf.placement.evaluate.channels import NOTHING, channels
from moirai_tf.placement.exact.blocks.block import NEVER, OPEN, BlockArrays
from moirai_tf.placement.problem import BoolArray, IntArray

_BITS = 12
"""Weights are multiples of 2**-12, so that sums are exact."""
_BOLDEST = 2.0
"""Largest change of a weight's logarithm in one step."""
_SMALLEST = 1e-5
"""Weight below which a resource would not come back."""
_FAR = 1.25
"""What a bound is raised toward is at most this times the bound."""


class Edges(NamedTuple):
    """Which operators' transfers are counted where."""

    first: IntArray
    """Edges into operator i are `first[i]` to `first[i + 1]`, one for each producer."""
    producer: IntArray
    time: IntArray
    """(edges, devices, devices): what an edge adds at least to the resources it uses."""
    parent: IntArray
    """Producer whose transfers to an operator count while both are open; -1 for none."""


class Loads(NamedTuple):
    """Scratch of the bound."""

    edges: Edges
    around: IntArray
    """(resources,): least time before and after the jobs of a resource."""
    weight: IntArray
    """(resources,), in 2**-12: of devices, then of links or ports."""
    way: IntArray
    """(devices, devices): weight of what a transfer occupies."""
    cost: IntArray
    """(operators, devices): of an operator and all that hangs on it."""
    hanging: IntArray
    """(operators, devices): least cost of what hangs on an operator."""
    load: IntArray
    """(resources,): of the cheapest devices, with `around`."""
    chosen: IntArray
    """The cheapest device of each operator."""


@compiled
def new_loads(data: BlockArrays) -> Loads:
    """Scratch for a search of this block."""
    operators, devices = data.compute.shape
    resources = data.resources
    return Loads(
        _edges(data),
        np.zeros(resources, dtype=np.int64),
        np.zeros(resources, dtype=np.int64),
        np.zeros((devices, devices), dtype=np.int64),
        np.zeros((operators, devices), dtype=np.int64),
        np.zeros((operators, devices), dtype=np.int64),
        np.zeros(resources, dtype=np.int64),
        np.zeros(operators, dtype=np.int64),
    )


@compiled
def _edges(data: BlockArrays) -> Edges:
    """Edges; a tensor that one transfer may bring to several readers is split among them."""
    operators, devices = data.compute.shape
    first = np.zeros(operators + 1, dtype=np.int64)
    producers = np.zeros(len(data.input), dtype=np.int64)
    time = np.zeros((len(data.input), devices, devices), dtype=np.int64)
    parent = np.full(operators, -1, dtype=np.int64)
    count = 0
    for operator in range(operators):
        for entry in range(data.first_input[operator], data.first_input[operator + 1]):
            tensor = data.input[entry]
            producer = data.producer[tensor]
            parent[operator] = max(parent[operator], producer)
            edge = first[operator]
            while edge < count and producers[edge] != producer:
                edge += 1
            producers[edge] = producer
            count = max(count, edge + 1)
            readers = data.first_reader[tensor + 1] - data.first_reader[tensor]
            time[edge] += data.time[tensor] // (1 if data.per_edge else readers)
        first[operator + 1] = count
    return Edges(first, producers[:count], time[:count], parent)


@compiled_lean
def loads_bound(
    data: BlockArrays,
    domain: BoolArray,
    device: IntArray,
    extra: IntArray,
    head: IntArray,
    tail: IntArray,
    loads: Loads,
    weights: FloatArray,
    floor: int,
    goal: int,
    steps: int,
) -> int:
    """The best bound that some steps of ascent find.

    Args:
      data: the block.
      domain: (operators, devices): what is possible.
      device: of each operator; OPEN where several are possible.
      extra: (operators, devices): price.
      head: (operators, devices), in ticks: earliest starts.
      tail: (operators, devices), in ticks: least time after an operator, without prices.
      loads: scratch.
      weights: (resources,) summing to 1, where the ascent begins; changed.
      floor: a lower bound on the makespan.
      goal: bound that suffices.
      steps: of ascent.
    """
    best = 0
    _fill_around(data, domain, head, tail, loads, floor)
    for _ in range(steps):
        _round(data, weights, loads)
        value = -((-_cheapest(data, domain, device, extra, loads)) >> _BITS)
        best = max(best, value)
        if best >= goal:
            break
        _trace(data, domain, device, loads)
        if not _ascend(loads, weights, min(goal, int(_FAR * value)) - value):
            break
    return best


@compiled_lean
def _fill_around(
    data: BlockArrays,
    domain: BoolArray,
    head: IntArray,
    tail: IntArray,
    loads: Loads,
    floor: int,
) -> None:
    """Least time before plus least time after what may occupy each resource.

    A resource that is not used, or could not be used in the least makespan, has load 0: no more
    than `floor` may be taken for it.
    """
    operators, devices = data.compute.shape
    before, after, edges = loads.load, loads.around, loads.edges
    before[:] = NEVER
    after[:] = NEVER
    for operator in range(operators):
        for target in range(devices):
            if not domain[operator, target]:
                continue
            rest = data.compute[operator, target] + tail[operator, target]
            if data.compute[operator, target] > 0 and operator < operators - 1:
                before[target] = min(before[target], head[operator, target])
                after[target] = min(after[target], tail[operator, target])
            for edge in range(edges.first[operator], edges.first[operator + 1]):
                producer = edges.producer[edge]
                for source in range(devices):
                    if edges.time[edge, source, target] == 0 or not domain[producer, source]:
                        continue
                    ready = head[producer, source] + data.compute[producer, source]
                    for channel in channels(data.congestion, devices, source, target):
                        if channel != NOTHING:
                            before[channel] = min(before[channel], ready)
                            after[channel] = min(after[channel], rest)
    for resource in range(len(after)):
        used = before[resource] < NEVER
        after[resource] = min(floor, before[resource] + after[resource]) if used else 0


@compiled_lean
def _round(data: BlockArrays, weights: FloatArray, loads: Loads) -> None:
    """Sets whole weights that sum to exactly 1, and the weights of transfers."""
    devices = data.compute.shape[1]
    left, largest = 1 << _BITS, 0
    for resource in range(len(weights)):
        loads.weight[resource] = int(weights[resource] * (1 << _BITS))
        left -= loads.weight[resource]
        if weights[resource] > weights[largest]:
            largest = resource
    loads.weight[largest] += left
    for source in range(devices):
        for target in range(devices):
            loads.way[source, target] = 0
            for channel in channels(data.congestion, devices, source, target):
                if source != target and channel != NOTHING:
                    loads.way[source, target] += loads.weight[channel]


@compiled_lean
def _cheapest(
    data: BlockArrays, domain: BoolArray, device: IntArray, extra: IntArray, loads: Loads
) -> int:
    """Least weighted loads and prices over all devices, in 2**-12.

    An operator's cost hangs on its parent while both are open; transfers from or to an operator
    with a device are paid by the other end.
    """
    edges = loads.edges
    total = 0
    for resource in range(len(loads.weight)):
        total += loads.weight[resource] * loads.around[resource]
    loads.hanging[:] = 0
    for operator in range(len(device) - 1, -1, -1):
        best = _fill_cost(data, domain, device, extra, loads, operator)
        parent = edges.parent[operator]
        alone = device[operator] != OPEN or parent < 0 or device[parent] != OPEN
        if alone:
            total += best
        for edge in range(edges.first[operator], edges.first[operator + 1]):
            producer = edges.producer[edge]
            if device[producer] != OPEN:
                continue
            if device[operator] != OPEN or (producer == parent and not alone):
                _hang(domain, loads, edge, operator, alone)
    return total


@compiled_lean
def _fill_cost(
    data: BlockArrays,
    domain: BoolArray,
    device: IntArray,
    extra: IntArray,
    loads: Loads,
    operator: int,
) -> int:
    """Sets an operator's costs with what hangs on it; returns the least.

    The exit occupies no device: its time is part of `around`.
    """
    edges, way = loads.edges, loads.way
    inner = operator < len(device) - 1
    best = 4 * NEVER
    for target in range(domain.shape[1]):
        if not domain[operator, target]:
            continue
        spent = loads.hanging[operator, target] + (extra[operator, target] << _BITS)
        if inner:
            spent += loads.weight[target] * data.compute[operator, target]
        for edge in range(edges.first[operator], edges.first[operator + 1]):
            source = device[edges.producer[edge]]
            if source != OPEN:
                spent += way[source, target] * edges.time[edge, source, target]
        loads.cost[operator, target] = spent
        best = min(best, spent)
    return best


@compiled_lean
def _hang(domain: BoolArray, loads: Loads, edge: int, operator: int, alone: bool) -> None:
    """Adds to an open producer what an edge costs at least, with all behind it unless `alone`."""
    producer = loads.edges.producer[edge]
    for source in range(domain.shape[1]):
        least = 4 * NEVER
        for target in range(domain.shape[1]):
            if domain[operator, target]:
                spent = loads.way[source, target] * loads.edges.time[edge, source, target]
                if not alone:
                    spent += loads.cost[operator, target]
                least = min(least, spent)
        if domain[producer, source]:
            loads.hanging[producer, source] += least


@compiled_lean
def _trace(data: BlockArrays, domain: BoolArray, device: IntArray, loads: Loads) -> None:
    """Sets the loads of the cheapest devices."""
    edges, chosen, load = loads.edges, loads.chosen, loads.load
    devices = domain.shape[1]
    for resource in range(len(load)):
        load[resource] = loads.around[resource]
    for operator in range(len(device)):
        target = chosen[operator] = _choose(domain, device, loads, operator)
        if operator < len(device) - 1:
            load[target] += data.compute[operator, target]
        for edge in range(edges.first[operator], edges.first[operator + 1]):
            producer = edges.producer[edge]
            source = chosen[producer]
            known = device[producer] != OPEN or device[operator] != OPEN
            if source == target or not (known or producer == edges.parent[operator]):
                continue
            for channel in channels(data.congestion, devices, source, target):
                if channel != NOTHING:
                    load[channel] += edges.time[edge, source, target]


@compiled_lean
def _choose(domain: BoolArray, device: IntArray, loads: Loads, operator: int) -> int:
    """The cheapest device of an operator once its parent has its device."""
    edges = loads.edges
    parent = edges.parent[operator]
    hangs = device[operator] == OPEN and parent >= 0 and device[parent] == OPEN
    chosen, least = OPEN, 8 * NEVER - 1
    for target in range(domain.shape[1]):
        if not domain[operator, target]:
            continue
        spent = loads.cost[operator, target]
        for edge in range(edges.first[operator], edges.first[operator + 1]):
            if hangs and edges.producer[edge] == parent:
                source = loads.chosen[parent]
                spent += loads.way[source, target] * edges.time[edge, source, target]
        if spent < least:
            chosen, least = target, spent
    return chosen


@compiled_lean
def _ascend(loads: Loads, weights: FloatArray, missing: int) -> bool:
    """Moves weights toward larger loads; False where no step raises the bound.

    The step is Polyak's: as long as would close what is missing if loads stayed the same.
    """
    mean, variance, top, total = 0.0, 0.0, 0.0, 0.0
    for resource in range(len(weights)):
        mean += weights[resource] * loads.load[resource]
    for resource in range(len(weights)):
        above = loads.load[resource] - mean
        variance += weights[resource] * above**2
        top = max(top, above)
    if variance <= 0 or top <= 0:
        return False
    step = min(missing / variance, _BOLDEST / top)
    for resource in range(len(weights)):
        factor = np.exp(step * (loads.load[resource] - mean))
        weights[resource] = max(weights[resource], _SMALLEST) * factor
        total += weights[resource]
    for resource in range(len(weights)):
        weights[resource] /= total
    return True

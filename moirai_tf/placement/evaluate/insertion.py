"""The evaluator that all heuristics share: list scheduling with insertion, in machine code.

Operators are placed one after another, producers first. Tensors that an operator misses are
fetched in order of their producers' finish, and each transfer and operator takes the first gap
that fits; in mode `per_tensor` a tensor that is on the device, or on its way, is not fetched
again. All times are whole nanoseconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.compiled import compiled_lean
from moirai_tf.placement.evaluate.channels import NOTHING, channels
from moirai_tf.placement.problem import PER_EDGE, Arrays, IntArray, Problem
from moirai_tf.placement.schedule import Placed, Schedule, Transfer, schedule_of

NEVER = -1


class State(NamedTuple):
    """A schedule that grows; the arrays are changed in place."""

    device: IntArray
    """(operators,), as the next two: of those that are placed, others `NEVER`."""
    start_ns: IntArray
    finish_ns: IntArray
    arrival_ns: IntArray
    """(tensors, devices): when a transfer that others may share arrives, or `NEVER`."""
    fetch_ns: IntArray
    """(edges,): start of the transfer that was made for the edge, or `NEVER`."""
    begin_ns: IntArray
    """(resources, n): busy intervals, apart and in order; touching ones are merged."""
    end_ns: IntArray
    intervals: IntArray
    """(resources,): number of busy intervals of each."""
    missing: IntArray
    """(3, fan-in): edge, start and finish of the transfers of the last trial."""
    counts: IntArray
    """(1,): how many these are."""


def new_state(arrays: Arrays) -> State:
    """Nothing is placed."""
    operators, devices = arrays.compute_ns.shape
    edges = len(arrays.incoming)
    fan_in = int(np.diff(arrays.incoming_at).max(initial=0))
    shape = (arrays.resources, max(operators, edges) + 1)
    return State(
        device=np.full(operators, NEVER),
        start_ns=np.zeros(operators, dtype=np.int64),
        finish_ns=np.zeros(operators, dtype=np.int64),
        arrival_ns=np.full((len(arrays.producer), devices), NEVER),
        fetch_ns=np.full(edges, NEVER),
        begin_ns=np.empty(shape, dtype=np.int64),
        end_ns=np.empty(shape, dtype=np.int64),
        intervals=np.zeros(arrays.resources, dtype=np.int64),
        missing=np.zeros((3, fan_in), dtype=np.int64),
        counts=np.zeros(1, dtype=np.int64),
    )


class Trial(NamedTuple):
    """What placing an operator on a device would do."""

    start_ns: int
    finish_ns: int


class PartialSchedule:
    """A schedule that grows by one operator at a time, for heuristics that choose devices."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._state = new_state(problem.arrays)

    def trial(self, operator: int, device: int) -> Trial:
        """The earliest start of an operator whose producers are placed; changes nothing."""
        self._guard(operator, device)
        start_ns = trial(self.problem.arrays, self._state, operator, device)
        return Trial(start_ns, start_ns + int(self.problem.compute_ns[operator, device]))

    def arrival_ns(self, operator: int, device: int) -> int:
        """When all inputs of an operator whose producers are placed can be there."""
        self._guard(operator, device)
        return int(arrive(self.problem.arrays, self._state, operator, device))

    def place(self, operator: int, device: int) -> None:
        """Places an operator whose producers are placed."""
        self._guard(operator, device)
        place(self.problem.arrays, self._state, operator, device)

    def placed(self, operator: int) -> bool:
        """Whether an operator has been placed."""
        return bool(self._state.device[operator] != NEVER)

    def finish_ns(self, operator: int) -> int:
        """When a placed operator is done."""
        return int(self._state.finish_ns[operator])

    def finished(self) -> Schedule:
        """The schedule, once every operator is placed."""
        return schedule_in(self.problem, self._state)

    def _guard(self, operator: int, device: int) -> None:
        """Compiled code would not notice."""
        for tensor in self.problem.incoming[operator]:
            if not self.placed(self.problem.tensors[tensor].producer):
                raise ValueError(f"a producer of operator {operator} is not placed yet")
        if self.problem.operators[operator].compute_ns[device] is None:
            raise ValueError(f"operator {operator} cannot run on device {device}")


def schedule_in(problem: Problem, state: State) -> Schedule:
    """The schedule that compiled code has left in a state in which every operator is placed."""
    device = state.device.tolist()
    placed = map(Placed, device, state.start_ns.tolist(), state.finish_ns.tolist())
    fetch_ns = iter(state.fetch_ns.tolist())
    transfers = []
    for operator, tensors in enumerate(problem.incoming):
        target = device[operator]
        for tensor in tensors:
            start_ns = next(fetch_ns)
            if start_ns == NEVER:
                continue
            source = device[problem.tensors[tensor].producer]
            finish_ns = start_ns + problem.tensors[tensor].time_ns[source][target]
            reader = operator if problem.transfers == PER_EDGE else None
            transfers.append(Transfer(tensor, source, target, start_ns, finish_ns, reader))
    return schedule_of(placed, transfers)


@compiled_lean
def play(arrays: Arrays, state: State, order: IntArray, assignment: IntArray) -> int:
    """Places all operators anew in an order; the makespan."""
    state.intervals[:] = 0
    makespan_ns = 0
    for operator in order:
        makespan_ns = max(makespan_ns, place(arrays, state, operator, assignment[operator]))
    return makespan_ns


@compiled_lean
def place(arrays: Arrays, state: State, operator: int, device: int) -> int:
    """Places an operator whose producers are placed; its finish."""
    start_ns = trial(arrays, state, operator, device)
    finish_ns: int = start_ns + arrays.compute_ns[operator, device]
    for edge in range(arrays.incoming_at[operator], arrays.incoming_at[operator + 1]):
        state.fetch_ns[edge] = NEVER
    for index in range(state.counts[0]):
        edge, fetched_ns = state.missing[0, index], state.missing[1, index]
        arrived_ns = state.missing[2, index]
        tensor = arrays.incoming[edge]
        state.fetch_ns[edge] = fetched_ns
        if not arrays.per_edge:
            state.arrival_ns[tensor, device] = arrived_ns
        if fetched_ns < arrived_ns:
            source = state.device[arrays.producer[tensor]]
            first, second = channels(arrays.congestion, arrays.devices, source, device)
            occupy(state, first, fetched_ns, arrived_ns)
            occupy(state, second, fetched_ns, arrived_ns)
    if start_ns < finish_ns:
        occupy(state, device, start_ns, finish_ns)
    state.device[operator] = device
    state.start_ns[operator] = start_ns
    state.finish_ns[operator] = finish_ns
    for index in range(arrays.outgoing_at[operator], arrays.outgoing_at[operator + 1]):
        for target in range(arrays.devices):
            state.arrival_ns[arrays.outgoing[index], target] = NEVER
    return finish_ns


@compiled_lean
def trial(arrays: Arrays, state: State, operator: int, device: int) -> int:
    """The earliest start of an operator whose producers are placed; changes no schedule."""
    ready_ns = arrive(arrays, state, operator, device)
    duration_ns = arrays.compute_ns[operator, device]
    return _fit(state, device, ready_ns, duration_ns) if duration_ns else ready_ns


@compiled_lean
def arrive(arrays: Arrays, state: State, operator: int, device: int) -> int:
    """When all that an operator reads can be on a device; changes no schedule."""
    ready_ns = _inputs(arrays, state, operator, device)
    for index in range(state.counts[0]):
        edge, released_ns = state.missing[0, index], state.missing[1, index]
        tensor = arrays.incoming[edge]
        source = state.device[arrays.producer[tensor]]
        duration_ns = arrays.time_ns[arrays.matrix[tensor], source, device]
        start_ns = released_ns
        if duration_ns:
            start_ns = _fetch(arrays, state, index, source, device, duration_ns)
        state.missing[1, index] = start_ns
        state.missing[2, index] = start_ns + duration_ns
        ready_ns = max(ready_ns, start_ns + duration_ns)
    return ready_ns


@compiled_lean
def _inputs(arrays: Arrays, state: State, operator: int, device: int) -> int:
    """When the inputs that need no transfer are there; the others, sorted, go to `missing`."""
    ready_ns = 0
    count = 0
    for edge in range(arrays.incoming_at[operator], arrays.incoming_at[operator + 1]):
        tensor = arrays.incoming[edge]
        producer = arrays.producer[tensor]
        arrived_ns = state.finish_ns[producer]
        if state.device[producer] != device:
            arrived_ns = NEVER if arrays.per_edge else state.arrival_ns[tensor, device]
        ready_ns = max(ready_ns, arrived_ns)
        if arrived_ns >= 0:
            continue
        finish_ns = state.finish_ns[producer]
        place_at = count
        while place_at and state.missing[1, place_at - 1] > finish_ns:
            state.missing[0, place_at] = state.missing[0, place_at - 1]
            state.missing[1, place_at] = state.missing[1, place_at - 1]
            place_at -= 1
        state.missing[0, place_at] = edge
        state.missing[1, place_at] = finish_ns
        count += 1
    state.counts[0] = count
    return ready_ns


@compiled_lean
def _fetch(
    arrays: Arrays, state: State, index: int, source: int, device: int, duration_ns: int
) -> int:
    """The earliest transfer beside the committed ones and those already fetched in this trial."""
    first, second = channels(arrays.congestion, arrays.devices, source, device)
    start_ns = _fit_both(state, first, second, state.missing[1, index], duration_ns)
    moved = True
    while moved:
        moved = False
        for rival in range(index):
            rival_start_ns, rival_finish_ns = state.missing[1, rival], state.missing[2, rival]
            rival_source = state.device[arrays.producer[arrays.incoming[state.missing[0, rival]]]]
            rival_first, rival_second = channels(
                arrays.congestion, arrays.devices, rival_source, device
            )
            apart = first != rival_first and (second == NOTHING or second != rival_second)
            if first == NOTHING or apart or rival_start_ns == rival_finish_ns:
                continue
            if rival_start_ns < start_ns + duration_ns and start_ns < rival_finish_ns:
                start_ns = _fit_both(state, first, second, rival_finish_ns, duration_ns)
                moved = True
    return start_ns


@compiled_lean
def _fit_both(state: State, first: int, second: int, ready_ns: int, duration_ns: int) -> int:
    """Earliest start >= ready_ns at which both resources are free; duration_ns > 0."""
    if first == NOTHING:
        return ready_ns
    start_ns = _fit(state, first, ready_ns, duration_ns)
    if second == NOTHING:
        return start_ns
    while True:
        later_ns = _fit(state, second, start_ns, duration_ns)
        if later_ns == start_ns:
            return start_ns
        start_ns = _fit(state, first, later_ns, duration_ns)
        if later_ns == start_ns:
            return start_ns


@compiled_lean
def _fit(state: State, resource: int, ready_ns: int, duration_ns: int) -> int:
    """Earliest start >= ready_ns of a free gap; duration_ns > 0."""
    count = state.intervals[resource]
    begin_ns, end_ns = state.begin_ns, state.end_ns
    if count == 0 or ready_ns >= end_ns[resource, count - 1]:
        return ready_ns
    low, high = 0, count - 1  # the first interval that ends after ready_ns
    while low < high:
        middle = (low + high) // 2
        if end_ns[resource, middle] > ready_ns:
            high = middle
        else:
            low = middle + 1
    for index in range(low, count):
        if begin_ns[resource, index] - ready_ns >= duration_ns:
            return ready_ns
        ready_ns = end_ns[resource, index]
    return ready_ns


@compiled_lean
def occupy(state: State, resource: int, start_ns: int, finish_ns: int) -> None:
    """Marks a free interval of positive length as busy; `NOTHING` is no resource."""
    if resource == NOTHING:
        return
    count = state.intervals[resource]
    begin_ns, end_ns = state.begin_ns, state.end_ns
    index = count
    while index and begin_ns[resource, index - 1] > start_ns:
        index -= 1
    joins_left = index > 0 and end_ns[resource, index - 1] == start_ns
    joins_right = index < count and begin_ns[resource, index] == finish_ns
    if joins_left and joins_right:
        end_ns[resource, index - 1] = end_ns[resource, index]
        for later in range(index, count - 1):
            begin_ns[resource, later] = begin_ns[resource, later + 1]
            end_ns[resource, later] = end_ns[resource, later + 1]
        state.intervals[resource] = count - 1
    elif joins_left:
        end_ns[resource, index - 1] = finish_ns
    elif joins_right:
        begin_ns[resource, index] = start_ns
    else:
        for later in range(count, index, -1):
            begin_ns[resource, later] = begin_ns[resource, later - 1]
            end_ns[resource, later] = end_ns[resource, later - 1]
        begin_ns[resource, index], end_ns[resource, index] = start_ns, finish_ns
        state.intervals[resource] = count + 1

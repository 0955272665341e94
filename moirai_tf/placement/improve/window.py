"""The value of a window: what is before it stands, what follows counts by its tails.

A window is a range of positions in a plan's order. Each try places only the operators inside it,
on top of the devices and ports as the ones before it have left them. What follows it is seen as
tails of the present schedule: the time from an event to the end along tensors and along the order
of devices and ports. The value is an estimate of the makespan; the whole is played in the end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.compiled import compiled_lean
from moirai_tf.placement.evaluate.channels import NOTHING, channels
from moirai_tf.placement.evaluate.insertion import NEVER, State, place
from moirai_tf.placement.improve.list_plan import ListPlan
from moirai_tf.placement.problem import Arrays, IntArray


class Outside(NamedTuple):
    """What a window finds before and behind it; the arrays are changed in place."""

    begin_ns: IntArray
    """(resources, n): busy intervals before the window, as in `State`."""
    end_ns: IntArray
    intervals: IntArray
    tail_ns: IntArray
    """(tensors, devices): from the arrival of a tensor to the end, or `NEVER` where nobody
    behind the window reads it."""
    sent_tail_ns: IntArray
    """(tensors,): the same from the start of its first transfer behind the window."""
    next_tail_ns: IntArray
    """(resources,): from the start of the first event behind the window to the end."""
    next_start_ns: IntArray
    """(resources,): when that event starts."""


def outside_of(state: State) -> Outside:
    """Room for what is outside any window."""
    tensors, _ = state.arrival_ns.shape
    return Outside(
        begin_ns=np.empty_like(state.begin_ns),
        end_ns=np.empty_like(state.end_ns),
        intervals=np.zeros_like(state.intervals),
        tail_ns=np.full_like(state.arrival_ns, NEVER),
        sent_tail_ns=np.full(tensors, NEVER),
        next_tail_ns=np.zeros_like(state.intervals),
        next_start_ns=np.zeros_like(state.intervals),
    )


@compiled_lean
def play_range(arrays: Arrays, state: State, plan: ListPlan, first: int, last: int) -> int:
    """Places the operators at positions first..last-1; their latest finish."""
    latest_ns = 0
    for index in range(first, last):
        operator = plan.order[index]
        latest_ns = max(latest_ns, place(arrays, state, operator, plan.assignment[operator]))
    return latest_ns


@compiled_lean
def remember(
    arrays: Arrays, state: State, plan: ListPlan, outside: Outside, first: int, last: int
) -> None:
    """Keeps the resources as they are now, from when the window can need them on."""
    needed_ns = _earliest_need(arrays, state, plan, first, last)
    for resource in range(arrays.resources):
        count = 0
        for index in range(state.intervals[resource]):
            if state.end_ns[resource, index] > needed_ns:
                outside.begin_ns[resource, count] = state.begin_ns[resource, index]
                outside.end_ns[resource, count] = state.end_ns[resource, index]
                count += 1
        outside.intervals[resource] = count


@compiled_lean
def _earliest_need(arrays: Arrays, state: State, plan: ListPlan, first: int, last: int) -> int:
    """No operator or transfer of the window starts before, wherever the window goes."""
    needed_ns = 2**62
    for index in range(first, last):
        operator = plan.order[index]
        begin, end = arrays.incoming_at[operator], arrays.incoming_at[operator + 1]
        if begin == end:
            return 0
        for edge in range(begin, end):
            producer = arrays.producer[arrays.incoming[edge]]
            if plan.position[producer] < first:
                needed_ns = min(needed_ns, state.finish_ns[producer])
    return needed_ns


@compiled_lean
def restore(
    arrays: Arrays, state: State, plan: ListPlan, outside: Outside, first: int, last: int
) -> None:
    """Takes the window's operators off again."""
    for resource in range(arrays.resources):
        count = outside.intervals[resource]
        state.intervals[resource] = count
        for index in range(count):
            state.begin_ns[resource, index] = outside.begin_ns[resource, index]
            state.end_ns[resource, index] = outside.end_ns[resource, index]
    for index in range(first, last):
        operator = plan.order[index]
        for edge in range(arrays.incoming_at[operator], arrays.incoming_at[operator + 1]):
            if state.fetch_ns[edge] != NEVER:
                state.fetch_ns[edge] = NEVER
                state.arrival_ns[arrays.incoming[edge], state.device[operator]] = NEVER


@compiled_lean
def look_back(arrays: Arrays, state: State, plan: ListPlan, outside: Outside, last: int) -> None:
    """Tails of what is behind position `last` in the present schedule, from its end on."""
    outside.tail_ns[:] = NEVER
    outside.sent_tail_ns[:] = NEVER
    outside.next_tail_ns[:] = 0
    outside.next_start_ns[:] = 2**62
    for index in range(len(plan.order) - 1, last - 1, -1):
        operator = plan.order[index]
        device = state.device[operator]
        after_ns = _after(arrays, state, outside, operator)
        if state.finish_ns[operator] <= outside.next_start_ns[device]:
            after_ns = max(after_ns, outside.next_tail_ns[device])
        duration_ns = state.finish_ns[operator] - state.start_ns[operator]
        if duration_ns:
            outside.next_tail_ns[device] = after_ns + duration_ns
            outside.next_start_ns[device] = state.start_ns[operator]
        _look_at_inputs(arrays, state, outside, operator, after_ns + duration_ns)


@compiled_lean
def _after(arrays: Arrays, state: State, outside: Outside, operator: int) -> int:
    """From an operator's finish to the end along its tensors."""
    after_ns = 0
    for index in range(arrays.outgoing_at[operator], arrays.outgoing_at[operator + 1]):
        tensor = arrays.outgoing[index]
        after_ns = max(after_ns, outside.sent_tail_ns[tensor])
        after_ns = max(after_ns, outside.tail_ns[tensor, state.device[operator]])
    return after_ns


@compiled_lean
def _look_at_inputs(
    arrays: Arrays, state: State, outside: Outside, operator: int, tail_ns: int
) -> None:
    """Hands an operator's tail on to its tensors and to the transfers that were made for it."""
    device = state.device[operator]
    for edge in range(arrays.incoming_at[operator], arrays.incoming_at[operator + 1]):
        tensor = arrays.incoming[edge]
        arrived_ns = max(outside.tail_ns[tensor, device], tail_ns)
        outside.tail_ns[tensor, device] = arrived_ns
        if state.fetch_ns[edge] == NEVER:
            continue
        source = state.device[arrays.producer[tensor]]
        duration_ns = arrays.time_ns[arrays.matrix[tensor], source, device]
        start_ns = state.fetch_ns[edge]
        after_ns = tail_ns if arrays.per_edge else arrived_ns
        first, second = channels(arrays.congestion, arrays.devices, source, device)
        for resource in (first, second):
            if resource == NOTHING or not duration_ns:
                continue
            if start_ns + duration_ns <= outside.next_start_ns[resource]:
                after_ns = max(after_ns, outside.next_tail_ns[resource])
        for resource in (first, second):
            if resource != NOTHING and duration_ns:
                outside.next_tail_ns[resource] = after_ns + duration_ns
                outside.next_start_ns[resource] = start_ns
        sent_ns = max(outside.sent_tail_ns[tensor], after_ns + duration_ns)
        outside.sent_tail_ns[tensor] = sent_ns


@compiled_lean
def value(
    arrays: Arrays,
    state: State,
    plan: ListPlan,
    outside: Outside,
    first: int,
    last: int,
    enough_ns: float,
) -> int:
    """Estimate of the makespan with the window as planned; stops where it is above `enough_ns`."""
    worst_ns = 0
    for index in range(first, last):
        operator = plan.order[index]
        place(arrays, state, operator, plan.assignment[operator])
        worst_ns = max(worst_ns, _through(arrays, state, outside, operator))
        if worst_ns > enough_ns:
            return worst_ns
    for resource in range(arrays.resources):
        count = state.intervals[resource]
        if count:
            ended_ns = state.end_ns[resource, count - 1]
            worst_ns = max(worst_ns, ended_ns + outside.next_tail_ns[resource])
    return worst_ns


@compiled_lean
def _through(arrays: Arrays, state: State, outside: Outside, operator: int) -> int:
    """The longest way through a placed operator, and its tensors, to the end."""
    device, finish_ns = state.device[operator], state.finish_ns[operator]
    worst_ns: int = finish_ns
    for index in range(arrays.outgoing_at[operator], arrays.outgoing_at[operator + 1]):
        tensor = arrays.outgoing[index]
        for target in range(arrays.devices):
            tail_ns = outside.tail_ns[tensor, target]
            if tail_ns != NEVER:
                way_ns = arrays.time_ns[arrays.matrix[tensor], device, target]
                worst_ns = max(worst_ns, finish_ns + way_ns + tail_ns)
    return worst_ns

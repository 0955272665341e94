"""The best order of operators and transfers when every operator has its device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.compiled import compiled, compiled_lean
from moirai_tf.placement.exact.blocks.jackson_bound import preemptive_bound
from moirai_tf.placement.problem import IntArray


class Events(NamedTuple):
    """Operators and transfers of a block whose operators have devices.

    Event e waits for `before[first[e]:first[e + 1]]`; events are numbered in a topological order.
    """

    length: IntArray
    resources: IntArray
    """(events, 2): what it occupies; -1 for nothing."""
    first: IntArray
    before: IntArray
    lag: IntArray
    """Least time between the end of `before` and the start."""
    tail: IntArray
    """Least time from an event's end to the end of the block."""
    machines: int
    """Number of resources."""


@compiled_lean
def earliest(events: Events, finish: IntArray, free: IntArray, start: IntArray) -> int:
    """Earliest starts of events without a finish, beside what has one; and a lower bound.

    Args:
      events: the events.
      finish: when each event ends; -1 where that is open.
      free: when each resource is free.
      start: output.
    """
    bound = 0
    for event in range(len(events.length)):
        if finish[event] >= 0:
            bound = max(bound, finish[event] + events.tail[event])
            continue
        ready = 0
        for entry in range(events.first[event], events.first[event + 1]):
            other = events.before[entry]
            if finish[other] >= 0:
                ready = max(ready, finish[other] + events.lag[entry])
            else:
                ready = max(ready, start[other] + events.length[other] + events.lag[entry])
        for side in range(2):
            if events.resources[event, side] >= 0:
                ready = max(ready, free[events.resources[event, side]])
        start[event] = ready
        bound = max(bound, ready + events.length[event] + events.tail[event])
    return bound


@compiled_lean
def machines_bound(events: Events, finish: IntArray, start: IntArray, scratch: IntArray) -> int:
    """The largest of the resources' bounds over events without a finish.

    Args:
      events: the events.
      finish: when each event ends; -1 where that is open.
      start: earliest start of each open event.
      scratch: (2, events).
    """
    bound = 0
    members, left = scratch[0], scratch[1]
    for machine in range(events.machines):
        count = 0
        for event in range(len(events.length)):
            uses = events.resources[event, 0] == machine or events.resources[event, 1] == machine
            if uses and finish[event] < 0:
                members[count] = event
                count += 1
        if count > 1:
            found = preemptive_bound(start, events.length, events.tail, members[:count], left)
            bound = max(bound, found)
    return bound


@compiled_lean
def _candidates(events: Events, finish: IntArray, start: IntArray, found: IntArray) -> int:
    """Events of which one comes next in some active schedule (Giffler and Thompson 1960).

    The event that can end first, and those that would delay it: in an active schedule one of
    them is next on its resource. Longest tail first.
    """
    first = -1
    for event in range(len(events.length)):
        if finish[event] >= 0:
            continue
        ends = start[event] + events.length[event]
        if first < 0 or ends < start[first] + events.length[first]:
            first = event
    limit = start[first] + events.length[first]
    count = 0
    for event in range(len(events.length)):
        if finish[event] >= 0 or (event != first and start[event] >= limit):
            continue
        if event == first or _share(events.resources, event, first):
            place = count
            rank = events.tail[event] + events.length[event]
            while place and events.tail[found[place - 1]] + events.length[found[place - 1]] < rank:
                found[place] = found[place - 1]
                place -= 1
            found[place] = event
            count += 1
    return count


@compiled_lean
def _share(resources: IntArray, one: int, other: int) -> bool:
    for side in range(2):
        used = resources[one, side]
        if used >= 0 and (used == resources[other, 0] or used == resources[other, 1]):
            return True
    return False


class _Progress(NamedTuple):
    """What has been put in order so far."""

    finish: IntArray
    """When each event ends; -1 where that is open."""
    free: IntArray
    """When each resource is free."""
    undo: IntArray
    """(levels, 2): when the resources of a level's event were free before."""


@compiled_lean
def _put(events: Events, progress: _Progress, level: int, event: int, start: int) -> None:
    """Makes an event the next one on its resources."""
    progress.finish[event] = start + events.length[event]
    for side in range(2):
        resource = events.resources[event, side]
        if resource >= 0:
            progress.undo[level, side] = progress.free[resource]
            progress.free[resource] = progress.finish[event]


@compiled_lean
def _take_back(events: Events, progress: _Progress, level: int, event: int) -> None:
    progress.finish[event] = -1
    for side in range(2):
        resource = events.resources[event, side]
        if resource >= 0:
            progress.free[resource] = progress.undo[level, side]


@compiled
def best_sequence(
    events: Events, cutoff: int, enough: int, node_limit: int, best_start: IntArray
) -> tuple[int, int, int]:
    """Branch and bound over active schedules.

    Args:
      events: what is to be ordered.
      cutoff: only a smaller makespan is of interest.
      enough: a makespan that need not be improved.
      node_limit: nodes after which the search gives up.
      best_start: output: the starts of the best schedule found, if any.

    Returns:
      The least makespan found (`cutoff` if none was less), a lower bound on the optimum that is
      at most `cutoff`, and the number of nodes.
    """
    count = len(events.length)
    finish = np.full(count, -1, dtype=np.int64)
    free = np.zeros(events.machines, dtype=np.int64)
    progress = _Progress(finish, free, np.zeros((count + 1, 2), dtype=np.int64))
    start = np.zeros(count, dtype=np.int64)
    scratch = np.empty((2, count), dtype=np.int64)
    options = np.empty((count + 1, count), dtype=np.int64)
    sizes = np.zeros(count + 1, dtype=np.int64)
    taken = np.zeros(count + 1, dtype=np.int64)
    best = open_bound = cutoff
    root = earliest(events, finish, free, start)
    root = max(root, machines_bound(events, finish, start, scratch))
    sizes[0] = _candidates(events, finish, start, options[0])
    level, nodes = 0 if root < cutoff else -1, 0
    while level >= 0 and best > max(root, enough):
        if taken[level] > 0:
            _take_back(events, progress, level, options[level, taken[level] - 1])
        if taken[level] == sizes[level]:
            level -= 1
            continue
        event = options[level, taken[level]]
        taken[level] += 1
        nodes += 1
        earliest(events, finish, free, start)
        _put(events, progress, level, event, start[event])
        bound = earliest(events, finish, free, start)
        if bound < best:
            bound = max(bound, machines_bound(events, finish, start, scratch))
        if bound >= best:
            continue
        if level + 1 == count:
            best = bound
            best_start[:count] = finish - events.length
        elif nodes > node_limit:
            open_bound = min(open_bound, bound)
        else:
            level += 1
            taken[level] = 0
            sizes[level] = _candidates(events, finish, start, options[level])
    if best > root and level >= 0:
        return best, root, nodes
    return best, min(best, max(root, open_bound)), nodes

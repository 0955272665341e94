"""The best order of operators and transfers when every operator has its device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.decomposition.machine import preemptive_bound
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
    tail: IntArray
    """Least time from an event's end to the end of the block."""
    machines: int
    """Number of resources."""


@compiled
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
                ready = max(ready, finish[other])
            else:
                ready = max(ready, start[other] + events.length[other])
        for side in range(2):
            if events.resources[event, side] >= 0:
                ready = max(ready, free[events.resources[event, side]])
        start[event] = ready
        bound = max(bound, ready + events.length[event] + events.tail[event])
    return bound


@compiled
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


@compiled
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


@compiled
def _share(resources: IntArray, one: int, other: int) -> bool:
    for side in range(2):
        used = resources[one, side]
        if used >= 0 and (used == resources[other, 0] or used == resources[other, 1]):
            return True
    return False


@compiled
def best_sequence(
    events: Events, cutoff: int, node_limit: int, best_start: IntArray
) -> tuple[int, int]:
    """Branch and bound over active schedules.

    Args:
      events: what is to be ordered.
      cutoff: only a smaller makespan is of interest.
      node_limit: nodes after which the search gives up.
      best_start: output: the starts of the best schedule found, if any.

    Returns:
      The least makespan found (`cutoff` if none was less) and a lower bound on the optimum that
      is at most `cutoff`.
    """
    count = len(events.length)
    finish = np.full(count, -1, dtype=np.int64)
    start = np.zeros(count, dtype=np.int64)
    free = np.zeros(events.machines, dtype=np.int64)
    scratch = np.empty((2, count), dtype=np.int64)
    options = np.empty((count + 1, count), dtype=np.int64)
    sizes = np.zeros(count + 1, dtype=np.int64)
    taken = np.zeros(count + 1, dtype=np.int64)
    undo = np.zeros((count + 1, 2), dtype=np.int64)
    best, open_bound = cutoff, cutoff
    root = max(
        earliest(events, finish, free, start), machines_bound(events, finish, start, scratch)
    )
    if root >= cutoff:
        return cutoff, cutoff
    sizes[0] = _candidates(events, finish, start, options[0])
    depth, nodes = 0, 0
    while depth >= 0 and best > root:
        if taken[depth] > 0:
            event = options[depth, taken[depth] - 1]
            finish[event] = -1
            for side in range(2):
                if events.resources[event, side] >= 0:
                    free[events.resources[event, side]] = undo[depth, side]
        if taken[depth] == sizes[depth]:
            depth -= 1
            continue
        event = options[depth, taken[depth]]
        taken[depth] += 1
        nodes += 1
        earliest(events, finish, free, start)
        finish[event] = start[event] + events.length[event]
        for side in range(2):
            if events.resources[event, side] >= 0:
                undo[depth, side] = free[events.resources[event, side]]
                free[events.resources[event, side]] = finish[event]
        bound = earliest(events, finish, free, start)
        if bound < best and depth + 1 < count:
            bound = max(bound, machines_bound(events, finish, start, scratch))
        if bound >= best:
            continue
        if depth + 1 == count:
            best = bound
            for other in range(count):
                best_start[other] = finish[other] - events.length[other]
            continue
        if nodes > node_limit:
            open_bound = min(open_bound, bound)
            continue
        depth += 1
        taken[depth] = 0
        sizes[depth] = _candidates(events, finish, start, options[depth])
    return best, min(best, max(root, open_bound))

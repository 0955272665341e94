"""Schedules from an assignment: list scheduling, TensorFlow's own ready queue, fixed orders.

`simulate` plans with insertion (see `insertion`). The other two play events, operators and
transfers, without insertion: whatever is released next takes its device, ports or link when they
become free.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moirai_tf.placement.compiled import interpreted
from moirai_tf.placement.evaluate.channels import channels_of
from moirai_tf.placement.evaluate.insertion import new_state, play, schedule_in
from moirai_tf.placement.problem import PER_EDGE, Problem
from moirai_tf.placement.schedule import Placed, Schedule, Transfer, schedule_of

TransferKey = tuple[int, int]
"""(tensor, target device) in mode `per_tensor`, (tensor, consumer) in mode `per_edge`."""


def simulate(
    problem: Problem, assignment: Sequence[int], order: Sequence[int] | None = None
) -> Schedule:
    """Plays list scheduling with insertion.

    Args:
      problem: a valid problem.
      assignment: device of each operator; each must be able to run it.
      order: operators, producers first. By default the longest remaining path (with this
        assignment's own times) comes first, ties in topological order.
    """
    order = remaining_path_order(problem, assignment) if order is None else order
    state = new_state(problem.arrays)
    sequence, devices = (np.array(given, dtype=np.int64) for given in (order, assignment))
    with interpreted(len(sequence)):
        play(problem.arrays, state, sequence, devices)
    return schedule_in(problem, state)


def remaining_path_order(problem: Problem, assignment: Sequence[int]) -> list[int]:
    """Operators by decreasing length of the path that starts with them, producers first."""
    remaining_ns = [0] * len(problem.operators)
    for operator in reversed(problem.topological_order):
        device = assignment[operator]
        after_ns = 0
        for tensor in map(problem.tensors.__getitem__, problem.outgoing[operator]):
            row = tensor.time_ns[device]
            for consumer in tensor.consumers:
                after_ns = max(after_ns, row[assignment[consumer]] + remaining_ns[consumer])
        remaining_ns[operator] = after_ns + (problem.operators[operator].compute_ns[device] or 0)
    return order_by(problem, remaining_ns)


def order_by_start(problem: Problem, schedule: Schedule) -> list[int]:
    """Operators as a schedule runs them, producers first."""
    placed, position = schedule.placed, problem.topological_position
    return sorted(
        range(len(placed)), key=lambda i: (placed[i].start_ns, placed[i].finish_ns, position[i])
    )


def order_by(problem: Problem, priority: Sequence[float]) -> list[int]:
    """Operators by decreasing priority, ties in topological order."""
    position = problem.topological_position
    return sorted(range(len(problem.operators)), key=lambda i: (-priority[i], position[i]))


def ready_queue(problem: Problem, assignment: Sequence[int]) -> Schedule:
    """Plays TensorFlow's executor: every queue is first in, first out, nothing is planned.

    An operator queues at its device when its last input is there, a tensor at its ports or link
    when its producer finishes. Ties: operators before transfers, then index.
    """
    return _play(Events(problem, assignment), lambda event, ready_ns: ready_ns)


def replay(
    problem: Problem,
    assignment: Sequence[int],
    operator_starts: Sequence[float],
    transfer_starts: Mapping[TransferKey, float],
) -> Schedule:
    """Exact earliest times for the orders that some, perhaps inexact, start times show.

    Only the order of the start times is used. A transfer without one goes when it is released.
    """
    events = Events(problem, assignment)
    count = len(problem.operators)

    def key(event: int, ready_ns: int) -> float:
        if event < count:
            return operator_starts[event]
        transfer = events.transfers[event - count]
        producer = problem.tensors[transfer.tensor].producer
        last = transfer.target if transfer.consumer is None else transfer.consumer
        return transfer_starts.get((transfer.tensor, last), operator_starts[producer])

    return _play(events, key)


@dataclass(frozen=True)
class Events:
    """Operators 0..n-1, then the transfers that an assignment needs."""

    problem: Problem
    assignment: Sequence[int]

    @cached_property
    def transfers(self) -> tuple[Transfer, ...]:
        """The transfers, without times, in order of tensor and first consumer."""
        needed: dict[tuple[int, int, int | None], None] = {}
        for index, tensor in enumerate(self.problem.tensors):
            for consumer in tensor.consumers:
                target = self.assignment[consumer]
                if target != self.assignment[tensor.producer]:
                    reader = consumer if self.problem.transfers == PER_EDGE else None
                    needed[index, target, reader] = None
        return tuple(
            Transfer(
                index, self.assignment[self.problem.tensors[index].producer], target, 0, 0, reader
            )
            for index, target, reader in needed
        )

    @cached_property
    def successors(self) -> tuple[list[int], ...]:
        """Events that wait for each event."""
        count = len(self.problem.operators)
        lists: tuple[list[int], ...] = tuple([] for _ in range(count + len(self.transfers)))
        carrier = {}
        for number, transfer in enumerate(self.transfers, start=count):
            carrier[transfer.tensor, transfer.target, transfer.consumer] = number
            lists[self.problem.tensors[transfer.tensor].producer].append(number)
        for index, tensor in enumerate(self.problem.tensors):
            for consumer in tensor.consumers:
                target = self.assignment[consumer]
                reader = consumer if self.problem.transfers == PER_EDGE else None
                last = carrier.get((index, target, reader), tensor.producer)
                lists[last].append(consumer)
        return lists

    def waiting(self) -> list[int]:
        """For how many others each event waits."""
        counts = [0] * len(self.successors)
        for successors in self.successors:
            for event in successors:
                counts[event] += 1
        return counts

    def transfer(self, event: int) -> Transfer:
        """The transfer that an event is, without times."""
        return self.transfers[event - len(self.problem.operators)]

    def duration_ns(self, event: int) -> int:
        """How long an event takes."""
        count = len(self.problem.operators)
        if event < count:
            return self.problem.operators[event].compute_ns[self.assignment[event]] or 0
        transfer = self.transfer(event)
        return self.problem.tensors[transfer.tensor].time_ns[transfer.source][transfer.target]

    def resources(self, event: int) -> tuple[int, ...]:
        """What an event of positive duration occupies."""
        count = len(self.problem.operators)
        if event < count:
            return (self.assignment[event],)
        transfer = self.transfer(event)
        return channels_of(self.problem, transfer.source, transfer.target)


def _play(events: Events, key: Callable[[int, int], float]) -> Schedule:
    """Starts the released event of smallest (key, number) when its resources are free."""
    waiting = events.waiting()
    ready_ns = [0] * len(waiting)
    times = [(0, 0)] * len(waiting)
    free_ns: dict[int, int] = {}
    released = [(key(event, 0), event) for event, count in enumerate(waiting) if count == 0]
    heapq.heapify(released)
    while released:
        _, event = heapq.heappop(released)
        duration_ns = events.duration_ns(event)
        resources = events.resources(event) if duration_ns else ()
        start_ns = max([ready_ns[event], *(free_ns.get(resource, 0) for resource in resources)])
        finish_ns = start_ns + duration_ns
        times[event] = (start_ns, finish_ns)
        free_ns.update((resource, finish_ns) for resource in resources)
        for successor in events.successors[event]:
            ready_ns[successor] = max(ready_ns[successor], finish_ns)
            waiting[successor] -= 1
            if waiting[successor] == 0:
                released_at = key(successor, ready_ns[successor])
                heapq.heappush(released, (released_at, successor))
    count = len(events.problem.operators)
    placed = (Placed(d, *t) for d, t in zip(events.assignment, times[:count], strict=True))
    transfers = (
        Transfer(t.tensor, t.source, t.target, *time, t.consumer)
        for t, time in zip(events.transfers, times[count:], strict=True)
    )
    return schedule_of(placed, transfers)

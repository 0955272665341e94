"""ETF: earliest task first."""

from __future__ import annotations

import heapq

from moirai_tf.placement.deadline import Deadline
from moirai_tf.placement.memory import Packing, Reservation
from moirai_tf.placement.partial import PartialSchedule
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule


def etf(problem: Problem, packing: Packing, deadline: Deadline) -> Schedule:
    """Of all ready operators and devices, the pair that starts earliest, again and again.

    Source: Hwang, Chow, Anger and Lee 1989. Ties go to the operator that comes first in
    topological order, then to the earlier finish. Adapted to memory and colocation: only devices
    that the reservation allows. A start can only become later while other operators are placed,
    so a heap of old starts is enough: the top is tried anew and put back unless it still holds.
    """
    reservation = Reservation(problem, packing)
    partial = PartialSchedule(problem)
    position = problem.topological_position
    waiting = [len(tensors) for tensors in problem.incoming]
    pairs = [0] * len(problem.operators)
    heap: list[tuple[int, int, int, int]] = []

    def release(operator: int) -> None:
        for device in reservation.devices(operator):
            start_ns, finish_ns, _ = partial.trial(operator, device)
            heapq.heappush(heap, (start_ns, position[operator], finish_ns, device))
            pairs[operator] += 1

    for operator in problem.topological_order:
        if waiting[operator] == 0:
            release(operator)
    while heap:
        deadline.check()
        start_ns, place, _, device = heapq.heappop(heap)
        operator = problem.topological_order[place]
        if partial.placed[operator]:
            continue
        if device not in reservation.devices(operator):
            pairs[operator] -= 1
            if pairs[operator] == 0:  # all refused since; where it is reserved now is allowed
                release(operator)
            continue
        trial = partial.trial(operator, device)
        if trial.start_ns > start_ns:
            heapq.heappush(heap, (trial.start_ns, place, trial.finish_ns, device))
            continue
        reservation.decide(operator, device)
        partial.place(operator, device, trial)
        for tensor in problem.outgoing[operator]:
            for consumer in problem.tensors[tensor].consumers:
                waiting[consumer] -= 1
                if waiting[consumer] == 0:
                    release(consumer)
    return partial.finished()

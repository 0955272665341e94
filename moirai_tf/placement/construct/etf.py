"""ETF: earliest task first."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from moirai_tf.placement.bound.packing import Packing, Reservation
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.evaluate.insertion import PartialSchedule
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule


def etf(problem: Problem, packing: Packing, deadline: Deadline) -> Schedule:
    """Of all ready operators and devices, the pair that starts earliest, again and again.

    Source: Hwang, Chow, Anger and Lee 1989. Ties go to the operator that comes first in
    topological order, then to the earlier finish. Adapted to memory and colocation: only devices
    that the reservation allows.
    """
    return earliest_first(problem, packing, deadline, lambda operator, allowed: allowed)


def earliest_first(
    problem: Problem,
    packing: Packing,
    deadline: Deadline,
    choose: Callable[[int, list[int]], list[int]],
) -> Schedule:
    """The same among some devices.

    Args:
      problem: a valid problem.
      packing: of its units.
      deadline: of the search.
      choose: those of an operator's allowed devices that it may go to, at least one.
    """
    reservation = Reservation(problem, packing)
    ready = _Ready(problem, reservation, choose)
    waiting = [len(tensors) for tensors in problem.incoming]
    for operator in problem.topological_order:
        if waiting[operator] == 0:
            ready.add(operator)
    for _ in problem.operators:
        operator, device = ready.pop(deadline)
        reservation.decide(operator, device)
        ready.partial.place(operator, device)
        for tensor in problem.outgoing[operator]:
            for consumer in problem.tensors[tensor].consumers:
                waiting[consumer] -= 1
                if waiting[consumer] == 0:
                    ready.add(consumer)
    return ready.partial.finished()


class _Ready:
    """Ready operators with the devices they may go to.

    A start can only become later while other operators are placed, so a heap of old starts is
    enough: the top is tried anew and put back unless it still holds.
    """

    def __init__(
        self,
        problem: Problem,
        reservation: Reservation,
        choose: Callable[[int, list[int]], list[int]],
    ) -> None:
        self.problem = problem
        self.reservation = reservation
        self.choose = choose
        self.partial = PartialSchedule(problem)
        self._pairs = [0] * len(problem.operators)
        self._heap: list[tuple[int, int, int, int]] = []

    def add(self, operator: int) -> None:
        """Takes up an operator on every device that it may go to now."""
        for device in self.choose(operator, self.reservation.devices(operator)):
            self._push(operator, device, *self.partial.trial(operator, device))
            self._pairs[operator] += 1

    def pop(self, deadline: Deadline) -> tuple[int, int]:
        """The pair that starts earliest."""
        while True:
            deadline.check()
            start_ns, place, _, device = heapq.heappop(self._heap)
            operator = self.problem.topological_order[place]
            if self.partial.placed(operator):
                continue
            if device not in self.reservation.devices(operator):
                self._refuse(operator)
                continue
            trial = self.partial.trial(operator, device)
            if trial.start_ns == start_ns:
                return operator, device
            self._push(operator, device, *trial)

    def _push(self, operator: int, device: int, start_ns: int, finish_ns: int) -> None:
        place = self.problem.topological_position[operator]
        heapq.heappush(self._heap, (start_ns, place, finish_ns, device))

    def _refuse(self, operator: int) -> None:
        """Drops a pair; an operator that has lost all of them is taken up where it can go now."""
        self._pairs[operator] -= 1
        if self._pairs[operator] == 0:
            self.add(operator)

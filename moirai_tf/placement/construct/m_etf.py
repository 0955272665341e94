"""m-ETF: earliest task first at the time of a clock, within memory."""

from __future__ import annotations

import heapq
from typing import NamedTuple

from moirai_tf.placement.bound.packing import Packing, Reservation
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.evaluate.insertion import PartialSchedule
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule


def m_etf(problem: Problem, packing: Packing, deadline: Deadline) -> Schedule:
    """At every moment each free device may take the ready operator whose inputs came first.

    Source: Baechi (Jeon et al., SoCC 2020). A clock goes from event to event, where a device
    becomes free or inputs arrive. Of the operators whose inputs are on a free device by then, the
    one that could start there first is run, ties in topological order. Unlike ETF, no operator
    takes a device ahead of its time.

    Adapted to devices that differ: of devices where an operator's inputs come at the same time, it
    takes the one where it is done first. To memory and colocation: only devices that the
    reservation allows. To transfers: inputs arrive as the simulator has it, each tensor once per
    device or once per reader, one after another on a port or link.
    """
    return Clock(problem, packing, deadline).run()


class Candidate(NamedTuple):
    """A ready operator on a device; the smallest is run."""

    arrival_ns: int
    """When its inputs are there."""
    position: int
    """In topological order."""
    finish_ns: int
    device: int
    operator: int


class Clock:
    """Operators and devices at a moment that moves on."""

    def __init__(self, problem: Problem, packing: Packing, deadline: Deadline) -> None:
        self.problem = problem
        self.partial = PartialSchedule(problem)
        self.now_ns = 0
        self.order: list[int] = []
        """Operators as they were run."""
        self.last: list[int | None] = [None for _ in problem.devices]
        """What each device has run last."""
        self._deadline = deadline
        self._reservation = Reservation(problem, packing)
        self._waiting = [len(tensors) for tensors in problem.incoming]
        self._free_ns = [0 for _ in problem.devices]
        self._ready: list[list[Candidate]] = [[] for _ in problem.devices]
        """Heaps; an arrival may have become later since it was noted."""
        self._places = [0 for _ in problem.operators]
        """Devices on whose heap each operator is."""

    def run(self) -> Schedule:
        """Runs all operators."""
        for operator in self.problem.topological_order:
            if self._waiting[operator] == 0:
                self._add(operator)
        while len(self.order) < len(self.problem.operators):
            self._deadline.check()
            found = [self.choice(device) for device in self.idle()]
            candidates = [candidate for candidate in found if candidate is not None]
            if candidates:
                self._start(min(candidates))
            else:
                self.now_ns = self._next_ns()
        return self.partial.finished()

    def idle(self) -> list[int]:
        """Devices that are free now."""
        return [k for k, free_ns in enumerate(self._free_ns) if free_ns <= self.now_ns]

    def choice(self, device: int) -> Candidate | None:
        """What a free device would run now."""
        return self.first(device)

    def first(self, device: int) -> Candidate | None:
        """The first of the operators whose inputs are on a device by now."""
        heap = self._ready[device]
        while heap and heap[0].arrival_ns <= self.now_ns:
            known = heap[0]
            if self.partial.placed(known.operator) or not self.allowed(known.operator, device):
                heapq.heappop(heap)
                self._lose(known.operator)
                continue
            candidate = self.candidate(known.operator, device)
            if candidate.arrival_ns <= known.arrival_ns:
                return candidate
            heapq.heapreplace(heap, candidate)
        return None

    def candidate(self, operator: int, device: int) -> Candidate:
        """A ready operator on a device as things are."""
        arrival_ns = self.partial.arrival_ns(operator, device)
        position = self.problem.topological_position[operator]
        finish_ns = self.partial.trial(operator, device).finish_ns
        return Candidate(arrival_ns, position, finish_ns, device, operator)

    def is_ready(self, operator: int) -> bool:
        """Whether all producers are placed, and the operator is not."""
        return self._waiting[operator] == 0 and not self.partial.placed(operator)

    def allowed(self, operator: int, device: int) -> bool:
        """Whether an operator may go to a device."""
        return device in self._reservation.devices(operator)

    def devices(self, operator: int) -> list[int]:
        """Where an operator may go."""
        return self._reservation.devices(operator)

    def ready_on(self, device: int) -> list[int]:
        """Ready operators that were seen on a device."""
        known = (candidate.operator for candidate in self._ready[device])
        return [operator for operator in known if self.is_ready(operator)]

    def wake_ns(self, device: int) -> int | None:
        """The next moment at which a device has another choice, if it is known."""
        return next((c.arrival_ns for c in self._ready[device][:1]), None)

    def _start(self, candidate: Candidate) -> None:
        operator, device = candidate.operator, candidate.device
        self._reservation.decide(operator, device)
        self.partial.place(operator, device)
        self._free_ns[device] = max(self._free_ns[device], self.partial.finish_ns(operator))
        self.order.append(operator)
        self.last[device] = operator
        for tensor in self.problem.outgoing[operator]:
            for consumer in self.problem.tensors[tensor].consumers:
                self._waiting[consumer] -= 1
                if self._waiting[consumer] == 0:
                    self._add(consumer)

    def _add(self, operator: int) -> None:
        """Takes up a ready operator on every device that it may go to."""
        for device in self.devices(operator):
            heapq.heappush(self._ready[device], self.candidate(operator, device))
            self._places[operator] += 1

    def _lose(self, operator: int) -> None:
        """An operator that has lost all its devices is taken up where it can go now."""
        self._places[operator] -= 1
        if self._places[operator] == 0 and not self.partial.placed(operator):
            self._add(operator)

    def _next_ns(self) -> int:
        """The next event."""
        moments = [*self._free_ns, *map(self.wake_ns, range(len(self._free_ns)))]
        return min(at_ns for at_ns in moments if at_ns is not None and at_ns > self.now_ns)

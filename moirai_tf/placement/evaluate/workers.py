"""Plays a placement as workers run it, where moving a tensor keeps both ends from computing.

A worker packs a tensor that it sends and unpacks one that it receives on the processor that runs
its operators, and these come first: what runs is interrupted. When both ends are idle a transfer
takes as long as the problem says: what handling takes beyond that, because both ends are at it at
the same time, follows and delays nothing but the operators of its device.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from moirai_tf.placement.evaluate.events import Events
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Transfer

_ARRIVAL, _WORKER = 0, 1
Handling = Callable[[Transfer], tuple[int, int]]
"""Nanoseconds that a transfer keeps its source and its target busy."""


def execution_ns(
    problem: Problem,
    assignment: Sequence[int],
    handling: Handling,
    orders: Sequence[Sequence[int]] | None = None,
) -> int:
    """When the last operator is done.

    Args:
      problem: a valid problem.
      assignment: device of each operator.
      handling: how long a transfer occupies its ends.
      orders: for devices whose order is kept, their operators of positive duration. Without it
        every device runs whatever was ready first.
    """
    return _Run(problem, assignment, handling, orders or ()).run()


@dataclass(frozen=True, slots=True)
class _Parts:
    """A transfer: what its source does, its way, what its target does."""

    send_ns: int
    send_rest_ns: int
    """Work of the source when the target has begun."""
    way_ns: int
    receive_ns: int
    receive_rest_ns: int
    """Work of the target when the tensor can be read."""


@dataclass(slots=True)
class _Work:
    """Something that keeps a device busy."""

    left_ns: int
    event: int = 0
    done: Callable[[int, int], None] | None = None
    """Called with `event` and the time; None where nobody waits for it."""


@dataclass
class _Worker:
    """One device: what it runs, what waits for it, and what interrupts it."""

    interrupts: deque[_Work] = field(default_factory=deque)
    """They go before operators."""
    running: _Work | None = None
    ready: deque[int] = field(default_factory=deque)
    order: deque[int] | None = None
    """Operators in the order that is kept."""
    since_ns: int = 0
    """When the progress of what is active was last written down."""
    version: int = 0

    @property
    def active(self) -> _Work | None:
        """What makes progress."""
        return self.interrupts[0] if self.interrupts else self.running

    def advance(self, now_ns: int) -> None:
        """Writes the progress down."""
        if self.active is not None:
            self.active.left_ns -= now_ns - self.since_ns
        self.since_ns = now_ns

    def next_operator(self) -> int | None:
        """Takes the operator to run next, if it is ready."""
        if self.order is None:
            return self.ready.popleft() if self.ready else None
        if self.order and self.order[0] in self.ready:
            operator = self.order.popleft()
            self.ready.remove(operator)
            return operator
        return None


class _Run:
    def __init__(
        self,
        problem: Problem,
        assignment: Sequence[int],
        handling: Handling,
        orders: Sequence[Sequence[int]],
    ) -> None:
        self.events = Events(problem, assignment)
        self.count = len(problem.operators)
        self.assignment = assignment
        self.handled = [
            self._parts(number, handling(transfer))
            for number, transfer in enumerate(self.events.transfers, start=self.count)
        ]
        self.workers = [_Worker() for _ in problem.devices]
        for order in orders:
            if order:
                self.workers[assignment[order[0]]].order = deque(order)
        self.waiting = [0] * len(self.events.successors)
        for successors in self.events.successors:
            for event in successors:
                self.waiting[event] += 1
        self.heap: list[tuple[int, int, int, int]] = []
        """(time, `_ARRIVAL` or `_WORKER`, transfer or device, version of the device)."""
        self.last_ns = 0

    def run(self) -> int:
        """Plays everything; the latest finish."""
        for event in [event for event, count in enumerate(self.waiting) if count == 0]:
            self._release(event, 0)
        while self.heap:
            now_ns, kind, number, version = heapq.heappop(self.heap)
            if kind == _ARRIVAL:
                self._arrive(number, now_ns)
            elif version == self.workers[number].version:
                self._complete(number, now_ns)
        return self.last_ns

    def _parts(self, event: int, handling: tuple[int, int]) -> _Parts:
        whole_ns = self.events.duration_ns(event)
        receive_ns = min(handling[1], whole_ns)
        send_ns = min(handling[0], whole_ns - receive_ns)
        return _Parts(
            send_ns=send_ns,
            send_rest_ns=handling[0] - send_ns,
            way_ns=whole_ns - send_ns - receive_ns,
            receive_ns=receive_ns,
            receive_rest_ns=handling[1] - receive_ns,
        )

    def _release(self, event: int, now_ns: int) -> None:
        """All that an event waits for is there."""
        if event >= self.count:
            parts = self.handled[event - self.count]
            source = self.events.transfers[event - self.count].source
            self._interrupt(source, _Work(parts.send_ns, event, self._sent), now_ns)
        elif self.events.duration_ns(event) == 0:
            self._finish(event, now_ns)
        else:
            device = self.assignment[event]
            self.workers[device].advance(now_ns)
            self.workers[device].ready.append(event)
            self._go_on(device, now_ns)

    def _sent(self, event: int, now_ns: int) -> None:
        parts = self.handled[event - self.count]
        source = self.events.transfers[event - self.count].source
        heapq.heappush(self.heap, (now_ns + parts.way_ns, _ARRIVAL, event, 0))
        self._interrupt(source, _Work(parts.send_rest_ns), now_ns)

    def _arrive(self, event: int, now_ns: int) -> None:
        target = self.events.transfers[event - self.count].target
        parts = self.handled[event - self.count]
        self._interrupt(target, _Work(parts.receive_ns, event, self._received), now_ns)

    def _received(self, event: int, now_ns: int) -> None:
        target = self.events.transfers[event - self.count].target
        self._interrupt(target, _Work(self.handled[event - self.count].receive_rest_ns), now_ns)
        self._finish(event, now_ns)

    def _interrupt(self, device: int, work: _Work, now_ns: int) -> None:
        """A device packs or unpacks a tensor before it goes on with its operators."""
        if work.left_ns == 0 and work.done is None:
            return
        self.workers[device].advance(now_ns)
        self.workers[device].interrupts.append(work)
        self._go_on(device, now_ns)

    def _go_on(self, device: int, now_ns: int) -> None:
        """Starts an operator if the device has none, and says when what is active will be done."""
        worker = self.workers[device]
        if worker.running is None:
            operator = worker.next_operator()
            if operator is not None:
                duration_ns = self.events.duration_ns(operator)
                worker.running = _Work(duration_ns, operator, self._finish)
        worker.version += 1
        if worker.active is not None:
            done_ns = now_ns + worker.active.left_ns
            heapq.heappush(self.heap, (done_ns, _WORKER, device, worker.version))

    def _complete(self, device: int, now_ns: int) -> None:
        """What is active on a device is done."""
        worker = self.workers[device]
        work = worker.active
        assert work is not None
        worker.since_ns = now_ns
        if worker.interrupts:
            worker.interrupts.popleft()
        else:
            worker.running = None
        self._go_on(device, now_ns)
        if work.done is not None:
            work.done(work.event, now_ns)

    def _finish(self, event: int, now_ns: int) -> None:
        self.last_ns = max(self.last_ns, now_ns)
        for successor in self.events.successors[event]:
            self.waiting[successor] -= 1
            if self.waiting[successor] == 0:
                self._release(successor, now_ns)

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
from typing import NamedTuple

from moirai_tf.placement.evaluate.events import Events
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Transfer

_SENT, _ARRIVED, _RECEIVED, _COMPUTED = range(4)
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
    return _Run(Events(problem, assignment), handling, orders or ()).run()


class _Parts(NamedTuple):
    """A transfer: what its source does, its way, what its target does."""

    send_ns: int
    send_rest_ns: int
    """Work of the source when the target has begun."""
    way_ns: int
    receive_ns: int
    receive_rest_ns: int
    """Work of the target when the tensor can be read."""


def _parts(whole_ns: int, handling: tuple[int, int]) -> _Parts:
    receive_ns = min(handling[1], whole_ns)
    send_ns = min(handling[0], whole_ns - receive_ns)
    way_ns = whole_ns - send_ns - receive_ns
    return _Parts(send_ns, handling[0] - send_ns, way_ns, receive_ns, handling[1] - receive_ns)


class _Run:
    def __init__(self, events: Events, handling: Handling, orders: Sequence[Sequence[int]]) -> None:
        self.events, devices = events, range(len(events.problem.devices))
        self.waiting = events.waiting()
        self.count = len(events.problem.operators)
        self.parts = [
            _parts(events.duration_ns(number), handling(transfer))
            for number, transfer in enumerate(events.transfers, start=self.count)
        ]
        self.handled_ns = [0 for _ in devices]
        """When each device will have handled the transfers that it knows of."""
        self.running: list[int | None] = [None for _ in devices]
        self.done_ns = [0 for _ in devices]
        """When what each device runs will be done, if no other transfer interrupts it."""
        self.ready: list[deque[int]] = [deque() for _ in devices]
        self.orders = {events.assignment[order[0]]: deque(order) for order in orders if order}
        self.heap: list[tuple[int, int, int]] = []
        """(time, what has happened, to which event)."""
        self.last_ns = 0

    def run(self) -> int:
        """Plays everything; the latest finish."""
        for event in [event for event, count in enumerate(self.waiting) if count == 0]:
            self._release(event, 0)
        while self.heap:
            now_ns, what, event = heapq.heappop(self.heap)
            if what == _COMPUTED:
                self._computed(event, now_ns)
            else:
                self._moved(what, event, now_ns)
        return self.last_ns

    def _release(self, event: int, now_ns: int) -> None:
        """All that an event waits for is there."""
        if event >= self.count:
            source, parts = self.events.transfers[event - self.count].source, self._of(event)
            self._push(self._interrupt(source, parts.send_ns, now_ns), _SENT, event)
        elif self.events.duration_ns(event) == 0:
            self._finish(event, now_ns)
        else:
            device = self.events.assignment[event]
            self.ready[device].append(event)
            self._start(device, now_ns)

    def _moved(self, what: int, event: int, now_ns: int) -> None:
        """A transfer goes on."""
        transfer, parts = self.events.transfers[event - self.count], self._of(event)
        if what == _SENT:
            self._interrupt(transfer.source, parts.send_rest_ns, now_ns)
            self._push(now_ns + parts.way_ns, _ARRIVED, event)
        elif what == _ARRIVED:
            received_ns = self._interrupt(transfer.target, parts.receive_ns, now_ns)
            self._push(received_ns, _RECEIVED, event)
        else:
            self._interrupt(transfer.target, parts.receive_rest_ns, now_ns)
            self._finish(event, now_ns)

    def _interrupt(self, device: int, work_ns: int, now_ns: int) -> int:
        """A device packs or unpacks before it goes on with its operator; when it has."""
        self.handled_ns[device] = max(self.handled_ns[device], now_ns) + work_ns
        operator = self.running[device]
        if operator is not None and work_ns:
            self.done_ns[device] += work_ns
            self._push(self.done_ns[device], _COMPUTED, operator)
        return self.handled_ns[device]

    def _start(self, device: int, now_ns: int) -> None:
        """A device without an operator takes the next one, if it is ready."""
        ready, order = self.ready[device], self.orders.get(device)
        if self.running[device] is not None or not ready:
            return
        if order is None:
            operator = ready.popleft()
        elif order and order[0] in ready:
            operator = order.popleft()
            ready.remove(operator)
        else:
            return
        self.running[device] = operator
        begun_ns = max(now_ns, self.handled_ns[device])
        self.done_ns[device] = begun_ns + self.events.duration_ns(operator)
        self._push(self.done_ns[device], _COMPUTED, operator)

    def _computed(self, operator: int, now_ns: int) -> None:
        """An operator is done, unless it was interrupted since this was foreseen."""
        device = self.events.assignment[operator]
        if self.running[device] != operator or self.done_ns[device] != now_ns:
            return
        self.running[device] = None
        self._start(device, now_ns)
        self._finish(operator, now_ns)

    def _finish(self, event: int, now_ns: int) -> None:
        self.last_ns = max(self.last_ns, now_ns)
        for successor in self.events.successors[event]:
            self.waiting[successor] -= 1
            if self.waiting[successor] == 0:
                self._release(successor, now_ns)

    def _of(self, event: int) -> _Parts:
        return self.parts[event - self.count]

    def _push(self, time_ns: int, what: int, event: int) -> None:
        heapq.heappush(self.heap, (time_ns, what, event))

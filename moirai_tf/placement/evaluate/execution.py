"""Plays a placement as TensorFlow runs it: workers that pack what they send, GPUs with streams.

A worker packs a tensor that it sends and unpacks one that it receives on the processor that runs
its operators, and these come first: what runs is interrupted. When both ends are idle a transfer
takes as long as the problem says: what handling takes beyond that, because both ends are at it at
the same time, follows and delays nothing but the operators of its device.

A GPU runs what its host has launched, and the host launches ahead: an operator as soon as all
before it on that GPU are launched and what comes from elsewhere is there. A copy starts when its
producer is launched, but it waits for everything that both of its GPUs were given until then: the
receiver's memory is not known to be free before (TensorFlow's `gpu_util.cc`,
`pluggable_device_util.cc`). So a tensor does not arrive while its receiver works off what it has.
Copies of one kind at one GPU follow each other, and take ports or links as the problem says.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from moirai_tf.placement.evaluate.events import Events
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Transfer

_SENT, _ARRIVED, _RECEIVED, _COMPUTED, _COPIED, _COPY, _LAUNCH, _SEND = range(8)
"""What happens, at one time in this order: copies are given after what is launched with them."""
Handling = Callable[[Transfer], tuple[int, int]]
"""Nanoseconds that a transfer keeps its source and its target busy."""


def execution_ns(
    problem: Problem,
    assignment: Sequence[int],
    handling: Handling,
    orders: Sequence[Sequence[int]] | None = None,
    gpus: Collection[int] = (),
) -> int:
    """When the last operator is done.

    Args:
      problem: a valid problem.
      assignment: device of each operator.
      handling: how long a transfer occupies its ends.
      orders: for devices whose order is kept, their operators of positive duration. Without it
        every device runs whatever was ready first.
      gpus: devices whose host launches ahead of what they run.
    """
    return _Run(Events(problem, assignment), handling, orders or (), gpus).run()


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


class _Copies:
    """What GPUs have yet to copy: one stream for each kind of copy at each GPU."""

    def __init__(self, events: Events, gpus: Collection[int]) -> None:
        self.events, self.gpus = events, gpus
        self.streams: dict[tuple[str, int], deque[int]] = {}
        self.made_ns: dict[int, int] = {}
        """When what a copy moves will be there."""
        self.ready_ns: dict[int, int] = {}
        self.busy: set[int] = set()
        """Copies under way, and ports or links that they occupy, which are negative numbers."""

    def add(self, event: int, free_ns: int) -> int:
        """Adds a copy to memory that is free from then on; when it may start."""
        self.streams.setdefault(self._stream(event), deque()).append(event)
        self.ready_ns[event] = max(self.made_ns[event], free_ns)
        return self.ready_ns[event]

    def started(self, now_ns: int) -> list[int]:
        """Takes the copies that can start now, those first that could start first."""
        heads = [queue[0] for queue in self.streams.values() if queue]
        found = []
        for event in sorted(heads, key=lambda head: (self.ready_ns[head], head)):
            needs = self._needs(event)
            if self.ready_ns[event] <= now_ns and not self.busy & needs:
                self.busy |= needs
                found.append(event)
        return found

    def ended(self, event: int) -> None:
        """A copy is done."""
        self.streams[self._stream(event)].popleft()
        self.busy -= self._needs(event)

    def _needs(self, event: int) -> set[int]:
        return {event, *(-1 - channel for channel in self.events.resources(event))}

    def _stream(self, event: int) -> tuple[str, int]:
        transfer = self.events.transfer(event)
        if transfer.source not in self.gpus:
            return "from the host", transfer.target
        kind = "to a GPU" if transfer.target in self.gpus else "to the host"
        return kind, transfer.source


class _Run:
    def __init__(
        self,
        events: Events,
        handling: Handling,
        orders: Sequence[Sequence[int]],
        gpus: Collection[int],
    ) -> None:
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
        self.ready: list[dict[int, None]] = [{} for _ in devices]
        self.orders = {events.assignment[order[0]]: deque(order) for order in orders if order}
        self.launched_ns = dict.fromkeys(gpus, 0)
        """When each GPU will have run what it was given."""
        self.copies = _Copies(events, gpus)
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
            elif what == _LAUNCH:
                self._launch(self.events.assignment[event], now_ns)
            elif what == _SEND:
                self._send(event)
            elif what == _COPIED:
                self.copies.ended(event)
                self._finish(event, now_ns)
                self._copy(now_ns)
            elif what == _COPY:
                self._copy(now_ns)
            else:
                self._moved(what, event, now_ns)
        return self.last_ns

    def _release(self, event: int, now_ns: int) -> None:
        """All that an event waits for is there."""
        if event >= self.count and self._at_gpu(event):
            self._release_copy(event, now_ns)
        elif event >= self.count:
            source, parts = self.events.transfer(event).source, self._of(event)
            self._push(self._interrupt(source, parts.send_ns, now_ns), _SENT, event)
        elif self.events.duration_ns(event) == 0:
            self._finish(event, now_ns)
        else:
            device = self.events.assignment[event]
            self.ready[device][event] = None
            if device in self.launched_ns:
                self._push(now_ns, _LAUNCH, event)
            else:
                self._start(device, now_ns)

    def _at_gpu(self, event: int) -> bool:
        """Whether a tensor comes from a GPU or goes to one."""
        transfer = self.events.transfer(event)
        return bool({transfer.source, transfer.target} & self.launched_ns.keys())

    def _release_copy(self, event: int, now_ns: int) -> None:
        """The producer of what a GPU sends or receives is launched or, on a CPU, done."""
        transfer = self.events.transfer(event)
        made_ns = max(now_ns, self.launched_ns.get(transfer.source, 0))
        if self.events.duration_ns(event):
            self.copies.made_ns[event] = made_ns
            self._push(now_ns, _SEND, event)
            return
        # Between memories that are one: at once, if it was no kernel that made it.
        producer = self.events.problem.tensors[transfer.tensor].producer
        by_kernel = self.events.duration_ns(producer) > 0
        self._push(made_ns if by_kernel else now_ns, _RECEIVED, event)

    def _send(self, event: int) -> None:
        """A copy is given to its stream, after all that its receiver gets at the same time."""
        target = self.events.transfer(event).target
        self._push(self.copies.add(event, self.launched_ns.get(target, 0)), _COPY, event)

    def _launch(self, device: int, now_ns: int) -> None:
        """A host gives a GPU its next operator, if that is ready."""
        operator = self._next(device)
        if operator is None:
            return
        begun_ns = max(now_ns, self.launched_ns[device])
        self.launched_ns[device] = begun_ns + self.events.duration_ns(operator)
        self.last_ns = max(self.last_ns, self.launched_ns[device])
        self._finish(operator, now_ns)
        if self.ready[device]:
            self._push(now_ns, _LAUNCH, operator)

    def _copy(self, now_ns: int) -> None:
        """Copies start that can."""
        for event in self.copies.started(now_ns):
            self._push(now_ns + self.events.duration_ns(event), _COPIED, event)

    def _moved(self, what: int, event: int, now_ns: int) -> None:
        """A transfer goes on."""
        transfer, parts = self.events.transfer(event), self._of(event)
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
        operator = None if self.running[device] is not None else self._next(device)
        if operator is None:
            return
        self.running[device] = operator
        begun_ns = max(now_ns, self.handled_ns[device])
        self.done_ns[device] = begun_ns + self.events.duration_ns(operator)
        self._push(self.done_ns[device], _COMPUTED, operator)

    def _next(self, device: int) -> int | None:
        """Takes the operator whose turn it is, if it is ready."""
        ready, order = self.ready[device], self.orders.get(device)
        if not ready:
            return None
        if order is None:
            operator = next(iter(ready))
        elif order and order[0] in ready:
            operator = order.popleft()
        else:
            return None
        del ready[operator]
        return operator

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

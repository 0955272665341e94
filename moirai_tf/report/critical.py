"""The critical path of a schedule: what each moment of the latency waits for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.rewrite.plan_file import PlannedSchedule, ScheduledOperator, ScheduledTransfer

COMPUTE, TRANSFER, WAIT = "compute", "transfer", "wait"
_Event = ScheduledOperator | ScheduledTransfer


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the critical path; times in nanoseconds from the start of the inference."""

    kind: str
    """`compute`, `transfer` or `wait`."""
    name: str
    """The operator, or the one whose tensor moves; empty where nothing is done."""
    where: str
    """The device, or both ends of a transfer."""
    start_ns: int
    finish_ns: int

    @property
    def duration_ns(self) -> int:
        """Its share of the latency."""
        return self.finish_ns - self.start_ns


def critical_path(schedule: PlannedSchedule, coarse: CoarseGraph) -> tuple[Step, ...]:
    """Steps that cover the makespan without a gap, first to last.

    From the last finish back: an operator starts when its last input is there or its device is
    free, a transfer when its tensor is made or its ports are free. What no event explains is a
    wait. Events that take no time are left out.
    """
    before = _Before(schedule, coarse)
    event = max(schedule.operators, key=lambda o: o.finish_ns, default=None)
    steps: list[Step] = []
    current: _Event | None = event
    while current is not None:
        if current.finish_ns > current.start_ns:
            steps.append(_step(current))
        previous = before.of(current)
        reached_ns = 0 if previous is None else previous.finish_ns
        if reached_ns < current.start_ns:
            steps.append(Step(WAIT, "", "", reached_ns, current.start_ns))
        current = previous
    return tuple(reversed(steps))


class _Before:
    """What each event follows."""

    def __init__(self, schedule: PlannedSchedule, coarse: CoarseGraph) -> None:
        self._operator = {operator.name: operator for operator in schedule.operators}
        self._reads: dict[str, list[int]] = {}
        for index, tensor in enumerate(coarse.tensors):
            for consumer in tensor.consumers:
                self._reads.setdefault(coarse.operators[consumer].name, []).append(index)
        self._producer = [coarse.operators[t.producer].name for t in coarse.tensors]
        self._arrival: dict[tuple[int, str], list[ScheduledTransfer]] = {}
        self._ends: dict[tuple[str, str, int], _Event] = {}
        for operator in schedule.operators:
            if operator.finish_ns > operator.start_ns:
                self._ends["device", operator.device, operator.finish_ns] = operator
        for transfer in schedule.transfers:
            self._arrival.setdefault((transfer.tensor, transfer.target), []).append(transfer)
            if transfer.finish_ns > transfer.start_ns:
                self._ends["send", transfer.source, transfer.finish_ns] = transfer
                self._ends["receive", transfer.target, transfer.finish_ns] = transfer

    def of(self, event: _Event) -> _Event | None:
        """The event that finished last of those that it waited for; its inputs come first."""
        found = self._inputs(event)
        if isinstance(event, ScheduledOperator):
            held = [("device", event.device)]
        else:
            held = [("send", event.source), ("receive", event.target)]
        for kind, name in held:
            holder = self._ends.get((kind, name, event.start_ns))
            if holder is not None and holder is not event:
                found.append(holder)
        return max(found, key=lambda e: e.finish_ns, default=None)

    def _inputs(self, event: _Event) -> list[_Event]:
        if isinstance(event, ScheduledTransfer):
            return [self._operator[event.producer]]
        return list(self._read_by(event))

    def _read_by(self, operator: ScheduledOperator) -> Iterator[_Event]:
        for tensor in self._reads.get(operator.name, ()):
            producer = self._operator[self._producer[tensor]]
            if producer.device == operator.device:
                yield producer
                continue
            for transfer in self._arrival.get((tensor, operator.device), ()):
                if transfer.consumer in (None, operator.name):
                    yield transfer


def _step(event: _Event) -> Step:
    if isinstance(event, ScheduledOperator):
        return Step(COMPUTE, event.name, event.device, event.start_ns, event.finish_ns)
    ends = f"{event.source} -> {event.target}"
    return Step(TRANSFER, event.producer, ends, event.start_ns, event.finish_ns)

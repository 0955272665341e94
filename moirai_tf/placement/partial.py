"""The evaluator that all heuristics share: a schedule that grows by one operator at a time."""

from __future__ import annotations

from typing import NamedTuple

from moirai_tf.placement.problem import PER_EDGE, Problem
from moirai_tf.placement.schedule import Placed, Schedule, Transfer, schedule_of
from moirai_tf.placement.timeline import Channels, Timeline


class Trial(NamedTuple):
    """What placing an operator on a device would do."""

    start_ns: int
    finish_ns: int
    transfers: tuple[Transfer, ...]
    """New transfers it needs."""


class PartialSchedule:
    """List scheduling with insertion: each transfer and operator takes the first gap that fits.

    Operators are placed producers first. Tensors that an operator misses are fetched in order of
    their producers' finish; in mode `per_tensor` a tensor that is already on the device, or on
    its way, is not fetched again.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.placed: list[Placed | None] = [None] * len(problem.operators)
        self._transfers: list[Transfer] = []
        self._arrivals: dict[tuple[int, int], int] = {}
        self._busy = [Timeline() for _ in problem.devices]
        self._channels = Channels(problem)

    def trial(self, operator: int, device: int) -> Trial:
        """The earliest start of an operator whose producers are placed; changes nothing."""
        ready_ns, missing = self._inputs(operator, device)
        fetched: list[Transfer] = []
        for finish_ns, tensor, source in missing:
            transfer = self._fetch(finish_ns, tensor, source, device, operator, fetched)
            fetched.append(transfer)
            ready_ns = max(ready_ns, transfer.finish_ns)
        duration_ns = self.problem.operators[operator].compute_ns[device]
        if duration_ns is None:
            raise ValueError(f"operator {operator} cannot run on device {device}")
        start_ns = self._busy[device].fit(ready_ns, duration_ns) if duration_ns else ready_ns
        return Trial(start_ns, start_ns + duration_ns, tuple(fetched))

    def place(self, operator: int, device: int, trial: Trial | None = None) -> None:
        """Places an operator; `trial` saves the work when it was the last one looked at."""
        start_ns, finish_ns, transfers = trial or self.trial(operator, device)
        for transfer in transfers:
            self._channels.occupy(
                transfer.source, transfer.target, transfer.start_ns, transfer.finish_ns
            )
            if transfer.consumer is None:
                self._arrivals[transfer.tensor, transfer.target] = transfer.finish_ns
        self._transfers.extend(transfers)
        if start_ns < finish_ns:
            self._busy[device].occupy(start_ns, finish_ns)
        self.placed[operator] = Placed(device, start_ns, finish_ns)

    def finished(self) -> Schedule:
        """The schedule, once every operator is placed."""
        return schedule_of([placed for placed in self.placed if placed], self._transfers)

    def _inputs(self, operator: int, device: int) -> tuple[int, list[tuple[int, int, int]]]:
        """When the inputs that need no new transfer are there, and the tensors that need one."""
        ready_ns = 0
        missing = []
        for tensor in self.problem.incoming[operator]:
            producer = self.placed[self.problem.tensors[tensor].producer]
            if producer is None:
                raise ValueError(f"a producer of operator {operator} is not placed yet")
            arrival = producer.finish_ns
            if producer.device != device:
                arrival = self._arrivals.get((tensor, device), -1)
            if arrival < 0:
                missing.append((producer.finish_ns, tensor, producer.device))
            ready_ns = max(ready_ns, arrival)
        missing.sort()
        return ready_ns, missing

    def _fetch(
        self,
        ready_ns: int,
        tensor: int,
        source: int,
        target: int,
        operator: int,
        fetched: list[Transfer],
    ) -> Transfer:
        """The earliest transfer beside the committed ones and those already fetched in a trial."""
        duration_ns = self.problem.tensors[tensor].time_ns[source][target]
        rivals = [f for f in fetched if self._channels.conflict(f.source, source)]
        start_ns = self._channels.fit(source, target, ready_ns, duration_ns)
        moved = bool(duration_ns)
        while moved:
            moved = False
            for rival in rivals:
                if rival.start_ns < start_ns + duration_ns and start_ns < rival.finish_ns:
                    start_ns = self._channels.fit(source, target, rival.finish_ns, duration_ns)
                    moved = True
        consumer = operator if self.problem.transfers == PER_EDGE else None
        return Transfer(tensor, source, target, start_ns, start_ns + duration_ns, consumer)

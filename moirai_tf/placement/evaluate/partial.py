"""A schedule that grows by one operator at a time, as heuristics that choose devices need it."""

from __future__ import annotations

from typing import NamedTuple

from moirai_tf.placement.evaluate.insertion import NEVER, State, new_state, place, trial
from moirai_tf.placement.problem import PER_EDGE, Problem
from moirai_tf.placement.schedule import Placed, Schedule, Transfer, schedule_of


class Trial(NamedTuple):
    """What placing an operator on a device would do."""

    start_ns: int
    finish_ns: int


class PartialSchedule:
    """List scheduling with insertion, one operator at a time; see `list_schedule`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._state = new_state(problem.arrays)

    def trial(self, operator: int, device: int) -> Trial:
        """The earliest start of an operator whose producers are placed; changes nothing."""
        self._guard(operator, device)
        start_ns = trial(self.problem.arrays, self._state, operator, device)
        return Trial(start_ns, start_ns + int(self.problem.compute_ns[operator, device]))

    def place(self, operator: int, device: int) -> None:
        """Places an operator whose producers are placed."""
        self._guard(operator, device)
        place(self.problem.arrays, self._state, operator, device)

    def placed(self, operator: int) -> bool:
        """Whether an operator has been placed."""
        return bool(self._state.device[operator] != NEVER)

    def finished(self) -> Schedule:
        """The schedule, once every operator is placed."""
        return schedule_in(self.problem, self._state)

    def _guard(self, operator: int, device: int) -> None:
        """Compiled code would not notice."""
        for tensor in self.problem.incoming[operator]:
            if not self.placed(self.problem.tensors[tensor].producer):
                raise ValueError(f"a producer of operator {operator} is not placed yet")
        if self.problem.operators[operator].compute_ns[device] is None:
            raise ValueError(f"operator {operator} cannot run on device {device}")


def schedule_in(problem: Problem, state: State) -> Schedule:
    """The schedule that compiled code has left in a state in which every operator is placed."""
    device = state.device.tolist()
    placed = map(Placed, device, state.start_ns.tolist(), state.finish_ns.tolist())
    fetch_ns = iter(state.fetch_ns.tolist())
    transfers = []
    for operator, tensors in enumerate(problem.incoming):
        target = device[operator]
        for tensor in tensors:
            start_ns = next(fetch_ns)
            if start_ns == NEVER:
                continue
            source = device[problem.tensors[tensor].producer]
            finish_ns = start_ns + problem.tensors[tensor].time_ns[source][target]
            reader = operator if problem.transfers == PER_EDGE else None
            transfers.append(Transfer(tensor, source, target, start_ns, finish_ns, reader))
    return schedule_of(placed, transfers)

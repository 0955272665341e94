"""A simple local search over devices, for problems that are too large to be solved exactly."""

from __future__ import annotations

import random
from dataclasses import dataclass

from moirai_tf.placement.memory import fits
from moirai_tf.placement.problem import PER_EDGE, Problem
from moirai_tf.placement.schedule import Schedule
from moirai_tf.placement.simulate import simulate
from moirai_tf.placement.strategies.constructive import construct_all
from moirai_tf.placement.strategies.search import Search

_ROUND_TRIALS_PER_OPERATOR = 20
_ROUND_OPERATORS_PLAYED = 1_000_000
"""Work limits of a round are counted, not timed, so that equal seeds give equal answers."""
_LEAST_GAIN = 0.002
_PATIENCE = 3
"""After so many rounds in a row that each improve by a smaller share than `_LEAST_GAIN` it ends."""
_LONGEST_RUN = 12
_TOLERATED_LOSS = 0.003
"""At the start of a round a trial may be this much worse than the present schedule; at its end
not at all."""


@dataclass(frozen=True)
class LocalSearch:
    """Heuristics for a start, then rounds of threshold accepting, each from the best so far.

    A trial starts at an operator that decides the makespan and moves it to another device, with
    those that follow it in time or along a path, or it exchanges the devices of any two units;
    memory permitting, the result is played in the present order of starts.
    """

    name: str = "local-search"

    def run(self, search: Search) -> None:
        """Constructs and improves."""
        construct_all(search)
        self.improve(search)

    def improve(self, search: Search) -> None:
        """Improves the best schedule so far until a round gains little or the gap is closed."""
        if len(search.problem.devices) == 1 or not search.problem.operators:
            return
        generator = random.Random(search.seed)
        fruitless = 0
        while fruitless < _PATIENCE and not search.closed:
            before_ns = search.best.makespan_ns
            self._round(search, generator)
            gain = 1 - search.best.makespan_ns / before_ns
            fruitless = 0 if gain >= _LEAST_GAIN else fruitless + 1

    def _round(self, search: Search, generator: random.Random) -> None:
        problem = search.problem
        count = len(problem.operators)
        trials = max(1, min(_ROUND_TRIALS_PER_OPERATOR * count, _ROUND_OPERATORS_PLAYED // count))
        state = _State(problem, search.best)
        for trial in range(trials):
            search.deadline.check()
            devices = state.neighbour(generator)
            if devices is None:
                continue
            schedule = simulate(problem, [devices[u] for u in problem.unit_of], state.order)
            tolerated = 1 + _TOLERATED_LOSS * (1 - trial / trials)
            if schedule.makespan_ns > tolerated * state.makespan_ns:
                continue
            state = _State(problem, schedule)
            search.offer(schedule, self.name)
            if search.closed:
                return


class _State:
    """A schedule as the search sees it."""

    def __init__(self, problem: Problem, schedule: Schedule) -> None:
        self.problem = problem
        self.makespan_ns = schedule.makespan_ns
        placed, position = schedule.placed, problem.topological_position
        self.order = sorted(
            range(len(placed)), key=lambda i: (placed[i].start_ns, placed[i].finish_ns, position[i])
        )
        self.devices = [placed[members[0]].device for members in problem.units]
        self.critical = critical_operators(problem, schedule)
        self.place = {operator: place for place, operator in enumerate(self.order)}

    def neighbour(self, generator: random.Random) -> list[int] | None:
        """Devices after a random change; None if it changes nothing or breaks a rule."""
        change = generator.choice((self._exchange, self._move_run, self._move_path))
        changed = change(generator)
        return changed if changed != self.devices and self._allowed(changed) else None

    def _exchange(self, generator: random.Random) -> list[int]:
        first, second = (generator.randrange(len(self.devices)) for _ in range(2))
        changed = list(self.devices)
        changed[first], changed[second] = changed[second], changed[first]
        return changed

    def _move_run(self, generator: random.Random) -> list[int]:
        begin = self.place[generator.choice(self.critical)]
        run = self.order[begin : begin + generator.randint(1, _LONGEST_RUN)]
        return self._moved(run, generator.randrange(len(self.problem.devices)))

    def _move_path(self, generator: random.Random) -> list[int]:
        path = [generator.choice(self.critical)]
        for _ in range(generator.randint(0, _LONGEST_RUN)):
            outgoing = self.problem.outgoing[path[-1]]
            if not outgoing:
                break
            tensor = self.problem.tensors[generator.choice(outgoing)]
            path.append(generator.choice(tensor.consumers))
        return self._moved(path, generator.randrange(len(self.problem.devices)))

    def _moved(self, operators: list[int], target: int) -> list[int]:
        """Those of the operators that are where the first one is go to the target."""
        unit_of = self.problem.unit_of
        source = self.devices[unit_of[operators[0]]]
        changed = list(self.devices)
        for unit in {unit_of[operator] for operator in operators}:
            if changed[unit] == source:
                changed[unit] = target
        return changed

    def _allowed(self, devices: list[int]) -> bool:
        problem = self.problem
        able = (device in problem.unit_devices[unit] for unit, device in enumerate(devices))
        return all(able) and fits(problem, devices)


def critical_operators(problem: Problem, schedule: Schedule) -> list[int]:
    """Operators on one chain from the last finish back to time 0, each waiting for the next.

    The chain ends early where an operator waits for a transfer that itself waited for a port.
    """
    placed = schedule.placed
    arrivals = {(t.tensor, t.target, t.consumer): t.finish_ns for t in schedule.transfers}
    ended = {(p.device, p.finish_ns): i for i, p in enumerate(placed) if p.start_ns < p.finish_ns}

    def awaited(operator: int) -> int | None:
        """A producer whose tensor came just in time, else the operator that ran just before."""
        device, start_ns = placed[operator].device, placed[operator].start_ns
        reader = operator if problem.transfers == PER_EDGE else None
        for tensor in problem.incoming[operator]:
            producer = problem.tensors[tensor].producer
            local_ns = placed[producer].finish_ns
            if arrivals.get((tensor, device, reader), local_ns) == start_ns:
                return producer
        return ended.get((device, start_ns))

    chain = []
    link: int | None = max(range(len(placed)), key=lambda i: (placed[i].finish_ns, -i))
    while link is not None:
        chain.append(link)
        link = awaited(link)
    return chain

"""Placeto: a policy that visits one group of operators after another, learned by REINFORCE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moirai_tf.placement.blackboard import Episode, Search
from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.bound.packing import Reservation
from moirai_tf.placement.construct.heft import mean_work_ns, upward_ranks
from moirai_tf.placement.construct.m_sct import edges_of
from moirai_tf.placement.construct.placeto_policy import (
    Adam,
    Neighbours,
    Policy,
    Step,
    drawn,
    one_hot,
)
from moirai_tf.placement.evaluate.events import order_by, simulate
from moirai_tf.placement.evaluate.insertion import new_state, play
from moirai_tf.placement.problem import BoolArray, IntArray, Problem

_GROUPS = 48
_OVERFLOW = 4.0
"""Makespans that are paid for as many bytes above the cap as all devices hold."""
_RATES = 1e-3, 1e-4
_ENTROPY = 0.1
_CLIP = 1.25
_BASELINE = 0.9
"""Share of the old moving mean of a step's return."""


@dataclass(frozen=True)
class Placeto:
    """Placement as a Markov decision process.

    Source: Addanki et al., NeurIPS 2019, whose code cannot be run as it was published. Operators
    form up to 48 groups, runs of topological order of about equal work. An episode visits each
    once and chooses its device; the reward of a step is by how much it shortens the simulated
    run. `policy.Policy` sees work, output, memory, start, device, what was visited and what is at
    hand; it learns by REINFORCE with Adam, a moving mean of each step's return as baseline and a
    bonus for entropy that decays. The best placement seen is the answer.

    Adapted to devices that differ: work is the mean over devices; what a group's device cannot run
    goes where the packing has it. To memory: bytes above the cap lengthen the run, and the last
    placement of an episode is repaired within the reservation. Transfers: as the simulator has
    them.

    It ends with the time limit or after so many episodes; the seed decides everything else.
    """

    name: str = "placeto"

    def run(self, search: Search) -> None:
        """Learns until the budget is used up."""
        search.deadline.check()
        began_s = search.deadline.elapsed_s()
        school = _School(search.problem, search.packing, search.seed)
        best = school.playable(school.start)
        while len(search.learned) < search.episodes and search.deadline.remaining_s() > 0:
            progress = max(
                len(search.learned) / search.episodes,
                1 - search.deadline.remaining_s() / (search.deadline.limit_s - began_s),
            )
            last_ns, found = school.episode(progress)
            best = min(best, *found, key=lambda pair: pair[0])
            took_s = search.deadline.elapsed_s() - began_s
            search.learned.append(Episode(took_s, last_ns, best[0]))
        schedule = min(
            (simulate(search.problem, best[1], order) for order in (None, school.order)),
            key=lambda schedule: schedule.makespan_ns,
        )
        search.baseline(schedule, self.name, search.deadline.elapsed_s() - began_s)

    construct = run


_Played = tuple[int, list[int]]
"""A makespan and the device of each operator."""


class _School:
    """The process, and the policy that learns it."""

    def __init__(self, problem: Problem, packing: tuple[int, ...], seed: int) -> None:
        self.problem, self.packing = problem, packing
        self.groups = groups_of(problem)
        self.order = order_by(problem, upward_ranks(problem))
        self.start = [packing[group[0]] for group in self.groups]
        self._state = new_state(problem.arrays)
        self._sequence = np.array(self.order, dtype=np.int64)
        self._lots = np.random.default_rng(seed)
        features = self._fixed.shape[1] + 3 + len(problem.devices)
        devices = len(problem.devices)
        self._policy = Policy(Neighbours.of(self._edges), features, devices, seed)
        self._adam = Adam(_CLIP)
        self._returns = np.zeros(len(self.groups))
        self._spread = 1.0

    def episode(self, progress: float) -> tuple[int, list[_Played]]:
        """Visits all groups once and learns from it.

        Args:
          progress: share of the budget that is used up.

        Returns:
          The last makespan, and what could be played within memory.
        """
        chosen, steps, rewards, found = list(self.start), [], [], []
        cost_ns, _, played = self._cost(chosen)
        scale = 1.0 / max(1.0, cost_ns)
        for node in range(len(self.groups)):
            step = self._policy.forward(self._features(chosen, node), node, self._able[node])
            chosen[node] = drawn(step.probability, self._lots)
            steps.append((step, chosen[node]))
            before_ns = cost_ns
            cost_ns, excess_bytes, played = self._cost(chosen)
            rewards.append((before_ns - cost_ns) * scale)
            if not excess_bytes:
                found.append(played)
        self._learn(steps, np.array(rewards), progress)
        return played[0], [*found, self.playable(chosen)]

    def playable(self, chosen: Sequence[int]) -> _Played:
        """A placement within memory, near to the chosen devices."""
        reservation = Reservation(self.problem, self.packing)
        assignment = [0] * len(self.problem.operators)
        for device, units in zip(chosen, self.groups, strict=True):
            for unit in units:
                members = self.problem.units[unit]
                allowed = reservation.devices(members[0])
                taken = device if device in allowed else allowed[0]
                reservation.decide(members[0], taken)
                for operator in members:
                    assignment[operator] = taken
        return self._makespan_ns(assignment), assignment

    def _learn(self, steps: list[tuple[Step, int]], rewards: FloatArray, progress: float) -> None:
        returns = np.cumsum(rewards[::-1])[::-1]
        advantages = returns - self._returns
        self._returns = _BASELINE * self._returns + (1 - _BASELINE) * returns
        spread = float(np.abs(advantages).mean())
        self._spread = _BASELINE * self._spread + (1 - _BASELINE) * spread
        total: dict[str, FloatArray] = {}
        for (step, device), advantage in zip(steps, advantages / self._spread, strict=True):
            bonus = _ENTROPY * (1 - progress)
            for name, part in self._policy.gradient(step, device, advantage, bonus).items():
                total[name] = total.get(name, 0.0) + part
        rate = _RATES[0] + (_RATES[1] - _RATES[0]) * progress
        self._adam.ascend(self._policy.weights, total, rate)

    def _cost(self, chosen: Sequence[int]) -> tuple[float, int, _Played]:
        """The makespan, longer for bytes above the cap; these, and what was played."""
        assignment = [0] * len(self.problem.operators)
        for device, units in zip(chosen, self.groups, strict=True):
            for unit in units:
                able = device in self.problem.unit_devices[unit]
                for operator in self.problem.units[unit]:
                    assignment[operator] = device if able else self.packing[unit]
        makespan_ns = self._makespan_ns(assignment)
        excess_bytes = self.problem.excess_bytes(self.problem.used_bytes(assignment))
        share = excess_bytes / max(1, sum(self.problem.capacity_bytes))
        return makespan_ns * (1 + _OVERFLOW * share), excess_bytes, (makespan_ns, assignment)

    def _makespan_ns(self, assignment: Sequence[int]) -> int:
        devices = np.array(assignment, dtype=np.int64)
        return int(play(self.problem.arrays, self._state, self._sequence, devices))

    def _features(self, chosen: Sequence[int], node: int) -> FloatArray:
        """What the policy sees of each group when it is at one."""
        numbers = np.arange(len(self.groups))
        starts_ns = self._state.start_ns[self._first]
        moving = np.stack([numbers < node, numbers == node, _scaled(starts_ns)], axis=1)
        devices = one_hot(np.array(chosen), len(self.problem.devices))
        return np.concatenate([self._fixed, moving, devices], axis=1)

    @cached_property
    def _group_of(self) -> IntArray:
        """(operators,)"""
        number = np.zeros(len(self.problem.operators), dtype=np.int64)
        for group, units in enumerate(self.groups):
            for unit in units:
                number[list(self.problem.units[unit])] = group
        return number

    @cached_property
    def _first(self) -> IntArray:
        """First operator of each group."""
        return np.array([self.problem.units[units[0]][0] for units in self.groups])

    @cached_property
    def _fixed(self) -> FloatArray:
        """Work, output and memory of each group, over the largest."""
        count = len(self.groups)
        work = np.bincount(self._group_of, mean_work_ns(self.problem), count)
        memory = [o.memory_bytes for o in self.problem.operators]
        nbytes = np.bincount(self._group_of, np.array(memory, dtype=np.float64), count)
        output = np.zeros(count)
        for (producer, consumer), time_ns in edges_of(self.problem).items():
            if self._group_of[producer] != self._group_of[consumer]:
                output[self._group_of[producer]] += time_ns
        return np.stack([_scaled(work), _scaled(output), _scaled(nbytes)], axis=1)

    @cached_property
    def _edges(self) -> BoolArray:
        """(groups, groups): from lower to higher numbers."""
        edges = np.zeros((len(self.groups),) * 2, dtype=np.bool_)
        for producer, consumer in edges_of(self.problem):
            edges[self._group_of[producer], self._group_of[consumer]] = True
        edges[np.tril_indices(len(self.groups))] = False  # by colocation only
        return edges

    @cached_property
    def _able(self) -> BoolArray:
        """(groups, devices): whether any operator of the group can be there."""
        able = np.zeros((len(self.groups), len(self.problem.devices)), dtype=np.bool_)
        for group, units in enumerate(self.groups):
            for unit in units:
                able[group, list(self.problem.unit_devices[unit])] = True
        return able


def groups_of(problem: Problem) -> list[list[int]]:
    """Units in topological order of their first operators, in runs of about equal work."""
    place = problem.topological_position
    units = sorted(
        range(len(problem.units)), key=lambda unit: min(place[i] for i in problem.units[unit])
    )
    work_ns = mean_work_ns(problem)
    shares = np.array([work_ns[list(problem.units[u])].sum() for u in units], dtype=np.float64)
    done = np.cumsum(shares) - shares / 2
    numbers = np.minimum(_GROUPS - 1, done * _GROUPS / max(1.0, shares.sum())).astype(int)
    if len(units) <= _GROUPS:
        numbers = np.arange(len(units))
    return [[units[i] for i in np.flatnonzero(numbers == n)] for n in np.unique(numbers)]


def _scaled(values: FloatArray | IntArray) -> FloatArray:
    """Over the largest."""
    scaled: FloatArray = values / max(1.0, float(values.max(initial=0)))
    return scaled

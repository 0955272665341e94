"""Strategies that run a constructive heuristic, and the linear bound that goes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from moirai_tf.placement.blackboard import Search
from moirai_tf.placement.bound import relaxation
from moirai_tf.placement.bound.packing import Packing
from moirai_tf.placement.construct import etf, heft, m_topo
from moirai_tf.placement.deadline import Deadline
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule, relative_gap

_LINEAR_SHARES = 50_000
"""Above so many shares (units * devices) the linear relaxation is not tried."""
_LINEAR_WAYS = 100_000
"""The same for ways (tensors to a consumer * pairs of devices) where transfers are in it."""
_WAYS_SHARE = 0.6
"""Part of the time that is left for that."""
_NARROW = 1.5
"""Chains side by side, for each device, beyond which work counts and not the length of chains."""
_WORTH = 0.02
"""Gap below which it is not tried; decomposition bounds such graphs better."""


@dataclass(frozen=True)
class Constructive:
    """One heuristic."""

    name: str
    make: Callable[[Problem, Packing, Deadline], Schedule]

    def construct(self, search: Search) -> None:
        """Offers the heuristic's schedule and notes its makespan."""
        schedule = self.make(search.problem, search.packing, search.deadline)
        search.baseline(schedule, self.name)

    def run(self, search: Search) -> None:
        """Constructs, then bounds."""
        self.construct(search)
        relax(search)


@dataclass(frozen=True)
class Single:
    """The best single device, which every search has looked at before it starts."""

    name: str = "single"

    def run(self, search: Search) -> None:
        """Only bounds."""
        relax(search)


HEURISTICS = (
    Constructive("heft", heft),
    Constructive("etf", etf),
    Constructive("m-topo", m_topo),
)


def construct_all(search: Search, heuristics: Iterable[Constructive] = HEURISTICS) -> None:
    """Runs heuristics until the gap is closed."""
    for heuristic in heuristics:
        heuristic.construct(search)
    relax(search)


def relax(search: Search) -> None:
    """Proves the linear relaxation's bound, where it is small enough."""
    search.deadline.check()
    if search.closed:
        return
    if len(search.problem.units) * len(search.problem.devices) > _LINEAR_SHARES:
        search.notes.append("too large for the linear relaxation: the bound is a simple one")
        return
    limits = search.limits()
    limits = replace(limits, time_s=limits.time_s / 2)
    search.prove(relaxation.linear(search.problem, search.best.makespan_ns, limits))


def relax_ways(search: Search) -> None:
    """Proves the bound of the relaxation with transfers, where it may pay and is small enough."""
    problem, devices = search.problem, len(search.problem.devices)
    ways = sum(map(len, problem.incoming)) * devices * (devices - 1)
    gap = relative_gap(search.best.makespan_ns, search.bound.value_ns)
    if search.closed or gap <= _WORTH or ways > _LINEAR_WAYS:
        return
    if _width(problem) > _NARROW * devices:
        return
    limits = search.limits()
    limits = replace(limits, time_s=limits.time_s * _WAYS_SHARE)
    search.prove(relaxation.linear(problem, search.best.makespan_ns, limits, ways=True))


def _width(problem: Problem) -> float:
    """Operators over those on the path of most operators: about how many chains there are."""
    depth = [1] * len(problem.operators)
    for operator in problem.topological_order:
        for tensor in problem.incoming[operator]:
            depth[operator] = max(depth[operator], depth[problem.tensors[tensor].producer] + 1)
    return len(depth) / max(depth, default=1)

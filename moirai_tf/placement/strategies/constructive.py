"""Strategies that run a constructive heuristic, and the linear bound that goes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from moirai_tf.placement import relaxation
from moirai_tf.placement.deadline import Deadline
from moirai_tf.placement.heuristics import etf, heft, m_topo
from moirai_tf.placement.memory import Packing
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule
from moirai_tf.placement.strategies.search import Search

_LINEAR_SHARES = 50_000
"""Above so many shares (units * devices) the linear relaxation is not tried."""


@dataclass(frozen=True)
class Constructive:
    """One heuristic."""

    name: str
    make: Callable[[Problem, Packing, Deadline], Schedule]

    def construct(self, search: Search) -> None:
        """Offers the heuristic's schedule and notes its makespan."""
        schedule = self.make(search.problem, search.packing, search.deadline)
        search.baselines[self.name] = schedule.makespan_ns
        search.offer(schedule, self.name)

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

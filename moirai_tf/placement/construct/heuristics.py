"""Strategies that run a constructive heuristic, and the linear bound that goes with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from moirai_tf.placement.blackboard import Search
from moirai_tf.placement.bound import relaxation
from moirai_tf.placement.bound.packing import Packing
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.compiled import interpreted
from moirai_tf.placement.construct import etf, getf, heft, m_etf, m_sct, m_topo
from moirai_tf.placement.evaluate.events import simulate
from moirai_tf.placement.exact.milp.loads import size_estimate
from moirai_tf.placement.objective import bottleneck_ns
from moirai_tf.placement.problem import NONE, Problem
from moirai_tf.placement.schedule import Schedule, relative_gap

_LINEAR_SHARES = 50_000
"""Above so many shares (units * devices) the linear relaxation is not tried."""
_LINEAR_TRANSFERS = 100_000
"""The same for tensors to a consumer * pairs of devices, where transfers are in it."""
_TRANSFERS_SHARE = 0.6
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
        began_s = search.deadline.elapsed_s()
        with interpreted(len(search.problem.operators)):
            schedule = self.make(search.problem, search.packing, search.deadline)
        search.baseline(schedule, self.name, search.deadline.elapsed_s() - began_s)

    def run(self, search: Search) -> None:
        """Constructs, then bounds."""
        self.construct(search)
        relax(search)


@dataclass(frozen=True)
class Single:
    """The best single device, which every search has looked at before it starts."""

    name: str = "single"

    def construct(self, search: Search) -> None:
        """Nothing is left to do."""

    def run(self, search: Search) -> None:
        """Only bounds."""
        relax(search)


HEURISTICS = (
    Constructive("heft", heft),
    Constructive("etf", etf),
    Constructive("m-topo", m_topo),
)
PUBLISHED = (
    Constructive("m-etf", m_etf),
    Constructive("m-sct", m_sct),
    Constructive("getf", getf),
)
"""Methods that take seconds on large problems, two of them for a linear program."""


def construct_all(search: Search) -> None:
    """Runs all heuristics, and proves the bounds that come at once."""
    if search.objective.latency_weight < 1:
        search.prove_bottleneck(relaxation.priced_work(search.problem))
    for heuristic in HEURISTICS:
        heuristic.construct(search)
    relax(search)


def relax(search: Search) -> None:
    """Proves the linear relaxation's bound, where it is small enough."""
    search.deadline.check()
    if search.closed or search.objective.latency_weight == 0:
        return
    if len(search.problem.units) * len(search.problem.devices) > _LINEAR_SHARES:
        search.notes.append("too large for the linear relaxation: the bound is a simple one")
        return
    limits = search.limits()
    limits = replace(limits, time_s=limits.time_s / 2)
    search.prove(relaxation.linear(search.problem, search.best.makespan_ns, limits))


def relax_with_transfers(search: Search) -> None:
    """Proves the bound of the relaxation with transfers, where it may pay and is small enough."""
    problem, devices = search.problem, len(search.problem.devices)
    if search.objective.latency_weight == 0:
        return
    ways = sum(map(len, problem.incoming)) * devices * (devices - 1)
    gap = relative_gap(search.best.makespan_ns, search.bound.value_ns)
    if search.closed or gap <= _WORTH or ways > _LINEAR_TRANSFERS:
        return
    if _width(problem) > _NARROW * devices:
        return
    limits = search.limits()
    limits = replace(limits, time_s=limits.time_s * _TRANSFERS_SHARE)
    search.prove(relaxation.linear(problem, search.best.makespan_ns, limits, ways=True))


def relax_loads(search: Search) -> None:
    """Proves bounds on the bottleneck, and offers the assignments of rounded relaxations."""
    problem = search.problem
    ceiling_ns = bottleneck_ns(problem, search.best)
    devices_only = len(problem.units) * len(problem.devices)
    for crossing, columns in ((False, devices_only), (True, size_estimate(problem))):
        search.deadline.check()
        if columns > _LINEAR_SHARES or (crossing and problem.congestion == NONE):
            continue
        limits = search.limits()
        limits = replace(limits, time_s=limits.time_s / 4)
        relaxed = relaxation.relax_loads(problem, ceiling_ns, limits, crossing=crossing)
        search.prove_bottleneck(relaxed.bound)
        assignment = relaxation.rounded(problem, search.packing, relaxed)
        if assignment is not None:
            search.offer(simulate(problem, assignment), "rounding")


def _width(problem: Problem) -> float:
    """Operators over those on the path of most operators: about how many chains there are."""
    depth = [1] * len(problem.operators)
    for operator in problem.topological_order:
        for tensor in problem.incoming[operator]:
            depth[operator] = max(depth[operator], depth[problem.tensors[tensor].producer] + 1)
    return len(depth) / max(depth, default=1)

"""m-SCT: small communication time, within memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moirai_tf.placement.bound.linear_program import FloatArray, ModelBuilder, time_unit_ns
from moirai_tf.placement.bound.packing import InfeasibleError, Packing, pack
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.construct.heft import mean_work_ns
from moirai_tf.placement.construct.m_etf import Candidate, Clock
from moirai_tf.placement.evaluate.events import simulate
from moirai_tf.placement.exact.milp.backends import Limits, solved_vertex
from moirai_tf.placement.problem import Operator, Problem, Tensor
from moirai_tf.placement.schedule import Schedule

_FAVOURITE = 0.1
"""An edge is one to a favourite child if its column of the relaxation is below."""
Edges = dict[tuple[int, int], float]
"""(producer, consumer) -> mean time of all that goes from one to the other."""


def m_sct(problem: Problem, packing: Packing, deadline: Deadline) -> Schedule:
    """As m-ETF, but a device waits for the favourite child of what it has run last.

    Source: Baechi (Jeon et al., SoCC 2020), after Hanen and Munier 1995. A linear program says
    which child of an operator, at most one, should follow it on its device (`favourites`); while
    a device waits for that child it runs only what is urgent (`WaitingClock`). Before that, an
    operator with one consumer joins it (`co_placed`). That merges all branches of a block, so it
    is also tried without, and the better schedule counts.

    Adapted to devices that differ: the linear program has the mean time of the devices that can
    run an operator, and of transfers over all pairs of devices; the clock has true times. Memory,
    colocation and transfers: as in m-ETF; groups for which no packing is found are not made.
    """
    merged = co_placed(problem)
    apart = WaitingClock(problem, packing, deadline).run()
    groups_packing = _packed(merged.problem, deadline) if merged.is_smaller else None
    if groups_packing is None:
        return apart
    clock = WaitingClock(merged.problem, groups_packing, deadline)
    assignment = clock.run().assignment
    together = simulate(problem, *merged.expand(assignment, clock.order))
    return min(together, apart, key=lambda schedule: schedule.makespan_ns)


def _packed(problem: Problem, deadline: Deadline) -> Packing | None:
    try:
        return pack(problem, Limits(deadline.remaining_s()))
    except InfeasibleError:
        return None


def favourites(problem: Problem, deadline: Deadline) -> dict[int, int]:
    """The favourite child of every operator that has one.

    With start times s, mean work p, mean transfers c, and x[i, j] = 0 where j is the favourite
    child of i: minimise w, relaxed to 0 <= x <= 1, where

        s[i] + p[i] + c[i, j] x[i, j] <= s[j],       s[i] + p[i] <= w,
        sum_j x[i, j] >= children of i - 1,          sum_i x[i, j] >= parents of j - 1.

    Edges with x < 0.1 are taken, the smallest first, as long as both ends are free.
    """
    edges = edges_of(problem)
    shares = _relaxed(problem, edges, deadline)
    chosen: dict[int, int] = {}
    taken: set[int] = set()
    for (parent, child), share in sorted(
        zip(edges, shares.tolist(), strict=True), key=lambda found: (found[1], found[0])
    ):
        if share < _FAVOURITE and parent not in chosen and child not in taken:
            chosen[parent] = child
            taken.add(child)
    return chosen


def edges_of(problem: Problem) -> Edges:
    """What there is between operators, with mean times over pairs of different devices."""
    pairs = max(1, len(problem.devices) * (len(problem.devices) - 1))
    edges: Edges = {}
    for tensor, time_ns in zip(problem.tensors, problem.time_ns, strict=True):
        mean_ns = float(time_ns.sum()) / pairs
        for consumer in tensor.consumers:
            edge = tensor.producer, consumer
            edges[edge] = edges.get(edge, 0.0) + mean_ns
    return edges


def _relaxed(problem: Problem, edges: Edges, deadline: Deadline) -> FloatArray:
    """x of every edge in a vertex of the linear program."""
    work_ns = [round(work) for work in mean_work_ns(problem).tolist()]
    horizon_ns = 1 + sum(work_ns) + sum(map(round, edges.values()))
    unit_ns = time_unit_ns(horizon_ns)
    builder = ModelBuilder()
    starts = [builder.column(0, horizon_ns, unit=unit_ns) for _ in work_ns]
    whole = builder.column(0, horizon_ns, unit=unit_ns)
    shares = [builder.column(0, 1) for _ in edges]
    children: list[list[int]] = [[] for _ in work_ns]
    parents: list[list[int]] = [[] for _ in work_ns]
    for ((i, j), time_ns), share in zip(edges.items(), shares, strict=True):
        builder.at_least([(1, starts[j]), (-1, starts[i]), (-round(time_ns), share)], work_ns[i])
        children[i].append(share)
        parents[j].append(share)
    for start, work in zip(starts, work_ns, strict=True):
        builder.at_least([(1, whole), (-1, start)], work)
    for group in (*children, *parents):
        if len(group) > 1:
            builder.at_least([(1, share) for share in group], len(group) - 1)
    return solved_vertex(builder.build(whole), deadline)[shares]


class WaitingClock(Clock):
    """A clock whose devices wait for favourite children."""

    def __init__(self, problem: Problem, packing: Packing, deadline: Deadline) -> None:
        super().__init__(problem, packing, deadline)
        self.favourite = favourites(problem, deadline)

    def choice(self, device: int) -> Candidate | None:
        """As m-ETF; a device that is awake takes what is urgent first, then its favourite."""
        child = self.awaited(device)
        if child is None:
            return self.first(device)
        urgent_ns, _, operator = min(self._urgent(device))
        if urgent_ns <= self.now_ns:
            return self.candidate(operator, device)
        candidate = self.candidate(child, device)
        return candidate if candidate.arrival_ns <= self.now_ns else None

    def awaited(self, device: int) -> int | None:
        """The favourite child that keeps a device awake: ready, and nowhere earlier than there."""
        last = self.last[device]
        child = None if last is None else self.favourite.get(last)
        if child is None or not self.is_ready(child) or not self.allowed(child, device):
            return None
        arrivals_ns = {k: self.partial.arrival_ns(child, k) for k in self.devices(child)}
        return child if arrivals_ns[device] == min(arrivals_ns.values()) else None

    def wake_ns(self, device: int) -> int | None:
        """For an awake device the arrival of its favourite's inputs, or of something urgent."""
        child = self.awaited(device)
        if child is None:
            return super().wake_ns(device)
        urgent = (at_ns for at_ns, _, _ in self._urgent(device) if at_ns > self.now_ns)
        return min([self.partial.arrival_ns(child, device), *urgent])

    def _urgent(self, device: int) -> list[tuple[int, int, int]]:
        """When ready operators are urgent, that is, could start on any device; with position."""
        found = []
        for operator in self.ready_on(device):
            devices = self.devices(operator)
            if device in devices:
                at_ns = max(self.partial.arrival_ns(operator, k) for k in devices)
                found.append((at_ns, self.problem.topological_position[operator], operator))
        return found


@dataclass(frozen=True)
class CoPlaced:
    """A problem whose operators are groups of those of another one."""

    original: Problem
    problem: Problem
    members: tuple[tuple[int, ...], ...]
    """Operators of each group, producers first."""

    @property
    def is_smaller(self) -> bool:
        """Whether any operators were merged."""
        return len(self.members) < len(self.original.operators)

    def expand(
        self, assignment: Sequence[int], order: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Assignment and order of the original's operators, each group without interruption."""
        devices = [-1] * len(self.original.operators)
        for group, device in zip(self.members, assignment, strict=True):
            for operator in group:
                devices[operator] = device
        return devices, [operator for group in order for operator in self.members[group]]


def co_placed(problem: Problem) -> CoPlaced:
    """Merges every operator that only one other reads with that one, again and again.

    No cycle can arise, since every path from the operator leads through its only consumer. A group
    that no device could run and hold is not made; neither is one across colocation groups.
    """
    from networkx.utils import UnionFind  # Takes as long as a small problem does.

    sets = UnionFind(range(len(problem.operators)))
    groups: dict[int, tuple[int, ...]] = {i: (i,) for i in range(len(problem.operators))}
    for operator in reversed(problem.topological_order):
        readers = {c for t in problem.outgoing[operator] for c in problem.tensors[t].consumers}
        if len(readers) != 1:
            continue
        (reader,) = readers
        both = (*groups[sets[operator]], *groups[sets[reader]])
        alone = all(len(problem.units[problem.unit_of[i]]) == 1 for i in both)
        if alone and _possible(problem, both):
            sets.union(operator, reader)
            groups[sets[operator]] = both
    place = problem.topological_position
    members = sorted(
        (tuple(sorted(groups[i], key=place.__getitem__)) for i in {sets[i] for i in groups}),
        key=lambda group: place[group[-1]],
    )
    return CoPlaced(problem, _merged(problem, members), tuple(members))


def _possible(problem: Problem, members: tuple[int, ...]) -> bool:
    """Whether a device can run all of them and hold them."""
    need = sum(problem.operators[i].memory_bytes for i in members)
    return any(
        need <= room and all(problem.runnable[i, device] for i in members)
        for device, room in enumerate(problem.capacity_bytes)
    )


def _merged(problem: Problem, members: list[tuple[int, ...]]) -> Problem:
    number = {i: place for place, group in enumerate(members) for i in group}
    tensors = []
    for tensor in problem.tensors:
        source = number[tensor.producer]
        readers = dict.fromkeys(number[i] for i in tensor.consumers if number[i] != source)
        if readers:
            tensors.append(Tensor(source, tuple(readers), tensor.time_ns))
    colocation = (tuple(dict.fromkeys(number[i] for i in group)) for group in problem.colocation)
    return replace(
        problem,
        operators=tuple(_operator(problem, group) for group in members),
        tensors=tuple(tensors),
        colocation=tuple(group for group in colocation if len(group) > 1),
    )


def _operator(problem: Problem, group: tuple[int, ...]) -> Operator:
    """A group as one operator."""
    rows = [problem.operators[i].compute_ns for i in group]
    times = [
        None if None in column else sum(time for time in column if time is not None)
        for column in zip(*rows, strict=True)
    ]
    memory = sum(problem.operators[i].memory_bytes for i in group)
    return Operator(problem.operators[group[-1]].name, tuple(times), memory)

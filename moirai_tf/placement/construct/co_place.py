"""Co-placement: an operator with a single consumer becomes one with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moirai_tf.placement.problem import Operator, Problem, Tensor


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

"""Smaller problems with the same optimum, and the way back from their schedules.

Operators that take no time and share a device with their neighbours become part of them. Profiled
graphs hold many: weights beside the operator that reads them, outputs split off an operator.
Weights that are sources hide cuts, so this also lets graphs fall into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moirai_tf.placement.problem import PER_EDGE, BoolArray, Operator, Problem, Tensor
from moirai_tf.placement.schedule import Placed, Schedule, Transfer, schedule_of


@dataclass(frozen=True)
class Reduction:
    """A problem without some operators of another one."""

    original: Problem
    problem: Problem
    host: tuple[int | None, ...]
    """Operator, of the original, whose device each removed operator shares; None for the others."""
    kept_tensors: tuple[int, ...]
    """Of the original, for each tensor of the smaller problem."""

    def invert(self, schedule: Schedule) -> Schedule:
        """The original's schedule: removed operators run as soon as their inputs are there."""
        original = self.original
        kept = [operator for operator, host in enumerate(self.host) if host is None]
        placed = dict(zip(kept, schedule.placed, strict=True))
        arrival_ns: dict[tuple[int, int], int] = {}
        moves = []
        for transfer in schedule.transfers:
            tensor = self.kept_tensors[transfer.tensor]
            reader = None if transfer.consumer is None else self._reader(tensor, transfer, kept)
            moves.append(replace(transfer, tensor=tensor, consumer=reader))
            arrival_ns[tensor, transfer.target if reader is None else reader] = transfer.finish_ns
        for operator in original.topological_order:
            if operator in placed:
                continue
            device = placed[self._kept_host(operator)].device
            ready_ns = 0
            for tensor in original.incoming[operator]:
                producer = placed[original.tensors[tensor].producer]
                key = operator if original.transfers == PER_EDGE else device
                came_ns = arrival_ns[tensor, key] if producer.device != device else 0
                ready_ns = max(ready_ns, producer.finish_ns, came_ns)
            placed[operator] = Placed(device, ready_ns, ready_ns)
        return schedule_of((placed[i] for i in range(len(self.host))), moves)

    def _kept_host(self, operator: int) -> int:
        host = self.host[operator]
        while host is not None:
            operator, host = host, self.host[host]
        return operator

    def _reader(self, tensor: int, transfer: Transfer, kept: list[int]) -> int:
        """The original's reader in place of which a kept operator reads a tensor."""
        assert transfer.consumer is not None
        reader = kept[transfer.consumer]
        consumers = self.original.tensors[tensor].consumers
        if reader in consumers:
            return reader
        return next(i for i in consumers if self._kept_host(i) == reader)


def reduce(problem: Problem) -> Reduction:
    """Removes operators that can be part of a neighbour without any loss.

    An operator that takes no time on any device of its unit, and occupies none, can run the moment
    its inputs are there, so only what it waits for and what waits for it matter:

    - all producers and all consumers in its unit: nothing it reads or writes is ever moved, and
      its consumers may as well wait for its producers themselves;
    - its only producer in its unit: they finish together, and what it writes is ready then;
    - its only consumer in its unit: that one may wait for the inputs itself, which are moved to
      the same device. With transfers per edge, unless both read one tensor.

    Its memory and bans pass to a member of the unit that stays, so devices and times of any
    schedule can be carried over in both directions.
    """
    folding = _Folding(problem)
    for operator in (*problem.topological_order, *reversed(problem.topological_order)):
        folding.visit(operator)
    return folding.result()


class _Folding:
    """A problem's graph while operators leave it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.producer = [tensor.producer for tensor in problem.tensors]
        self.readers = [dict.fromkeys(tensor.consumers) for tensor in problem.tensors]
        self.inputs = [dict.fromkeys(tensors) for tensors in problem.incoming]
        self.outputs = [dict.fromkeys(tensors) for tensors in problem.outgoing]
        self.host: list[int | None] = [None] * len(problem.operators)
        self.left = [len(members) for members in problem.units]

    def visit(self, operator: int) -> None:
        """Removes an operator where that is harmless."""
        problem, unit = self.problem, self.problem.unit_of[operator]
        if self.host[operator] is not None or self.left[unit] == 1 or not self._idle(operator):
            return
        producers = dict.fromkeys(self.producer[tensor] for tensor in self.inputs[operator])
        outputs = self.outputs[operator]
        readers = dict.fromkeys(reader for tensor in outputs for reader in self.readers[tensor])
        before = all(problem.unit_of[i] == unit for i in producers)
        after = all(problem.unit_of[i] == unit for i in readers)
        if before and after:
            mates = (*producers, *readers, *problem.units[unit])
            host = next(i for i in mates if i != operator and self.host[i] is None)
            self._remove(operator, [*readers], None)
        elif before and len(producers) == 1:
            (host,) = producers
            self._remove(operator, [], host)
        elif after and len(readers) == 1 and self._separate(operator, *readers):
            (host,) = readers
            self._remove(operator, [host], None)
        else:
            return
        self.host[operator] = host
        self.left[unit] -= 1

    def result(self) -> Reduction:
        """The smaller problem; the same if nothing could go."""
        problem = self.problem
        if not any(host is not None for host in self.host):
            return Reduction(problem, problem, tuple(self.host), tuple(range(len(problem.tensors))))
        kept = [operator for operator, host in enumerate(self.host) if host is None]
        number = {operator: place for place, operator in enumerate(kept)}
        tensors = [t for t, readers in enumerate(self.readers) if readers]
        groups = (
            tuple(number[i] for i in members if i in number)
            for members in problem.units
            if len(members) > 1
        )
        smaller = replace(
            problem,
            operators=tuple(self._operator(operator) for operator in kept),
            tensors=tuple(
                Tensor(
                    number[self.producer[t]],
                    tuple(number[reader] for reader in self.readers[t]),
                    problem.tensors[t].time_ns,
                )
                for t in tensors
            ),
            colocation=tuple(group for group in groups if len(group) > 1),
        )
        return Reduction(problem, smaller, tuple(self.host), tuple(tensors))

    def _operator(self, operator: int) -> Operator:
        """An operator that stays; alone of its unit, or the first, it has all the unit's bans."""
        unit = self.problem.unit_of[operator]
        members = self.problem.units[unit]
        if self.left[unit] == len(members):
            return self.problem.operators[operator]
        first = next(i for i in members if self.host[i] is None)
        gone = [self.problem.operators[i] for i in members if self.host[i] is not None]
        extra = sum(o.memory_bytes for o in gone) if operator == first else 0
        able = self.problem.unit_devices[unit]
        own = self.problem.operators[operator]
        return replace(
            own,
            compute_ns=tuple(t if k in able else None for k, t in enumerate(own.compute_ns)),
            memory_bytes=own.memory_bytes + extra,
        )

    def _idle(self, operator: int) -> bool:
        devices = self.problem.unit_devices[self.problem.unit_of[operator]]
        return all(self.problem.operators[operator].compute_ns[k] == 0 for k in devices)

    def _separate(self, operator: int, reader: int) -> bool:
        """Whether two may read as one."""
        shared = self.inputs[operator].keys() & self.inputs[reader].keys()
        return self.problem.transfers != PER_EDGE or not shared

    def _remove(self, operator: int, readers: list[int], producer: int | None) -> None:
        """Hands inputs to readers and outputs to a producer; without one, they vanish."""
        for tensor in self.outputs[operator]:
            if producer is None:
                for reader in self.readers[tensor]:
                    del self.inputs[reader][tensor]
                self.readers[tensor] = {}
            else:
                self.producer[tensor] = producer
                self.outputs[producer][tensor] = None
        for tensor in self.inputs[operator]:
            del self.readers[tensor][operator]
            for reader in readers:
                self.readers[tensor][reader] = None
                self.inputs[reader][tensor] = None
        self.inputs[operator], self.outputs[operator] = {}, {}


def keep_chains(problem: Problem) -> Problem:
    """The problem with every chain of operators on one device.

    An operator goes on the chain of its producer if it is the only one that reads the producer and
    reads no other that takes time (linear clustering restricted to paths that nothing enters or
    leaves). Every schedule of the answer is one of the problem, not the other way round.

    Returns:
      The problem with more colocation; itself if no chain fits the colocation that it has.
    """
    runnable = problem.runnable
    takes_time = [any(ns for ns in o.compute_ns if ns) for o in problem.operators]
    chain_of: dict[int, int] = {}
    chains: list[list[int]] = []
    allowed: list[BoolArray] = []
    for operator in problem.topological_order:
        before = _only_neighbour(problem, operator, takes_time)
        chain = None if before is None else chain_of[before]
        if chain is None or not (allowed[chain] & runnable[operator]).any():
            chain = len(chains)
            chains.append([])
            allowed.append(runnable[operator])
        chains[chain].append(operator)
        allowed[chain] = allowed[chain] & runnable[operator]
        chain_of[operator] = chain
    groups = tuple(tuple(chain) for chain in chains if len(chain) > 1)
    if not groups:
        return problem
    chained = replace(problem, colocation=(*problem.colocation, *groups))
    return chained if all(chained.unit_devices) else problem


def _only_neighbour(problem: Problem, operator: int, takes_time: list[bool]) -> int | None:
    """The operator's only producer that takes time, if nothing else reads that one."""
    before = {problem.tensors[t].producer for t in problem.incoming[operator]}
    working = [producer for producer in before if takes_time[producer]]
    if len(working) != 1:
        return None
    readers = {c for t in problem.outgoing[working[0]] for c in problem.tensors[t].consumers}
    return working[0] if readers == {operator} else None

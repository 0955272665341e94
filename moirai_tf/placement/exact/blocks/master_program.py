"""How often each column is used: an integer program over all blocks and their memory.

Layers that repeat (`repeated_layers`) need not be told apart: a way through them is a walk
over (phase, device), and whatever its order, it costs the sum of its columns. So one integer per
phase and column says how often it is used, and the program does not grow with the number of
layers. Counts are a walk exactly if as many columns enter a phase and device as leave it and those
used hang together (Euler); rows for the latter are added where a solution falls apart.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

from moirai_tf.placement.bound.linear_program import FloatArray, LinearModel, ModelBuilder
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.exact.blocks.block_pool import Column
from moirai_tf.placement.exact.milp.backends import (
    NO_SOLUTION,
    STOPPED,
    Limits,
    solve_with_highs,
)

Node = tuple[int, int, int]
"""(run, phase, device) before a phase of a run; phase -1 is before the run itself."""
_LONGEST_PERIOD = 64
"""Blocks in a layer that repeats."""
_ALL_SUBSETS, _SUBSETS = 4, 2
"""Sets of up to so many devices have their rows from the start; with more devices, smaller ones."""
_TOLERANCE = 1e-6
"""Share of the cutoff by which the solver's bound may be off; its own tolerances are smaller."""


class RepeatedLayers(NamedTuple):
    """Some blocks whose classes are repeated a number of times."""

    first: int
    """Position of the first block."""
    period: int
    """Blocks in one repetition."""
    times: int


def repeated_layers(kinds: Sequence[int]) -> list[RepeatedLayers]:
    """Cuts a sequence of classes into runs: always the longest repetition that begins here.

    What is repeated only once is a run of one block.
    """
    found = []
    begin = 0
    while begin < len(kinds):
        longest = min(_LONGEST_PERIOD, (len(kinds) - begin) // 2)
        options = [RepeatedLayers(begin, 1, 1)]
        options += (_repeated(kinds, begin, period) for period in range(1, longest + 1))
        repeated = [run for run in options if run.times > 1] or options[:1]
        best = max(repeated, key=lambda run: run.period * run.times)
        found.append(best)
        begin += best.period * best.times
    return found


def _repeated(kinds: Sequence[int], begin: int, period: int) -> RepeatedLayers:
    end = begin + period
    while end < len(kinds) and kinds[end] == kinds[end - period]:
        end += 1
    return RepeatedLayers(begin, period, (end - begin) // period)


@dataclass(frozen=True)
class WalkStep:
    """A column as a step from node to node, or a step into or out of a repeated run."""

    source: Node
    target: Node
    count: int
    """Column of the program."""
    column: Column | None = None


@dataclass(frozen=True)
class Answer:
    """What one solution of the program proved and found."""

    bound: int
    """Ticks; no way over these columns below the cutoff takes less."""
    settled: bool
    """Whether that is the cutoff, but for the solver's tolerance, or the path is the fastest."""
    path: list[Column] | None
    """A column per block, whatever they take."""
    interrupted: bool


class MasterProgram:
    """The program over given columns."""

    def __init__(
        self,
        kinds: Sequence[int],
        columns: Sequence[Column],
        capacity: Sequence[int],
        scale: int,
    ) -> None:
        """Builds all rows.

        Args:
          kinds: class of each block.
          columns: ways to run a block of some class, at least one for each class.
          capacity: bytes of each device.
          scale: ticks in a nanosecond; the columns' ticks are multiples of it.
        """
        self.runs = repeated_layers(kinds)
        self.scale, self.devices = scale, len(capacity)
        self._builder = ModelBuilder()
        self._steps: list[WalkStep] = []
        by_kind: dict[int, list[Column]] = defaultdict(list)
        for column in columns:
            by_kind[column.kind].append(column)
        for number, run in enumerate(self.runs):
            for phase in range(run.period):
                self._phase(number, phase, by_kind[kinds[run.first + phase]])
            if run.times > 1:
                self._ends(number)
        self._balance()
        self._room(capacity)
        self._hang_together()

    def solve(self, cutoff: int, start: Sequence[Column], limits: Limits) -> Answer:
        """Looks for ways of less than `cutoff` ticks.

        Args:
          cutoff: ticks.
          start: a way over the columns to begin with, or none.
          limits: for HiGHS.
        """
        deadline = Deadline(limits.time_s)
        bound = 0
        while True:
            left = replace(limits, time_s=deadline.remaining_s(), cutoff=cutoff / self.scale)
            outcome = solve_with_highs(self._model(), self._counts(start), left)
            ended_ns = cutoff / self.scale if outcome.state == NO_SOLUTION else outcome.bound
            if math.isfinite(ended_ns):
                safe_ns = math.ceil(ended_ns - _TOLERANCE * cutoff / self.scale)
                bound = max(bound, min(cutoff, safe_ns * self.scale))
            found = [values for _, values in outcome.incumbents]
            path = self._path(found[-1]) if found else None
            if path or not found or outcome.interrupted or not deadline.remaining_s():
                return Answer(bound, outcome.state != STOPPED, path, outcome.interrupted)

    def _phase(self, number: int, phase: int, columns: Sequence[Column]) -> None:
        """The steps of one phase of a run; it is taken as often as the run repeats."""
        run = self.runs[number]
        terms = []
        for column in columns:
            count = self._builder.column(0, run.times, integer=True)
            source = (number, phase, column.entry)
            target = (number, (phase + 1) % run.period, column.exit)
            if run.times == 1:
                source, target = (number, -1, column.entry), (number + 1, -1, column.exit)
            self._steps.append(WalkStep(source, target, count, column))
            terms.append((1, count))
        self._builder.equal(terms, run.times)

    def _ends(self, number: int) -> None:
        """Steps into and out of a repeated run, one of each."""
        for outwards in (False, True):
            terms = []
            for device in range(self.devices):
                count = self._builder.column(0, 1, integer=True)
                inner, outer = (number, 0, device), (number + outwards, -1, device)
                source, target = (inner, outer) if outwards else (outer, inner)
                self._steps.append(WalkStep(source, target, count))
                terms.append((1, count))
            self._builder.equal(terms, 1)

    def _balance(self) -> None:
        """As many steps enter a node as leave it, but for the first and the last nodes."""
        flow: dict[Node, list[tuple[int, int]]] = defaultdict(list)
        for step in self._steps:
            flow[step.source].append((1, step.count))
            flow[step.target].append((-1, step.count))
        for (number, phase, _), terms in flow.items():
            if phase >= 0 or 0 < number < len(self.runs):
                self._builder.equal(terms, 0)

    def _room(self, capacity: Sequence[int]) -> None:
        for device, room in enumerate(capacity):
            sizes = [(s.column.memory_bytes[device], s.count) for s in self._steps if s.column]
            step = math.gcd(*(size for size, _ in sizes)) or 1
            self._builder.at_most([(size // step, count) for size, count in sizes], room // step)

    def _hang_together(self) -> None:
        """Rows for sets of devices in all runs that repeat; others are added when needed."""
        most = self.devices - 1 if self.devices <= _ALL_SUBSETS else _SUBSETS
        for number, run in enumerate(self.runs):
            if run.times == 1:
                continue
            for size in range(1, most + 1):
                for devices in combinations(range(self.devices), size):
                    phases = range(run.period)
                    self._connect({(number, p, device) for p in phases for device in devices})

    def _connect(self, nodes: set[Node]) -> None:
        """Steps inside a set of nodes need a step into it: inside <= most * into."""
        most = max(self.runs[number].period * self.runs[number].times for number, _, _ in nodes)
        inside = [s for s in self._steps if s.source in nodes and s.target in nodes]
        into = [s for s in self._steps if s.source not in nodes and s.target in nodes]
        terms = [(-1, s.count) for s in inside] + [(most, s.count) for s in into]
        self._builder.at_least(terms, 0)

    def _model(self) -> LinearModel:
        cost = {s.count: s.column.ticks // self.scale for s in self._steps if s.column}
        return self._builder.build_with(cost)

    def _counts(self, path: Sequence[Column]) -> dict[int, int]:
        """A way as counts; empty if a column of it is unknown here."""
        uses = {(s.source[0], s.source[1], s.column): s.count for s in self._steps if s.column}
        counts = dict.fromkeys((s.count for s in self._steps), 0)
        ends = {(s.source, s.target): s.count for s in self._steps if not s.column}
        for number, run in enumerate(self.runs if path else ()):
            last = run.first + run.period * run.times - 1
            for place in range(run.first, last + 1):
                phase = (place - run.first) % run.period if run.times > 1 else -1
                use = uses.get((number, phase, path[place]))
                if use is None:
                    return {}
                counts[use] += 1
            if run.times > 1:
                entry, end = path[run.first].entry, path[last].exit
                counts[ends[(number, -1, entry), (number, 0, entry)]] = 1
                counts[ends[(number, 0, end), (number + 1, -1, end)]] = 1
        return counts if path else {}

    def _path(self, values: FloatArray) -> list[Column] | None:
        """The counts as a way; None if they fall apart, and then a row forbids that."""
        import networkx as nx  # Takes as long as a small problem does.

        walk: nx.MultiDiGraph[Node] = nx.MultiDiGraph()
        for step in self._steps:
            for _ in range(round(float(values[step.count]))):
                walk.add_edge(step.source, step.target, column=step.column)
        begin = next(node for node in walk if node[:2] == (0, -1))
        parts = nx.weakly_connected_components(walk)
        if apart := next((part for part in parts if begin not in part), None):
            self._connect(apart)
            return None
        taken = nx.eulerian_path(walk, begin, keys=True)
        columns = (walk.edges[edge]["column"] for edge in taken)
        return [column for column in columns if column is not None]

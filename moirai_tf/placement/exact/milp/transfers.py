"""Communication rows of the model: when every tensor takes its way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moirai_tf.placement.bound.linear_program import ModelBuilder
from moirai_tf.placement.evaluate.channels import channels_of
from moirai_tf.placement.exact.milp.items import Item
from moirai_tf.placement.exact.milp.reach import implied
from moirai_tf.placement.exact.milp.routes import Route, Routes
from moirai_tf.placement.problem import NONE, BoolArray, IntArray, Problem


@dataclass(frozen=True)
class Core:
    """The columns every part of the model refers to, and the windows of the operators."""

    problem: Problem
    builder: ModelBuilder
    horizon_ns: int
    heads: IntArray
    tails: IntArray
    reach: BoolArray
    makespan: int
    starts: tuple[int, ...]
    """Start column of each operator."""
    choices: tuple[dict[int, int], ...]
    """Column of each device that a unit may be on."""

    def choice(self, operator: int) -> dict[int, int]:
        """Columns of an operator's devices."""
        return self.choices[self.problem.unit_of[operator]]

    def duration(self, operator: int) -> tuple[tuple[int, int], ...]:
        """Terms that add up to an operator's time."""
        row = self.problem.compute_ns[operator]
        return tuple((int(row[device]), column) for device, column in self.choice(operator).items())

    def earliest_finish(self, operator: int) -> int:
        """No schedule finishes the operator earlier."""
        finish = self.heads[operator] + self.problem.compute_ns[operator]
        return int(finish[list(self.choice(operator))].min())

    def latest_start(self, operator: int) -> int:
        """A schedule within the horizon starts the operator by then."""
        return self.horizon_ns - int(self.tails[operator].min())


@dataclass(frozen=True)
class Carrier:
    """A transfer as what it moves and as an item."""

    route: Route
    item: Item


class Communication:
    """Adds the rows of rule 4 and the transfers of rule 5."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.routes = Routes(core.problem, core.builder, core.choices)

    def add(self) -> list[Carrier]:
        """All rows of all tensors; the carriers, which congestion may still order."""
        return [
            carrier
            for tensor in range(len(self.core.problem.tensors))
            for carrier in self._tensor(tensor)
        ]

    def _tensor(self, tensor: int) -> Iterator[Carrier]:
        problem = self.core.problem
        value, remote = problem.tensors[tensor], self.routes.remote(tensor)
        for consumer in value.consumers:
            if consumer in remote:
                self._wait(tensor, consumer)
            elif not implied(problem, self.core.reach, value.producer, consumer):
                self._after(value.producer, consumer, ())
        if problem.congestion != NONE:
            yield from map(self._carrier, self.routes.of(tensor))

    def _after(self, producer: int, consumer: int, more: tuple[tuple[int, int], ...]) -> None:
        """`S_consumer >= S_producer + duration_producer + more`."""
        core = self.core
        elapsed = (*core.duration(producer), *more)
        terms = [(1, core.starts[consumer]), (-1, core.starts[producer])]
        core.builder.at_least([*terms, *((-ns, column) for ns, column in elapsed)], 0)

    def _wait(self, tensor: int, consumer: int) -> None:
        """The consumer waits for the way its tensor takes, congestion apart."""
        producer = self.core.problem.tensors[tensor].producer
        table = self.core.problem.time_ns[tensor]
        ways = self.routes.between(producer, consumer)
        more = tuple((int(table[way]), column) for way, column in ways.items())
        self._after(producer, consumer, more)

    def _carrier(self, route: Route) -> Carrier:
        """A transfer, which its consumers wait for.

        One to a single target is for the consumers that are there:
        `S_consumer >= S_transfer + duration - M (1 - x[consumer, target])`.
        """
        core, item = self.core, self._item(route)
        for consumer in route.consumers:
            terms = [(1, core.starts[consumer]), (-1, item.start)]
            terms += [(-ns, column) for ns, column in item.duration]
            if route.target is None:
                core.builder.at_least(terms, 0)
                continue
            big = item.latest_finish - int(core.heads[consumer].min())
            here = core.choice(consumer)[route.target]
            core.builder.at_least([*terms, (-big, here)], -big)
        return Carrier(route, item)

    def _item(self, route: Route) -> Item:
        """A transfer that starts when its producer has finished."""
        core = self.core
        producer = core.problem.tensors[route.tensor].producer
        table = core.problem.time_ns[route.tensor]
        earliest = core.earliest_finish(producer)
        latest = max(core.latest_start(consumer) for consumer in route.consumers)
        start = core.builder.column(earliest, latest, unit=core.builder.unit[core.makespan])
        moving = {way: column for way, column in route.ways.items() if table[way]}
        uses: dict[int, tuple[int, ...]] = {}
        for (source, target), column in moving.items():
            for resource in channels_of(core.problem, source, target):
                uses[resource] = (*uses.get(resource, ()), column)
        terms = [(1, start), (-1, core.starts[producer])]
        core.builder.at_least([*terms, *((-ns, c) for ns, c in core.duration(producer))], 0)
        return Item(
            start=start,
            duration=tuple((int(table[way]), column) for way, column in moving.items()),
            uses=uses,
            earliest_start=earliest,
            earliest_finish=earliest,
            latest_start=latest,
            latest_finish=latest,
        )

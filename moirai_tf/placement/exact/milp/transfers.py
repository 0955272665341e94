"""Which way every tensor takes and when: transfers as columns and rows, and orders on ports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from moirai_tf.placement.bound.linear_program import ModelBuilder
from moirai_tf.placement.bound.packing import Choices
from moirai_tf.placement.evaluate.channels import channels_of
from moirai_tf.placement.problem import NONE, PER_EDGE, BoolArray, IntArray, Problem

Ways = dict[tuple[int, int], int]
"""(source, target) -> the column that is 1 where that way is taken."""


@dataclass(frozen=True)
class Route:
    """A transfer that may or may not take place, over one of several ways."""

    tensor: int
    consumers: tuple[int, ...]
    target: int | None
    """Its only target, where a tensor has one route per device."""
    ways: Ways


class Routes:
    """Adds ways as they are asked for.

    `y[u, v, k, l]` is 1 where unit u is on k and unit v on l; `sum_l y = x[u, k]` and
    `sum_k y = x[v, l]` tie it to the choices, so it needs no integrality.
    """

    def __init__(self, problem: Problem, builder: ModelBuilder, choices: Choices) -> None:
        self.problem, self.builder, self.choices = problem, builder, choices
        self._ways: dict[tuple[int, int], Ways] = {}

    def choice(self, operator: int) -> dict[int, int]:
        """Columns of an operator's devices."""
        return self.choices[self.problem.unit_of[operator]]

    def remote(self, tensor: int) -> list[int]:
        """Consumers to which moving a tensor may take time."""
        problem = self.problem
        producer, table = problem.tensors[tensor].producer, problem.time_ns[tensor]
        return [
            consumer
            for consumer in problem.tensors[tensor].consumers
            if problem.unit_of[producer] != problem.unit_of[consumer]
            and any(table[k, m] for k in self.choice(producer) for m in self.choice(consumer))
        ]

    def between(self, producer: int, consumer: int) -> Ways:
        """The y columns between two operators' units."""
        unit_of = self.problem.unit_of
        key = (unit_of[producer], unit_of[consumer])
        if key in self._ways:
            return self._ways[key]
        sources, targets = self.choice(producer), self.choice(consumer)
        ways = {(k, m): self.builder.column(0, 1) for k in sources for m in targets}
        for k, column in sources.items():
            self.builder.equal([*((1, ways[k, m]) for m in targets), (-1, column)], 0)
        for m, column in targets.items():
            self.builder.equal([*((1, ways[k, m]) for k in sources), (-1, column)], 0)
        self._ways[key] = ways
        return ways

    def of(self, tensor: int) -> Iterator[Route]:
        """The transfers of a tensor: one for each consumer, or one for each target device.

        In mode `per_tensor` consumers of a single unit need no more than one route.
        """
        problem, remote = self.problem, self.remote(tensor)
        producer = problem.tensors[tensor].producer
        if problem.transfers == PER_EDGE:
            for consumer in remote:
                yield Route(tensor, (consumer,), None, self.between(producer, consumer))
        elif len({problem.unit_of[consumer] for consumer in remote}) == 1:
            yield Route(tensor, tuple(remote), None, self.between(producer, remote[0]))
        elif remote:
            targets = {device for j in remote for device in self.choice(j)}
            yield from (self._shared(tensor, remote, target) for target in sorted(targets))

    def _shared(self, tensor: int, consumers: list[int], target: int) -> Route:
        """One transfer to device `target` for all consumers there.

        `v[k] >= y[producer, consumer, k, target]` for each consumer, and `v[k] <= x[producer, k]`.
        """
        producer = self.problem.tensors[tensor].producer
        here = tuple(consumer for consumer in consumers if target in self.choice(consumer))
        ways = {(k, target): self.builder.column(0, 1) for k in self.choice(producer)}
        for consumer in here:
            own = self.between(producer, consumer)
            for way, column in ways.items():
                self.builder.at_least([(1, column), (-1, own[way])], 0)
        for (k, _), column in ways.items():
            self.builder.at_most([(1, column), (-1, self.choice(producer)[k])], 0)
        return Route(tensor, here, target, ways)


@dataclass(frozen=True)
class Item:
    """Something with a start column, a duration and resources it may occupy."""

    start: int
    duration: tuple[tuple[int, int], ...]
    """Terms (ns, column) that add up to it."""
    uses: Mapping[int, tuple[int, ...]]
    """Columns whose sum, 0 or 1, says whether the resource is occupied."""
    earliest_start: int
    earliest_finish: int
    latest_start: int
    latest_finish: int


def add_orders(
    builder: ModelBuilder, items: list[Item], pairs: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], int]:
    """Rows that keep items with a common resource apart.

    For a pair (a, b), with binaries d_ab and d_ba:

        S_b >= S_a + duration_a - M_ab (1 - d_ab)      M_ab = latest finish of a - earliest of b
        d_ab + d_ba >= use_ar + use_br - 1             for each resource r of both

    and the same for (b, a). Times alone may decide: a pair whose windows are apart needs nothing,
    and an order that the windows exclude gets no binary.

    Returns:
      The column of each order d_ab.
    """
    orders: dict[tuple[int, int], int] = {}
    for first, second in pairs:
        a, b = items[first], items[second]
        shared = [resource for resource in a.uses if resource in b.uses]
        apart = a.latest_finish <= b.earliest_start or b.latest_finish <= a.earliest_start
        if not shared or apart:
            continue
        terms = []
        for before, after, key in ((a, b, (first, second)), (b, a, (second, first))):
            if before.earliest_finish <= after.latest_start:
                orders[key] = _order(builder, before, after)
                terms.append((1, orders[key]))
        for resource in shared:
            used = [*a.uses[resource], *b.uses[resource]]
            builder.at_least([*terms, *((-1, column) for column in used)], -1)
    return orders


def _order(builder: ModelBuilder, before: Item, after: Item) -> int:
    """The binary "before ends before after starts", and its row."""
    order = builder.column(0, 1, integer=True)
    big = before.latest_finish - after.earliest_start
    wait = [(1, after.start), (-1, before.start), *((-ns, c) for ns, c in before.duration)]
    builder.at_least([*wait, (-big, order)], -big)
    return order


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
    choices: Choices

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


def implied(problem: Problem, reach: BoolArray, producer: int, consumer: int) -> bool:
    """Whether another path makes the consumer wait for the producer.

    An edge on which nothing can ever be transferred may then be dropped.
    """
    others = {j for tensor in problem.outgoing[producer] for j in problem.tensors[tensor].consumers}
    return any(bool(reach[other, consumer]) for other in others - {consumer})

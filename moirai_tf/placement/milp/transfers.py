"""Communication rows of the model: which way every tensor takes, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moirai_tf.placement.linear import ModelBuilder
from moirai_tf.placement.milp.items import Item, Resource
from moirai_tf.placement.milp.reach import implied
from moirai_tf.placement.problem import LINK, NONE, PER_EDGE, PORT, BoolArray, IntArray, Problem


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
    """A transfer that may or may not take place, as an item and as what it moves."""

    tensor: int
    consumers: tuple[int, ...]
    target: int | None
    """Its only device, where a tensor has one carrier per device."""
    item: Item


class Communication:
    """Adds the rows of rule 4 and the transfers of rule 5.

    `y[u, v, k, l]` is 1 where unit u is on k and unit v on l; `sum_l y = x[u, k]` and
    `sum_k y = x[v, l]` tie it to the choices, so it needs no integrality.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self._ways: dict[tuple[int, int], dict[tuple[int, int], int]] = {}

    def add(self) -> list[Carrier]:
        """All rows of all tensors; the carriers, which congestion may still order."""
        return [
            carrier
            for tensor in range(len(self.core.problem.tensors))
            for carrier in self._tensor(tensor)
        ]

    def _tensor(self, tensor: int) -> Iterator[Carrier]:
        problem = self.core.problem
        value = problem.tensors[tensor]
        remote = [j for j in value.consumers if self._costs(tensor, j)]
        for consumer in value.consumers:
            if consumer in remote:
                self._wait(tensor, consumer)
            elif not implied(problem, self.core.reach, value.producer, consumer):
                self._after(value.producer, consumer, ())
        if problem.congestion == NONE:
            return
        if problem.transfers == PER_EDGE:
            yield from (self._carrier(tensor, (consumer,)) for consumer in remote)
        elif len({problem.unit_of[consumer] for consumer in remote}) == 1:
            yield self._carrier(tensor, tuple(remote))
        elif remote:
            targets = {device for j in remote for device in self.core.choice(j)}
            yield from (self._shared(tensor, remote, target) for target in sorted(targets))

    def _costs(self, tensor: int, consumer: int) -> bool:
        """Whether moving the tensor to a consumer can ever take time."""
        problem, producer = self.core.problem, self.core.problem.tensors[tensor].producer
        if problem.unit_of[producer] == problem.unit_of[consumer]:
            return False
        table = problem.time_ns[tensor]
        return any(
            table[k, m] for k in self.core.choice(producer) for m in self.core.choice(consumer)
        )

    def _ways_of(self, producer: int, consumer: int) -> dict[tuple[int, int], int]:
        """The y columns between two operators' units."""
        core, unit_of = self.core, self.core.problem.unit_of
        key = (unit_of[producer], unit_of[consumer])
        if key in self._ways:
            return self._ways[key]
        sources, targets = core.choice(producer), core.choice(consumer)
        ways = {(k, m): core.builder.column(0, 1) for k in sources for m in targets}
        for k, column in sources.items():
            core.builder.equal([*((1, ways[k, m]) for m in targets), (-1, column)], 0)
        for m, column in targets.items():
            core.builder.equal([*((1, ways[k, m]) for k in sources), (-1, column)], 0)
        self._ways[key] = ways
        return ways

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
        ways = self._ways_of(producer, consumer)
        more = tuple((int(table[way]), column) for way, column in ways.items())
        self._after(producer, consumer, more)

    def _carrier(self, tensor: int, consumers: tuple[int, ...]) -> Carrier:
        """One transfer to wherever the consumers, all of one unit, are."""
        core = self.core
        producer = core.problem.tensors[tensor].producer
        item = self._item(tensor, consumers, self._ways_of(producer, consumers[0]))
        for consumer in consumers:
            terms = [(1, core.starts[consumer]), (-1, item.start)]
            core.builder.at_least([*terms, *((-ns, column) for ns, column in item.duration)], 0)
        return Carrier(tensor, consumers, None, item)

    def _shared(self, tensor: int, consumers: list[int], target: int) -> Carrier:
        """One transfer to device `target` for all consumers there.

        `v[k] >= y[producer, consumer, k, target]` for each consumer, and a consumer waits only
        if it is there: `S_consumer >= S_transfer + duration - M (1 - x[consumer, target])`.
        """
        core = self.core
        producer = core.problem.tensors[tensor].producer
        here = tuple(consumer for consumer in consumers if target in core.choice(consumer))
        ways = {(k, target): core.builder.column(0, 1) for k in core.choice(producer)}
        for consumer in here:
            own = self._ways_of(producer, consumer)
            for way, column in ways.items():
                core.builder.at_least([(1, column), (-1, own[way])], 0)
        for (k, _), column in ways.items():
            core.builder.at_most([(1, column), (-1, core.choice(producer)[k])], 0)
        item = self._item(tensor, here, ways)
        for consumer in here:
            big = item.latest_finish - int(core.heads[consumer].min())
            terms = [(1, core.starts[consumer]), (-1, item.start)]
            terms += [(-ns, column) for ns, column in item.duration]
            core.builder.at_least([*terms, (-big, core.choice(consumer)[target])], -big)
        return Carrier(tensor, here, target, item)

    def _item(
        self, tensor: int, consumers: tuple[int, ...], ways: dict[tuple[int, int], int]
    ) -> Item:
        """A transfer that starts when its producer has finished."""
        core = self.core
        producer, table = core.problem.tensors[tensor].producer, core.problem.time_ns[tensor]
        earliest = core.earliest_finish(producer)
        latest = max(core.latest_start(consumer) for consumer in consumers)
        start = core.builder.column(earliest, latest, unit=core.builder.unit[core.makespan])
        moving = {way: column for way, column in ways.items() if table[way]}
        uses: dict[Resource, tuple[int, ...]] = {}
        for (source, target), column in moving.items():
            for resource in _occupied(core.problem.congestion, source, target):
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


def _occupied(congestion: str, source: int, target: int) -> tuple[Resource, ...]:
    if congestion == PORT:
        return (("send", source, 0), ("receive", target, 0))
    if congestion == LINK:
        return (("link", source, target),)
    return ()

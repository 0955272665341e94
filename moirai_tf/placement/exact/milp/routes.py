"""Which way every tensor takes: the columns and rows that tie transfers to devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moirai_tf.placement.bound.linear_program import ModelBuilder
from moirai_tf.placement.problem import PER_EDGE, Problem

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

    def __init__(
        self, problem: Problem, builder: ModelBuilder, choices: tuple[dict[int, int], ...]
    ) -> None:
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

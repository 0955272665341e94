"""What a tensor holds of a batch, rows or their number, and an operator as rules see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tensorflow.python.framework import op_def_registry

from moirai_tf.graph.graph import Graph, Operator
from moirai_tf.model.op_types import attr_of
from moirai_tf.split.constants import constant_of

Shapes = tuple[tuple[int, ...], tuple[int, ...]]
"""Of one tensor, at both batch sizes."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor of rows: dimension `axis` has `outer` x rows x `inner` elements, in that order."""

    axis: int = 0
    outer: int = 1
    inner: int = 1

    def at(self, axis: int) -> Rows:
        """The same in another dimension."""
        return Rows(axis, self.outer, self.inner)


@dataclass(frozen=True, slots=True)
class Same:
    """A tensor that no row decides, nor how many there are."""


@dataclass(frozen=True, slots=True)
class Size:
    """Integers that the number of rows decides, and nothing else."""

    grows: tuple[bool, ...]
    """Whether it decides that element, in row-major order."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of tensors that are all alike."""

    state: Rows | Same | None = None
    """Of every element; None while nothing was put in."""
    shapes: Shapes | None = None
    """Of every element, at both batch sizes."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor for which rows were mixed."""


SAME, WHOLE = Same(), Whole()
State = Rows | Same | Size | Listed | Whole


class Mixed(Exception):  # noqa: N818  it is no error that a model mixes rows
    """What an operator computes for a row depends on others; the text says how."""


@dataclass(frozen=True)
class View:
    """One operator as a rule sees it: shapes at two batch sizes, and what its inputs are."""

    graphs: tuple[Graph, Graph]
    sizes: tuple[int, int]
    index: int
    states: tuple[State, ...]
    """Of every input."""

    @cached_property
    def operator(self) -> Operator:
        """The operator, as it is at the first batch size."""
        return self.graphs[0].operators[self.index]

    @cached_property
    def rows(self) -> list[tuple[int, Rows]]:
        """The inputs that are made of rows, by position."""
        return [(k, state) for k, state in enumerate(self.states) if isinstance(state, Rows)]

    def only(self, *positions: int) -> Rows:
        """The rows of these inputs; no other input may have any."""
        for k, _ in self.rows:
            if k not in positions:
                raise Mixed(f"its input {k} is another one for every row")
        return agreed([rows for _, rows in self.rows])

    def require_alike(self, position: int, axis_from_end: int) -> None:
        """Refuses an input that has an element for every place in the batch, whatever the row."""
        own = self.input_shapes(position)[0]
        if -axis_from_end <= len(own) and own[axis_from_end] != 1:
            raise Mixed(f"its input {position} has an element for every place in the batch")

    def attr(self, name: str) -> Any:
        """An attribute; files leave out those that have the op's default."""
        node = self.operator.node
        if name in node.attr or op_def_registry.get(node.op) is None:
            return attr_of(node, name)
        described = {a.name: a for a in op_def_registry.get(node.op).attr}
        return described[name].default_value if name in described else attr_of(node, name)

    def input_shapes(self, position: int) -> Shapes:
        """The shape of an input at both batch sizes."""
        first, second = (g.spec(g.operators[self.index].inputs[position]) for g in self.graphs)
        return _known(first.shape), _known(second.shape)

    def output_shapes(self, port: int = 0) -> Shapes:
        """The shape of an output at both batch sizes."""
        first, second = self.static_shapes(port)
        return _known(first), _known(second)

    def static_shapes(self, port: int = 0) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """The same, with -1 for what is not known."""
        first, second = (g.operators[self.index].outputs[port] for g in self.graphs)
        return first.shape, second.shape

    def rank(self, position: int) -> int:
        """The rank of an input."""
        return len(self.input_shapes(position)[0])

    def constant(self, position: int) -> np.ndarray[Any, Any]:
        """The value of an input that is a constant.

        Raises:
          Mixed: it is none, so what the operator does is not known.
        """
        value = constant_of(self.graphs[0], self.operator.inputs[position])
        if value is None:
            raise Mixed(f"its input {position} is no constant")
        return value

    def grows(self, shapes: tuple[Sequence[int], Sequence[int]]) -> list[int]:
        """The dimensions that grow with the batch."""
        return [a for a, (m, n) in enumerate(zip(*shapes, strict=True)) if m != n]

    def check(self, port: int, state: State) -> None:
        """Compares what a rule says of an output with its shapes.

        Raises:
          Mixed: another dimension grows with the batch than the one that holds the rows.
        """
        shapes = self.output_shapes(port)
        if self.grows(shapes) != ([state.axis] if isinstance(state, Rows) else []):
            raise Mixed(f"what it gives has the shape {list(shapes[0])} at {self.sizes[0]} rows, "
                        f"{list(shapes[1])} at {self.sizes[1]}")  # fmt: skip
        if isinstance(state, Rows):
            for shape, size in zip(shapes, self.sizes, strict=True):
                if shape[state.axis] != state.outer * size * state.inner:
                    raise Mixed(f"its shape is {list(shape)} at {size} rows")


def agreed(found: Iterable[Rows]) -> Rows:
    """The place of the rows in all of them."""
    different = set(found)
    if len(different) != 1:
        raise Mixed("its inputs have their rows in different places")
    return different.pop()


def not_along(rows: Rows, axes: Iterable[int], rank: int) -> Rows:
    """The rows, which are in none of these dimensions."""
    if rows.axis in {axis % rank for axis in axes}:
        raise Mixed("it works along the rows")
    return rows


Rule = Callable[[View], Sequence[State]]


def _known(shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if shape is None or min(shape, default=0) < 0:
        raise Mixed("a shape is not known before it runs")
    return shape

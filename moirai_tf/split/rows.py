"""Which operators of a graph treat the rows of a batch independently: a dataflow analysis.

The graph is read for two batch sizes; a dimension that grows with the batch holds it. From the
inputs on, every tensor is

- the same, whatever the rows are;
- made of rows: it holds one part of every row, which that row alone decides;
- a size: integers that only the number of rows decides, such as shapes;
- none of these. Then the operator mixes rows, and the batch must not be divided before it.

What an operator makes of them is said by its rule (`moirai_tf.split.rules`); an operator without a
rule may do anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tensorflow.python.framework import op_def_registry

from moirai_tf.graph.graph import RESULT, Graph, Operator
from moirai_tf.model.op_types import attr_of
from moirai_tf.split.constants import constant_of


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


SAME = Same()
State = Rows | Same | Size


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

    def input_shapes(self, position: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape of an input at both batch sizes."""
        first, second = (g.spec(g.operators[self.index].inputs[position]) for g in self.graphs)
        return _known(first.shape), _known(second.shape)

    def output_shapes(self, port: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape of an output at both batch sizes."""
        first, second = (g.operators[self.index].outputs[port] for g in self.graphs)
        return _known(first.shape), _known(second.shape)

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


@dataclass(frozen=True)
class Separation:
    """What was found about a graph."""

    inputs: Mapping[str, bool]
    """Signature input -> whether it is divided; others go to every share."""
    outputs: Mapping[str, bool]
    """Signature output -> whether it is joined; others are taken from one share."""
    obstacle: str = ""
    """The operator that forbids it, and why; empty if the batch may be divided."""

    @property
    def separable(self) -> bool:
        """Whether the batch may be divided."""
        return not self.obstacle


def separation(graphs: tuple[Graph, Graph], sizes: tuple[int, int]) -> Separation:
    """Finds whether a signature treats the rows of its batch independently.

    Args:
      graphs: the signature's flat graph at two batch sizes.
      sizes: these sizes; they differ.
    """
    first, second = graphs
    divided = {name: _is_batched(graphs, sizes, i) for name, i in first.inputs.items()}
    if not any(divided.values()):
        return Separation(divided, {}, "no input has a first dimension of any size")
    if [o.name for o in first.operators] != [o.name for o in second.operators]:
        return Separation(divided, {}, "the graph is another one at another batch size")
    try:
        states = _states(graphs, sizes, {first.inputs[n] for n, is_ in divided.items() if is_})
        joined = {n: _is_joined(graphs, states, i) for n, i in first.outputs.items()}
    except Mixed as mixed:
        return Separation(divided, {}, str(mixed))
    if not any(joined.values()):
        return Separation(divided, joined, "no output has rows")
    return Separation(divided, joined)


def _states(
    graphs: tuple[Graph, Graph], sizes: tuple[int, int], batched: set[int]
) -> list[tuple[State, ...]]:
    from moirai_tf.split.rules import rule_of

    found: list[tuple[State, ...]] = []
    for i, operator in enumerate(graphs[0].operators):
        if operator.op == RESULT:
            found.append(())
            continue
        if i in batched:
            found.append((Rows(),))
            continue
        states = tuple(found[ref.producer][ref.port] for ref in operator.inputs)
        view = View(graphs, sizes, i, states)
        try:
            made = tuple(rule_of(operator)(view))
            if any(state != SAME for state in (*states, *made)):
                for port, state in enumerate(made):
                    view.check(port, state)
        except Mixed as mixed:
            raise Mixed(f"operator {operator.name!r} ({operator.op}): {mixed}") from mixed
        found.append(made)
    return found


def _is_batched(graphs: tuple[Graph, Graph], sizes: tuple[int, int], index: int) -> bool:
    shapes = (graph.operators[index].outputs[0].shape for graph in graphs)
    return all(s and s[0] == size for s, size in zip(shapes, sizes, strict=True))


def _is_joined(graphs: tuple[Graph, Graph], states: Sequence[Sequence[State]], index: int) -> bool:
    (ref,) = graphs[0].operators[index].inputs
    state = states[ref.producer][ref.port]
    name = graphs[0].operators[index].name.removeprefix("_retval_")
    if isinstance(state, Size):
        raise Mixed(f"output {name!r} is made of the number of rows")
    if isinstance(state, Rows) and state != Rows():
        raise Mixed(f"output {name!r} does not have the rows in its first dimension alone")
    return state == Rows()


def _known(shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if shape is None or min(shape, default=0) < 0:
        raise Mixed("a shape is not known before it runs")
    return shape

"""Writes the function that divides a batch, calls a body for every share, and joins the outputs.

For n rows and planned shares that add up to T, share i begins at row n * (rows before it) // T. A
share that gets no row computes the nearest one again, and gives nothing of it to the outputs: there
are operators that cannot run on nothing. Without rows every share has none, as before.

All of it but the calls asks to be on one device: what crosses is shares, and no numbers of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from tensorflow.core.framework import node_def_pb2, types_pb2
from tensorflow.python.framework import tensor_util

from moirai_tf.graph.graph import CALL_OPS

SCOPE = "moirai_split"


@dataclass(frozen=True)
class Argument:
    """An argument of the function."""

    name: str
    dtype: int
    """TensorFlow's `DataType`."""
    divided: bool = False
    mirrors: tuple[str, ...] = ()
    """The arguments that take its place in the shares behind the first; none if it serves all."""


@dataclass(frozen=True)
class DividingBody:
    """The inside of the function."""

    nodes: tuple[Any, ...]
    outputs: tuple[str, ...]
    """The tensor of each output."""
    calls: tuple[str, ...]
    """The nodes that call the body of a share."""


@dataclass(frozen=True)
class Called:
    """A function that the body calls."""

    function: str
    types: tuple[int, ...]
    """TensorFlow's `DataType` of every output."""


@dataclass(frozen=True)
class Rest:
    """What is not divided: it runs once, with what the shares gave as further arguments."""

    called: Called
    given: tuple[int, ...]
    """The outputs of a share, joined, that it takes."""
    outputs: tuple[tuple[bool, int], ...]
    """For each output of the function: whether it is one of the rest, and which one, or which of a
    share."""


def dividing_body(
    arguments: Sequence[Argument],
    joined: Sequence[bool],
    call: Any,
    share: Called,
    shares: Sequence[int],
    rest: Rest | None = None,
) -> DividingBody:
    """What the function consists of.

    Args:
      arguments: all that the function takes, in its order.
      joined: for each output of a share, whether it has rows.
      call: the node that calls the function; the shares are called with its attributes.
      share: the function to call for each share.
      shares: planned rows of each.
      rest: what comes behind the shares.
    """
    writer = _Writer()
    divided = [a for a in arguments if a.divided]
    rows = writer.rows(divided[0])
    pieces, kept = _pieces(writer, divided, rows, shares)
    calls = []
    for i in range(len(shares)):
        given = [pieces[a.name][i] if a.divided else ((a.name, *a.mirrors)[i if a.mirrors else 0])
                 for a in arguments]  # fmt: skip
        calls.append(writer.call(f"share_{i}", call, share, given))
    made = [
        writer.joined(k, share.types[k], calls, kept) if has_rows else f"{calls[0]}:output:{k}"
        for k, has_rows in enumerate(joined)
    ]
    if rest is None:
        return DividingBody(tuple(writer.nodes), tuple(made), tuple(calls))
    more = [made[k] for k in rest.given]
    types = [share.types[k] for k in rest.given]
    last = writer.call("rest", call, rest.called, [*(a.name for a in arguments), *more], types)
    outputs = (f"{last}:output:{k}" if of_rest else made[k] for of_rest, k in rest.outputs)
    return DividingBody(tuple(writer.nodes), tuple(outputs), (*calls, last))


def _pieces(
    writer: _Writer, divided: Sequence[Argument], rows: str, shares: Sequence[int]
) -> tuple[Mapping[str, list[str]], list[str]]:
    """Every share of every divided argument, and how many rows of its outputs each share gives."""
    one, none = writer.constant("one", 1), writer.constant("none", 0)
    last = writer.op("Sub", "last", rows, one)
    total = writer.constant("total", sum(shares))
    bounds = [none]
    for i, before in enumerate(list(accumulate(shares))[:-1], start=1):
        ahead = writer.op("Mul", f"ahead_{i}", rows, writer.constant(f"before_{i}", before))
        bounds.append(writer.op("FloorDiv", f"bound_{i}", ahead, total))
    bounds.append(rows)
    alike = {a.name: writer.alike(a, rows, first=a is divided[0]) for a in divided}
    pieces: dict[str, list[str]] = {a.name: [] for a in divided}
    kept = []
    for i in range(len(shares)):
        kept.append(writer.op("Sub", f"kept_{i}", bounds[i + 1], bounds[i]))
        some = writer.op("Maximum", f"some_{i}", kept[i], one)
        size = writer.op("Minimum", f"size_{i}", some, rows)
        known = writer.op("Minimum", f"known_{i}", bounds[i], last)
        start = writer.op("Maximum", f"start_{i}", known, none)
        end = writer.op("AddV2", f"end_{i}", start, size)
        ends = writer.vector(f"from_{i}", start), writer.vector(f"to_{i}", end)
        for a in divided:
            name = f"input/{a.name}/share_{i}"
            pieces[a.name].append(writer.part(name, alike[a.name], a.dtype, *ends))
    return pieces, kept


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self._int = types_pb2.DT_INT32

    def rows(self, argument: Argument) -> str:
        """How many rows an argument has."""
        shape = self._shape(argument)
        first, second = self.constant("zero", [0]), self.constant("first", [1])
        return self._slice("rows", shape, self._int, first, second, shrink=True)

    def alike(self, argument: Argument, rows: str, *, first: bool) -> str:
        """An argument that must have as many rows as the first one; TensorFlow refuses others."""
        if first:
            return argument.name
        scope = f"input/{argument.name}"
        second, end = self.constant(f"{scope}/one", [1]), self.constant(f"{scope}/end", [0])
        rest = self._slice(
            f"{scope}/rest", self._shape(argument), self._int, second, end, to_end=True
        )
        node = self._node("ConcatV2", f"{scope}/shape_of_rows")
        axis = self.constant(f"{scope}/axis", 0)
        node.input.extend([self.vector(f"{scope}/rows", rows), rest, axis])
        node.attr["N"].i, node.attr["T"].type, node.attr["Tidx"].type = 2, self._int, self._int
        shaped = self._node("Reshape", f"{scope}/of_rows")
        shaped.input.extend([argument.name, f"{node.name}:output:0"])
        shaped.attr["T"].type, shaped.attr["Tshape"].type = argument.dtype, self._int
        return f"{shaped.name}:output:0"

    def part(self, name: str, tensor: str, dtype: int, start: str, end: str) -> str:
        """Rows from one to another."""
        return self._slice(name, tensor, dtype, start, end)

    def joined(self, k: int, dtype: int, calls: Sequence[str], kept: Sequence[str]) -> str:
        """An output of all shares, without what was computed for nothing."""
        start = self.constant(f"output_{k}/zero", [0])
        parts = [
            self._slice(
                f"output_{k}/share_{i}", f"{call}:output:{k}", dtype, start,
                self.vector(f"output_{k}/kept_{i}", kept[i]),
            )
            for i, call in enumerate(calls)
        ]  # fmt: skip
        node = self._node("ConcatV2", f"output_{k}")
        node.input.extend([*parts, self.constant(f"output_{k}/axis", 0)])
        node.attr["N"].i, node.attr["T"].type = len(parts), dtype
        node.attr["Tidx"].type = self._int
        return f"{node.name}:output:0"

    def call(
        self, name: str, like: Any, called: Called, inputs: Sequence[str], more: Sequence[int] = ()
    ) -> str:
        """A call with the attributes of another call, and types of further arguments."""
        node = self._node(like.op, name)
        node.input.extend(inputs)
        for key, value in like.attr.items():
            if key not in ("_output_shapes", "_has_manual_control_dependencies"):
                node.attr[key].CopyFrom(value)
        node.attr["f"].func.name = called.function
        node.attr["Tin"].list.type.extend(more)
        del node.attr["Tout"].list.type[:]
        node.attr["Tout"].list.type.extend(called.types)
        return str(node.name)

    def op(self, op: str, name: str, *inputs: str) -> str:
        """An operator on integers."""
        node = self._node(op, name)
        node.input.extend(inputs)
        node.attr["T"].type = self._int
        return f"{node.name}:z:0"

    def vector(self, name: str, scalar: str) -> str:
        """A scalar as a vector of one element."""
        node = self._node("Pack", name)
        node.input.append(scalar)
        node.attr["T"].type, node.attr["N"].i, node.attr["axis"].i = self._int, 1, 0
        return f"{node.name}:output:0"

    def constant(self, name: str, value: int | Sequence[int]) -> str:
        """An integer, or a vector of them."""
        node = self._node("Const", name)
        node.attr["dtype"].type = self._int
        made = tensor_util.make_tensor_proto(np.asarray(value, np.int32))
        node.attr["value"].tensor.CopyFrom(made)
        return f"{node.name}:output:0"

    def _shape(self, argument: Argument) -> str:
        node = self._node("Shape", f"input/{argument.name}/shape")
        node.input.append(argument.name)
        node.attr["T"].type, node.attr["out_type"].type = argument.dtype, self._int
        return f"{node.name}:output:0"

    def _slice(
        self, name: str, tensor: str, dtype: int, start: str, end: str,
        *, shrink: bool = False, to_end: bool = False,
    ) -> str:  # fmt: skip
        node = self._node("StridedSlice", name)
        node.input.extend([tensor, start, end, self.constant(f"{name}/stride", [1])])
        node.attr["T"].type, node.attr["Index"].type = dtype, self._int
        for mask in ("begin_mask", "ellipsis_mask", "new_axis_mask"):
            node.attr[mask].i = 0
        node.attr["end_mask"].i = int(to_end)
        node.attr["shrink_axis_mask"].i = int(shrink)
        return f"{node.name}:output:0"

    def _node(self, op: str, name: str) -> Any:
        node = node_def_pb2.NodeDef(name=f"{SCOPE}/{name}", op=op)
        if self.nodes and op not in CALL_OPS:
            node.attr["_class"].list.s.append(f"loc:@{self.nodes[0].name}".encode())
        self.nodes.append(node)
        return node

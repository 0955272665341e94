"""Inputs to run a signature on: generated to suit what the graph does with them, or the user's."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.python.framework import dtypes, tensor_util

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph, Operator, TensorRef, TensorSpec
from moirai_tf.graph.shapes import enum_of
from moirai_tf.model.input_files import Array as Array
from moirai_tf.model.input_files import read_inputs

_INTEGERS_BELOW = 2
"""Range of integers that index nothing we can see: right for masks, segments and flags."""

_GENERATED_BYTES = 8
"""Of one number, before it gets the type of its input."""

_SAME_VALUES = frozenset({
    "Identity", "Cast", "Reshape", "ExpandDims", "Squeeze", "Transpose", "Pack", "ConcatV2",
    "StridedSlice", "Slice", "Split", "SplitV", "Unpack", "Tile", "BroadcastTo", "StopGradient",
    "EnsureShape", "Unique", "ReverseV2", "Bitcast", "Enter", "Switch", "Snapshot", "SelectV2",
})  # fmt: skip
"""Ops whose outputs hold values of their inputs, so that a range carries over."""

_LOOKUPS = {"ResourceGather": None, "GatherV2": 2, "Gather": None}
"""Ops that read rows of their input 0 at the indices in input 1; the input that holds the axis."""


def generate_inputs(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """One array per signature input; the same seed gives the same values.

    Numbers that index a table (an embedding) stay within it, inputs whose name says `mask` are
    ones, floating-point values are uniform in [0, 1), uint8 in [0, 256), other integers 0 or 1,
    booleans and strings random. An unknown dimension is 1.

    Raises:
      MoiraiError: an input has a type or a rank that cannot be generated.
    """
    return {
        name: _array(graph, name, index, np.random.default_rng([seed, zlib.crc32(name.encode())]))
        for name, index in graph.inputs.items()
    }


def load_inputs(graph: Graph, path: str | Path) -> dict[str, Array]:
    """The user's inputs from a file (see `read_inputs`).

    Raises:
      MoiraiError: the file cannot be read, or an array is missing, unknown, or of another type or
        shape than the signature's input.
    """
    specs = {name: graph.operators[index].outputs[0] for name, index in graph.inputs.items()}
    arrays = read_inputs(path, {name: enum_of(spec.dtype) for name, spec in specs.items()})
    for name, spec in specs.items():
        _check_shape(path, name, arrays[name].shape, spec)
    return arrays


def row_limit(graph: Graph, placeholder: int) -> int | None:
    """The smallest table that a placeholder's values index, in rows; None if they index none."""
    sizes = [
        size
        for reader, position in _readers_of_values(graph, placeholder)
        if (size := _rows(graph, graph.operators[reader], position)) is not None
    ]
    return min(sizes, default=None)


def _array(graph: Graph, name: str, index: int, rng: np.random.Generator) -> Array:
    spec = graph.operators[index].outputs[0]
    kind = dtypes.as_dtype(enum_of(spec.dtype))
    if spec.shape is None:
        raise _cannot_generate(name, f"has the unknown rank of {spec}")
    shape = tuple(abs(size) for size in spec.shape)
    if math.prod(shape) * _GENERATED_BYTES > _memory_bytes():
        raise _cannot_generate(name, f"has the shape of {spec}, more than this machine's memory")
    if kind == dtypes.string:
        return np.array([b"%d" % word for word in rng.integers(0, 100, shape).flat],
                        dtype=object).reshape(shape)  # fmt: skip
    if kind.is_quantized or not (kind.is_floating or kind.is_complex or kind.is_integer
                                 or kind.is_bool):  # fmt: skip
        raise _cannot_generate(name, f"has the type {spec.dtype}")
    return _numbers(graph, name, index, kind, shape, rng).astype(kind.as_numpy_dtype)


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _numbers(
    graph: Graph, name: str, index: int, kind: Any, shape: tuple[int, ...], rng: np.random.Generator
) -> Array:
    limit = row_limit(graph, index)
    if limit is not None and not kind.is_bool:
        return rng.integers(0, max(limit, 1), shape)
    if "mask" in name.lower():
        return np.ones(shape)
    if kind.is_integer or kind.is_bool:
        return rng.integers(0, 256 if kind == dtypes.uint8 else _INTEGERS_BELOW, shape)
    return rng.random(shape)


def _readers_of_values(graph: Graph, start: int) -> Iterator[tuple[int, int]]:
    """Every (operator, input position) that receives values of an operator's output unchanged."""
    pending, seen = [start], {start}
    while pending:
        source = pending.pop()
        for reader in graph.consumers[source]:
            operator = graph.operators[reader]
            for position, ref in enumerate(operator.inputs):
                if ref.producer == source:
                    yield reader, position
            if operator.op in _SAME_VALUES and reader not in seen:
                seen.add(reader)
                pending.append(reader)


def _rows(graph: Graph, operator: Operator, position: int) -> int | None:
    """Rows of the table that an operator looks its input 1 up in."""
    if operator.op not in _LOOKUPS or position != 1:
        return None
    axis_input = _LOOKUPS[operator.op]
    axis = 0 if axis_input is None else _constant(graph, operator.inputs[axis_input])
    shape = _table_shape(graph, operator.inputs[0])
    if axis is None or shape is None or not -len(shape) <= axis < len(shape):
        return None
    return shape[axis] if shape[axis] >= 0 else None


def _table_shape(graph: Graph, ref: TensorRef) -> tuple[int, ...] | None:
    """The shape of a tensor, or of the variable behind a resource."""
    holder = graph.operators[ref.producer]
    if graph.spec(ref).dtype != "resource":
        return graph.spec(ref).shape
    shape = holder.attr("shape")
    return None if shape is None else tuple(dim.size for dim in shape.shape.dim)


def _constant(graph: Graph, ref: TensorRef) -> int | None:
    value = graph.operators[ref.producer].attr("value")
    return None if value is None else int(tensor_util.MakeNdarray(value.tensor))


def _check_shape(path: str | Path, name: str, shape: tuple[int, ...], spec: TensorSpec) -> None:
    known = spec.shape
    if known is not None and (
        len(known) != len(shape)
        or any(want not in (-1, got) for want, got in zip(known, shape, strict=True))
    ):
        raise MoiraiError(
            f"{path}: {name!r} has the shape {list(shape)}, but the graph was imported for {spec}",
            why="costs and transfers are those of one set of shapes",
            fix="give inputs of that shape, or optimise with these inputs and without "
            "input_shapes, which win over them",
        )


def _cannot_generate(name: str, what: str) -> MoiraiError:
    return MoiraiError(
        f"input {name!r} {what}",
        why="no value can be made up for it",
        fix="give the inputs (--inputs) in a file that moirai_tf.save_inputs(path, "
        "{name: array, ...}) wrote",
    )

"""What is computed of the number of rows: which elements of a shape grow with the batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from moirai_tf.split.rows import SAME, Size, State, View

_Flags = np.ndarray[Any, np.dtype[np.bool_]]

_ELEMENTWISE = frozenset({
    "Add", "AddV2", "BroadcastArgs", "Cast", "FloorDiv", "Identity", "Mul", "Neg", "Sub",
})  # fmt: skip
OF_SIZES = _ELEMENTWISE | {
    "ConcatV2", "ExpandDims", "GatherV2", "Pack", "Prod", "Reshape", "Slice", "Squeeze",
    "StridedSlice", "Sum", "Unpack",
}  # fmt: skip
"""What may be computed of sizes. No minimum or choice: two batch sizes would not tell them."""


def sizes_of(view: View) -> Sequence[State]:
    """The elements of its outputs that grow with the batch, as its inputs' elements do."""
    flags = [
        np.reshape(state.grows, shape) if isinstance(state, Size) else np.zeros(shape, bool)
        for state, shape in (
            (state, view.input_shapes(k)[0]) for k, state in enumerate(view.states)
        )
    ]
    return [size_of(made.reshape(-1)) for made in _computed(view, flags)]


def _computed(view: View, flags: Sequence[_Flags]) -> Sequence[_Flags]:
    op, made = view.operator.op, view.output_shapes()[0]
    if op in ("ExpandDims", "Reshape", "Squeeze"):
        return [flags[0].reshape(made)]
    if op == "Pack":
        return [np.stack(flags, axis=view.attr("axis").i)]
    if op == "ConcatV2":
        return [np.concatenate(flags[:-1], axis=int(view.constant(len(flags) - 1)))]
    if op == "Unpack":
        axis = view.attr("axis").i
        return [np.take(flags[0], k, axis) for k in range(flags[0].shape[axis])]
    if op == "GatherV2":
        return [np.take(flags[0], view.constant(1), int(view.constant(2)))]
    if op == "StridedSlice" and flags[0].ndim == 1 and not view.attr("new_axis_mask").i:
        begin, end, stride = (int(view.constant(k)[0]) for k in (1, 2, 3))
        if view.attr("shrink_axis_mask").i:
            return [flags[0][begin]]
        first = None if view.attr("begin_mask").i else begin
        return [flags[0][first : None if view.attr("end_mask").i else end : stride]]
    if op in _ELEMENTWISE:
        return [np.logical_or.reduce(np.broadcast_arrays(*flags))]
    return [np.full(made, any(f.any() for f in flags))]


def size_of(grows: Iterable[bool]) -> State:
    """A size; the same for all rows if none of its elements grows with the batch."""
    flags = tuple(bool(flag) for flag in grows)
    return Size(flags) if any(flags) else SAME


def shape_of(view: View) -> Sequence[State]:
    """The sizes of every input."""
    return [
        size_of([m != n for m, n in zip(*view.input_shapes(k), strict=True)])
        for k in range(len(view.states))
    ]


def count_of(view: View) -> Sequence[State]:
    """The number of elements of an input that grows with the batch."""
    return [Size((True,))]


def rank_of(view: View) -> Sequence[State]:
    """The number of dimensions is the same for all rows."""
    return [SAME]

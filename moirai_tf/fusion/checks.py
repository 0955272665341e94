"""Checks that rules are made of: each says why operators must not be fused, or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from moirai_tf.fusion.analysis import Analysis, constant_values
from moirai_tf.fusion.pattern import Check, Match
from moirai_tf.graph.graph import TensorSpec

_CONSTANT_TOLERANCE = 1e-2
"""Formulas are told apart by constants as different as 0.5 and 0.044715."""


def single_exit(analysis: Analysis, match: Match) -> str | None:
    """Only the root's output may leave: anything else has to be computed for others anyway."""
    for member in match.members:
        outside = set(analysis.data_readers(member)).difference(match.members)
        if member != match.root and outside:
            return f"{_name(analysis, member)} feeds {_consumers(analysis, member)}"
    return None


def one_type(analysis: Analysis, match: Match) -> str | None:
    """A fused kernel computes in one type."""
    first, *rest = match.members
    dtype = _output(analysis, first).dtype
    for other in rest:
        if _output(analysis, other).dtype != dtype:
            return (
                f"{_name(analysis, first)} computes {dtype}, "
                f"{_name(analysis, other)} {_output(analysis, other).dtype}"
            )
    return None


def computes(*dtypes: str) -> Check:
    """The backend has fused kernels for these types only."""

    def check(analysis: Analysis, match: Match) -> str | None:
        dtype = _output(analysis, match.root).dtype
        if dtype in dtypes:
            return None
        return f"{_name(analysis, match.root)} computes {dtype}; only {', '.join(dtypes)} are fused"

    return check


def no_broadcast(start: str, *labels: str) -> Check:
    """What follows a member must keep the shape of its output, reshapes aside."""

    def check(analysis: Analysis, match: Match) -> str | None:
        first = match.operator(start)
        for label in labels:
            if label not in match.binding:
                continue
            index = match.operator(label)
            shapes = _output(analysis, first).shape, _output(analysis, index).shape
            if _differ(*shapes):
                return (
                    f"{_name(analysis, index)} broadcasts {_name(analysis, first)} from shape "
                    f"{_shown(shapes[0])} to {_shown(shapes[1])}"
                )
        return None

    return check


def same_size(operand: str, member: str) -> Check:
    """Fused kernels add a residual of the output's own shape; they do not broadcast it."""

    def check(analysis: Analysis, match: Match) -> str | None:
        if operand not in match.binding:
            return None
        ref, index = match.binding[operand], match.operator(member)
        shapes = analysis.graph.spec(ref).shape, _output(analysis, index).shape
        if not _differ(*shapes):
            return None
        return (
            f"{_name(analysis, index)} broadcasts {_name(analysis, ref.producer)} from shape "
            f"{_shown(shapes[0])} to {_shown(shapes[1])}"
        )

    return check


def one_element(operand: str) -> Check:
    """A fused kernel scales by one number."""

    def check(analysis: Analysis, match: Match) -> str | None:
        ref = match.binding[operand]
        shape = analysis.graph.spec(ref).shape
        if shape is not None and math.prod(shape) == 1:
            return None
        return f"{_name(analysis, ref.producer)} has shape {_shown(shape)}, not one element"

    return check


def spatial_filter(operand: str) -> Check:
    """cuDNN's fused convolutions are not used for filters that are a point or a line."""

    def check(analysis: Analysis, match: Match) -> str | None:
        ref = match.binding[operand]
        shape = analysis.graph.spec(ref).shape
        if shape is not None and min(shape[:2], default=1) > 1:
            return None
        return f"{_name(analysis, ref.producer)} has shape {_shown(shape)}, which is not spatial"

    return check


def swaps_rows_and_columns(*labels: str) -> Check:
    """A product can read a matrix by columns; any other transpose has to move its elements."""

    def check(analysis: Analysis, match: Match) -> str | None:
        for label in (label for label in labels if label in match.binding):
            index = match.operator(label)
            order = constant_values(
                analysis.graph, analysis.graph.operators[index].inputs[1].producer
            )
            size = len(order)
            if order != [*range(size - 2), size - 1, size - 2]:
                return f"{_name(analysis, index)} does more than swap rows and columns"
        return None

    return check


def batch_norm_mode(label: str, *, training: bool) -> Check:
    """A fused batch norm uses given statistics; layer norm is made of one that takes its own."""

    def check(analysis: Analysis, match: Match) -> str | None:
        if label not in match.binding:
            return None
        index = match.operator(label)
        attribute = analysis.graph.operators[index].attr("is_training")
        trains = attribute is None or attribute.b  # True is the op's default.
        if trains == training:
            return None
        return f"{_name(analysis, index)} runs in {'inference' if training else 'training'} mode"

    return check


def first_output_only(label: str) -> Check:
    """A fused kernel leaves out the other outputs."""

    def check(analysis: Analysis, match: Match) -> str | None:
        if label not in match.binding:
            return None
        index = match.operator(label)
        for port, reader in analysis.readers[index]:
            if port > 0:
                return f"{_name(analysis, reader)} reads output {port} of {_name(analysis, index)}"
        return None

    return check


def constants(values: Mapping[str, float]) -> Check:
    """Formulas such as Gelu are only that with the right constants."""

    def check(analysis: Analysis, match: Match) -> str | None:
        for label, expected in values.items():
            if label not in match.binding:
                continue
            index = match.binding[label].producer
            value = _scalar(analysis, index)
            if value is not None and abs(value - expected) > _CONSTANT_TOLERANCE:
                return f"{_name(analysis, index)} is {value:g} where {expected:g} is needed"
        return None

    return check


def not_negative(label: str) -> Check:
    """max(x, alpha x) is a leaky ReLU only for alpha >= 0."""

    def check(analysis: Analysis, match: Match) -> str | None:
        index = match.binding[label].producer
        value = _scalar(analysis, index)
        if value is None or value >= 0:
            return None
        return f"{_name(analysis, index)} is {value:g}, which is negative"

    return check


def _scalar(analysis: Analysis, index: int) -> float | None:
    """The value of a one-element `Const`, or None for anything else."""
    values = constant_values(analysis.graph, index)
    return values[0] if len(values) == 1 else None


def _differ(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> bool:
    """Whether two shapes surely hold different numbers of elements."""
    known = all(shape is not None and min(shape, default=0) >= 0 for shape in (first, second))
    return known and math.prod(first or ()) != math.prod(second or ())


def _output(analysis: Analysis, index: int) -> TensorSpec:
    return analysis.graph.operators[index].outputs[0]


def _name(analysis: Analysis, index: int) -> str:
    return analysis.graph.operators[index].name


def _consumers(analysis: Analysis, index: int) -> str:
    readers = [_name(analysis, r) for r in analysis.data_readers(index)]
    numbers = {1: "one consumer", 2: "two consumers", 3: "three consumers"}
    return f"{numbers.get(len(readers), f'{len(readers)} consumers')}: {', '.join(readers)}"


def _shown(shape: Sequence[int] | None) -> str:
    return "?" if shape is None else str(list(shape))

"""What becomes of rows where operators compute: elementwise, convolutions, products, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from moirai_tf.split.rows import SAME, Mixed, Rows, State, View, agreed, not_along


def elementwise(view: View) -> Sequence[State]:
    """With broadcasting: the same rows of every input meet."""
    shape = view.output_shapes()[0]
    found = [rows.at(rows.axis + len(shape) - view.rank(position)) for position, rows in view.rows]
    rows = agreed(found)
    for position, state in enumerate(view.states):
        if state == SAME:
            view.require_alike(position, rows.axis - len(shape))
    return [rows] * len(view.operator.outputs)


def select(view: View) -> Sequence[State]:
    """The old `Select`: a condition of one dimension chooses whole rows."""
    if view.rank(0) == 1 < view.rank(1):
        rows = agreed(r for _, r in view.rows)
        if SAME in view.states or rows.axis != 0:
            raise Mixed("its inputs have their rows in different places")
        return [rows]
    return elementwise(view)


def first_input(view: View) -> Sequence[State]:
    """Along the first dimension of the first input; the others are weights or parameters."""
    rows = view.only(0)
    if rows.axis != 0:
        raise Mixed("the rows are not in the first dimension of its input")
    return [rows] * len(view.operator.outputs)


def bias(view: View) -> Sequence[State]:
    """A number for each channel is added."""
    rows = view.only(0)
    channel = 1 if view.attr("data_format").s == b"NCHW" else view.rank(0) - 1
    return [not_along(rows, [channel], view.rank(0))]


def batch_norm(view: View) -> Sequence[State]:
    """Inference normalises every element alone; training looks at the batch."""
    if view.attr("is_training").b:
        raise Mixed("it normalises by the mean and variance of the batch")
    (rows,) = first_input(view)[:1]
    return [rows, *[SAME] * (len(view.operator.outputs) - 1)]


def back_convolution(view: View) -> Sequence[State]:
    """A transposed convolution: its rows are in the third input."""
    rows = view.only(2)
    if rows.axis != 0:
        raise Mixed("the rows are not in the first dimension of its input")
    return [rows]


def space_to_batch(view: View) -> Sequence[State]:
    """Blocks of images become further rows, block after block."""
    (rows,) = first_input(view)
    blocks = prod(int(size) for size in view.constant(1).reshape(-1))
    return [Rows(0, rows.outer * blocks, rows.inner)] if isinstance(rows, Rows) else [rows]


def batch_to_space(view: View) -> Sequence[State]:
    """The reverse: rows of the same image, block after block, become one."""
    (rows,) = first_input(view)
    blocks = prod(int(size) for size in view.constant(1).reshape(-1))
    if not isinstance(rows, Rows) or rows.outer % blocks:
        raise Mixed("it takes rows of the batch for blocks of an image")
    return [Rows(0, rows.outer // blocks, rows.inner)]


def matrix_product(view: View) -> Sequence[State]:
    """A row of the left matrix, or a column of the right one, decides one of the product."""
    if len(view.rows) > 1:
        raise Mixed("it sums over the rows, or multiplies each with all others")
    ((position, rows),) = view.rows
    transposed = view.attr("transpose_b" if position else "transpose_a").b
    if rows.axis != position ^ transposed:
        raise Mixed("it sums over the rows")
    return [rows.at(position)]


def batched_product(view: View) -> Sequence[State]:
    """Rows are matrices of the batch, or rows or columns of one matrix."""
    rank = len(view.output_shapes()[0])
    found = [(k, rows, rank - view.rank(k) + rows.axis) for k, rows in view.rows]
    if all(axis < rank - 2 for _, _, axis in found):
        return elementwise(view)
    if len(found) > 1:
        raise Mixed("it multiplies rows with rows")
    ((position, rows, axis),) = found
    transposed = view.attr("adj_y" if position else "adj_x").b
    if axis != rank - 2 + (position ^ transposed):
        raise Mixed("it sums over the rows")
    return [rows.at(rank - 2 + position)]


def einsum(view: View) -> Sequence[State]:
    """One label is that of the rows, in every operand that has rows and in the result."""
    equation = view.attr("equation").s.decode()
    operands, result = equation.split("->")
    terms = [_labels(t, view.rank(k)) for k, t in enumerate(operands.split(","))]
    made = _labels(result, len(view.output_shapes()[0]))
    found = {(terms[k][rows.axis], rows.at(0)) for k, rows in view.rows}
    if len(found) != 1:
        raise Mixed("its operands have their rows under different labels")
    ((label, rows),) = found
    if any(label in term and view.states[k] == SAME for k, term in enumerate(terms)):
        raise Mixed("one operand is the same for all rows, and has the rows' label")
    if any(terms[k].count(label) > 1 for k, _ in view.rows) or made.count(label) != 1:
        raise Mixed("it sums over the rows")
    return [rows.at(made.index(label))]


def _labels(term: str, rank: int) -> list[str]:
    """A label for each dimension; those of an ellipsis are counted from the end."""
    before, dots, after = term.strip().partition("...")
    if not dots:
        return list(before)
    hidden = rank - len(before) - len(after)
    return [*before, *(f".{hidden - k}" for k in range(hidden)), *after]


def last_axis(view: View) -> Sequence[State]:
    """Works along the last dimension."""
    rank = view.rank(0)
    return [not_along(view.only(0), [-1], rank)] * len(view.operator.outputs)


def matrices(view: View) -> Sequence[State]:
    """Works on the last two dimensions."""
    return [not_along(view.only(0), [-1, -2], view.rank(0))] * len(view.operator.outputs)


def along(view: View) -> Sequence[State]:
    """Works along the axis that its second input names, and keeps the rank."""
    return [not_along(view.only(0), [int(view.constant(1))], view.rank(0))]


def reverse(view: View) -> Sequence[State]:
    """Turns the dimensions around that its second input names."""
    rows, rank = view.only(0), view.rank(0)
    return [not_along(rows, (int(axis) % rank for axis in view.constant(1)), rank)]


def reduction(view: View) -> Sequence[State]:
    """Reduces the dimensions that its second input names."""
    rows, rank = view.only(0), view.rank(0)
    axes = {int(axis) % rank for axis in view.constant(1).reshape(-1)}
    not_along(rows, axes, rank)
    gone = 0 if view.attr("keep_dims").b else sum(axis < rows.axis for axis in axes)
    return [rows.at(rows.axis - gone)]


def arg_extreme(view: View) -> Sequence[State]:
    """Reduces the dimension that its second input names."""
    rows, axis = view.only(0), int(view.constant(1)) % view.rank(0)
    not_along(rows, [axis], view.rank(0))
    return [rows.at(rows.axis - (axis < rows.axis))]

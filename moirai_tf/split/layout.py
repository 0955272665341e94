"""What becomes of rows where operators only move elements: reshape, transpose, slice, gather."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from moirai_tf.split.rows import SAME, Mixed, Rows, Size, State, View, agreed, not_along

_ENDLESS = 2**31 - 1


def reshape(view: View) -> Sequence[State]:
    """In row-major order the rows stay where they are; some dimension must hold them whole."""
    if view.states[0] == SAME:
        raise Mixed("it gives every row a place")
    rows = view.only(0)
    before = prod(view.input_shapes(0)[0][: rows.axis]) * rows.outer
    (first, second), (small, large) = view.output_shapes(), view.sizes
    for axis in view.grows((first, second)):
        ahead = prod(first[:axis])
        if before % ahead == 0 and first[axis] % (before // ahead * small) == 0:
            inner = first[axis] // (before // ahead * small)
            if second[axis] == before // ahead * large * inner:
                return [Rows(axis, before // ahead, inner)]
    raise Mixed("no dimension of what it gives holds the rows")


def _uniform(view: View) -> Sequence[State]:
    """A shape that the number of rows decides, of elements that are the same where it grows."""
    axes = view.grows(view.output_shapes())
    if not axes:
        raise Mixed("the number of rows decides what it gives, but not as its shape")
    if len(axes) > 1:
        raise Mixed("it gives every row a place")
    sizes = [shape[axes[0]] for shape in view.output_shapes()]
    inner, rest = divmod(sizes[0], view.sizes[0])
    if rest or sizes[1] != inner * view.sizes[1]:
        raise Mixed("it gives a tensor of another size than the batch")
    return [Rows(axes[0], 1, inner)]


def fill(view: View) -> Sequence[State]:
    """The same value everywhere."""
    return _uniform(view)


def broadcast(view: View) -> Sequence[State]:
    """To a given shape: what is repeated for each row is the same for all."""
    rank = len(view.output_shapes()[0])
    if view.states[0] == SAME:
        for axis in view.grows(view.output_shapes()):
            view.require_alike(0, axis - rank)
        return _uniform(view)
    rows = view.only(0)
    return [rows.at(rows.axis + rank - view.rank(0))]


def tile(view: View) -> Sequence[State]:
    """Repeats other dimensions than that of the rows, or one thing for each row."""
    if view.states[0] == SAME:
        for axis in view.grows(view.output_shapes()):
            view.require_alike(0, axis - view.rank(0))
        return _uniform(view)
    return [view.only(0)]


def transpose(view: View) -> Sequence[State]:
    """The dimensions in another order."""
    rows = view.only(0)
    return [rows.at([int(axis) for axis in view.constant(1)].index(rows.axis))]


def concat(view: View) -> Sequence[State]:
    """Joins along another dimension."""
    *parts, _ = view.states
    if SAME in parts:
        raise Mixed("one of its inputs has an element for every place in the batch")
    rows, last = agreed(r for _, r in view.rows), len(parts)
    return [not_along(rows, [int(view.constant(last))], view.rank(0))]


def pack(view: View) -> Sequence[State]:
    """Joins along a new dimension."""
    if SAME in view.states:
        raise Mixed("one of its inputs has an element for every place in the batch")
    rows = agreed(r for _, r in view.rows)
    axis = view.attr("axis").i % len(view.output_shapes()[0])
    return [rows.at(rows.axis + (axis <= rows.axis))]


def unpack(view: View) -> Sequence[State]:
    """Takes another dimension apart."""
    rows, axis = view.only(0), view.attr("axis").i % view.rank(0)
    not_along(rows, [axis], view.rank(0))
    return [rows.at(rows.axis - (axis < rows.axis))] * len(view.operator.outputs)


def split(view: View) -> Sequence[State]:
    """Divides another dimension."""
    rows = view.only(1)
    return [not_along(rows, [int(view.constant(0))], view.rank(1))] * len(view.operator.outputs)


def split_sizes(view: View) -> Sequence[State]:
    """The same in given sizes."""
    rows = view.only(0)
    return [not_along(rows, [int(view.constant(2))], view.rank(0))] * len(view.operator.outputs)


def same_size(view: View) -> Sequence[State]:
    """Where the rows' dimension keeps its size, all of it is taken, in order."""
    return [view.only(0)]


def strided_slice(view: View) -> Sequence[State]:
    """All rows, of other dimensions what is wanted."""
    rows, rank = view.only(0), view.rank(0)
    strides = [int(stride) for stride in view.constant(3)]
    masks = {n: view.attr(f"{n}_mask").i for n in ("ellipsis", "new_axis", "shrink_axis")}

    def marked(mask: str, k: int) -> bool:
        return bool(masks[mask] >> k & 1)

    axis = made = 0
    taken = sum(
        not marked("new_axis", k) and not marked("ellipsis", k) for k in range(len(strides))
    )
    for k, stride in enumerate(strides):
        if marked("ellipsis", k):
            hidden = rank - taken
            if axis <= rows.axis < axis + hidden:
                return [rows.at(made + rows.axis - axis)]
            axis, made = axis + hidden, made + hidden
        elif marked("new_axis", k):
            made += 1
        elif axis == rows.axis:
            if marked("shrink_axis", k) or stride != 1 or not _takes_all(view, k):
                raise Mixed("it takes some of the rows, or reverses them")
            return [rows.at(made)]
        else:
            axis, made = axis + 1, made + (not marked("shrink_axis", k))
    return [rows.at(made + rows.axis - axis)]


def _takes_all(view: View, k: int) -> bool:
    """Whether a slice goes from the first row to the last one, however many there are."""
    from_start = view.attr("begin_mask").i >> k & 1 or view.constant(1)[k] == 0
    end = view.states[2]
    if view.attr("end_mask").i >> k & 1 or (isinstance(end, Size) and end.grows[k]):
        return bool(from_start)
    return bool(from_start and not isinstance(end, Size) and view.constant(2)[k] >= _ENDLESS)


def gather(view: View) -> Sequence[State]:
    """Rows of indices choose from one table, or one choice is made in every row."""
    rank, batched = view.rank(0), view.attr("batch_dims").i
    axis = int(view.constant(2)) % rank
    if batched:
        rows = agreed(r for _, r in view.rows)
        if SAME in view.states[:2] or rows.axis >= batched % view.rank(1):
            raise Mixed("it takes elements of one row for another")
        return [rows]
    rows = view.only(0, 1)
    if len(view.rows) > 1:
        raise Mixed("rows choose among rows")
    if view.states[1] == SAME:
        not_along(rows, [axis], rank)
        return [rows.at(rows.axis + (view.rank(1) - 1) * (rows.axis > axis))]
    return [rows.at(rows.axis + axis)]


def table_gather(view: View) -> Sequence[State]:
    """Rows of keys choose from one table."""
    if view.attr("batch_dims").i:
        raise Mixed("the table has an element for every place in the batch")
    return [view.only(1)]


def indexed(view: View) -> Sequence[State]:
    """The same with keys of several numbers."""
    rows = view.only(1)
    return [not_along(rows, [-1], view.rank(1))]


def one_hot(view: View) -> Sequence[State]:
    """A new dimension for the value of every element."""
    rows, axis = view.only(0), view.attr("axis").i
    return [rows.at(rows.axis + (0 <= axis <= rows.axis))]

"""What becomes of rows in lists of tensors, such as the time steps of recurrent layers.

All elements of a list hold the same part of their rows. Their shapes are those of what was put in:
TensorFlow's shape functions know only what the list was declared for, mostly any number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from moirai_tf.split.rows import SAME, Listed, Mixed, Rows, Shapes, State, View


def _empty(view: View) -> Sequence[State]:
    """A list in which nothing is."""
    if view.states[1] != SAME:
        raise Mixed("the number of rows decides how long a list is")
    return [Listed()]


def _unstack(view: View) -> Sequence[State]:
    """The first dimension becomes that of the list."""
    state, (first, second) = view.states[0], view.input_shapes(0)
    if isinstance(state, Rows) and state.axis > 0:
        return [Listed(state.at(state.axis - 1), (first[1:], second[1:]))]
    if state != SAME:
        raise Mixed("it makes a list of the rows")
    return [Listed(SAME, (first[1:], second[1:]))]


def _put(view: View, item: int) -> Sequence[State]:
    """An element like those that are there."""
    known, state = view.states[0], view.states[item]
    if any(other != SAME for other in view.states[1:item]) or not isinstance(known, Listed):
        raise Mixed("the rows decide where in a list it puts something")
    if not isinstance(state, Rows) and state != SAME:
        raise Mixed("it puts the number of rows into a list")
    return [joined(known, Listed(state, view.input_shapes(item)))]


def _take(view: View) -> Sequence[State]:
    """One element."""
    return [_element(view)]


def _stack(view: View) -> Sequence[State]:
    """All elements, or some of them, along a new first dimension."""
    state = _element(view)
    return [state.at(state.axis + 1) if isinstance(state, Rows) else state]


def _element(view: View) -> State:
    known = view.states[0]
    if not isinstance(known, Listed) or known.state is None:
        raise Mixed("it reads a list of which is not known what was put in")
    if view.operator.op in ("TensorListGetItem", "TensorListGather") and view.states[1] != SAME:
        raise Mixed("the rows decide what it takes from a list")
    return known.state


def _length(view: View) -> Sequence[State]:
    return [SAME]


LIST_RULES: Mapping[str, Callable[[View], Sequence[State]]] = {
    "EmptyTensorList": _empty,
    "TensorListFromTensor": _unstack,
    "TensorListGather": _stack,
    "TensorListGetItem": _take,
    "TensorListLength": _length,
    "TensorListPushBack": lambda view: _put(view, 1),
    "TensorListReserve": _empty,
    "TensorListSetItem": lambda view: _put(view, 2),
    "TensorListStack": _stack,
}


_READERS = frozenset({"TensorListGather", "TensorListGetItem", "TensorListStack"})


def joined(one: State, other: State) -> State:
    """What holds for both of two tensors in the same place.

    Raises:
      Mixed: nothing does.
    """
    if one == other:
        return one
    if isinstance(one, Listed) and isinstance(other, Listed) and None in (one.state, other.state):
        return other if one.state is None else one
    raise Mixed("the rows are not where they were before")


def element_shapes(view: View) -> Shapes | None:
    """The shapes of what an operator reads from a list; None if known, or if it reads none."""
    state = view.states[0] if view.states else None
    if view.operator.op not in _READERS or not isinstance(state, Listed) or state.shapes is None:
        return None
    (one, other), (first, second) = view.static_shapes(), state.shapes
    if view.operator.op != "TensorListGetItem":
        first, second = ((one or (-1,))[0], *first), ((other or (-1,))[0], *second)
    return None if (one, other) == (first, second) else (first, second)

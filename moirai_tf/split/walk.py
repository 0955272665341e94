"""Follows rows through a graph, and through the bodies of its loops and branches.

What a loop hands from step to step must have its rows where it had them before the first one, and
whether there is another step must not depend on them. The same branch is taken for all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moirai_tf.graph import shapes
from moirai_tf.graph.bodies import arguments_of, body_of, with_shapes
from moirai_tf.graph.graph import LOOPS, LOWERED_OPS, RESULT, Graph, TensorRef
from moirai_tf.model.validate import function_attrs
from moirai_tf.split.lists import element_shapes, joined
from moirai_tf.split.rows import SAME, WHOLE, Mixed, Shapes, State, View
from moirai_tf.split.rules import rule_of

Graphs = tuple[Graph, Graph]
"""The same graph at both batch sizes."""


def states_of(
    graphs: Graphs,
    sizes: tuple[int, int],
    given: Mapping[int, State],
    mixing: dict[int, str] | None = None,
) -> list[tuple[State, ...]]:
    """What every output of every operator holds of the batch.

    Args:
      graphs: a flat graph at two batch sizes.
      sizes: these sizes.
      given: operators without inputs whose outputs are known.
      mixing: takes the operators that mix rows, with the reason, and without one those behind them.

    Raises:
      Mixed: an operator mixes rows, or may do so, and `mixing` is not there to take it.
    """
    found: list[tuple[State, ...]] = []
    known: dict[int, Shapes] = {}
    for i, operator in enumerate(graphs[0].operators):
        if operator.op == RESULT or i in given:
            found.append((given[i],) if i in given else ())
            continue
        states = tuple(found[ref.producer][ref.port] for ref in operator.inputs)
        if mixing and (WHOLE in states or not mixing.keys().isdisjoint(operator.controls)):
            mixing[i] = ""
            found.append((WHOLE,) * len(operator.outputs))
            continue
        try:
            read = element_shapes(View(graphs, sizes, i, states))
            if read is not None:
                known[i] = read
                graphs = _with_shapes(graphs, known)
            made = _made(View(graphs, sizes, i, states))
        except Mixed as mixed:
            reason = f"operator {operator.name!r} ({operator.op}): {mixed}"
            if mixing is None:
                raise Mixed(reason) from mixed
            mixing[i], made = reason, (WHOLE,) * len(operator.outputs)
        found.append(made)
    return found


def _made(view: View) -> tuple[State, ...]:
    """What an operator gives, compared with its shapes."""
    if view.operator.op in LOWERED_OPS:
        made = (_loop if view.operator.op in LOOPS else _branches)(view)
    else:
        made = tuple(rule_of(view.operator)(view))
    if any(state != SAME for state in (*view.states, *made)):
        for port, state in enumerate(made):
            view.check(port, state)
    return made


def _with_shapes(graphs: Graphs, known: Mapping[int, Shapes]) -> Graphs:
    """The graphs with what is known of outputs of operators."""
    first, second = ({i: both[k] for i, both in known.items()} for k in range(len(graphs)))
    try:
        return with_shapes(graphs[0], first), with_shapes(graphs[1], second)
    except shapes.ShapeError as error:
        raise Mixed(f"it gives another shape than what was put into its list: {error}") from error


def _loop(view: View) -> tuple[State, ...]:
    """What a loop gives: what it is given, if each step leaves it so."""
    states = list(_argument_states(view))
    condition, body = (view.attr(name).func.name for name in ("cond", "body"))
    for _ in range(len(states) + 1):
        if _results(view, condition, states) != (SAME,):
            raise Mixed("the rows decide how often it runs")
        made = _results(view, body, states)
        after = [joined(*pair) for pair in zip(states, made, strict=True)]
        if after == states:
            return tuple(states)
        states = after
    raise Mixed("what it hands from step to step does not settle")


def _branches(view: View) -> tuple[State, ...]:
    """What all branches give."""
    if view.states[0] != SAME:
        raise Mixed("the rows decide which branch is taken")
    states = _argument_states(view)
    functions = [f.name for _, _, f in function_attrs(view.operator.node)]
    first, *others = [_results(view, function, states) for function in functions]
    for other in others:
        first = tuple(joined(*pair) for pair in zip(first, other, strict=True))
    return first


def _argument_states(view: View) -> Sequence[State]:
    """Of what an operator gives to its functions; what none of them reads is the same for all."""
    known = dict(zip(view.operator.inputs, view.states, strict=True))
    return [
        known[argument] if isinstance(argument, TensorRef) else SAME
        for argument in arguments_of(view.operator)
    ]


def _results(view: View, function: str, states: Sequence[State]) -> tuple[State, ...]:
    """What one of an operator's functions makes of its arguments."""
    try:
        first, second = (body_of(graph, view.operator, function) for graph in view.graphs)
    except shapes.ShapeError as error:
        raise Mixed(f"function {function!r} does not suit what it is given") from error
    given = {ref.producer: state for ref, state in zip(first.arguments, states, strict=True)}
    found = states_of((first.graph, second.graph), view.sizes, given)
    return tuple(found[ref.producer][ref.port] for ref in first.results)

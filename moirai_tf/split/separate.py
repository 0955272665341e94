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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moirai_tf.graph.graph import Graph
from moirai_tf.split.cut import Cut, cut_of
from moirai_tf.split.rows import Mixed, Rows, Size, State
from moirai_tf.split.walk import states_of


@dataclass(frozen=True)
class Separation:
    """What was found about a graph."""

    inputs: Mapping[str, bool]
    """Signature input -> whether it is divided; others go to every share."""
    outputs: Mapping[str, bool]
    """Signature output -> whether it is joined; others are taken from one share."""
    obstacle: str = ""
    """The operator that forbids it, and why; empty if the batch may be divided all the way."""
    cut: Cut | None = None
    """The part before the obstacle that may be divided."""

    @property
    def separable(self) -> bool:
        """Whether the batch may be divided, at least up to the obstacle."""
        return not self.obstacle or self.cut is not None


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
        given = {first.inputs[name]: Rows() for name, is_divided in divided.items() if is_divided}
        states = states_of(graphs, sizes, given)
        joined = {n: _is_joined(graphs, states, i) for n, i in first.outputs.items()}
    except Mixed as mixed:
        return Separation(divided, {}, str(mixed))
    if not any(joined.values()):
        return Separation(divided, joined, "no output has rows")
    return Separation(divided, joined)


def up_to_the_obstacle(
    graphs: tuple[Graph, Graph], sizes: tuple[int, int], found: Separation
) -> Separation:
    """The same with the part of a graph that may be divided although its end may not.

    Args:
      graphs: the signature's flat graph at two batch sizes, unpruned.
      sizes: these sizes.
      found: what `separation` says, with an obstacle.
    """
    first, _ = graphs
    if not any(found.inputs.values()):
        return found
    given = {first.inputs[name]: Rows() for name, is_divided in found.inputs.items() if is_divided}
    mixing: dict[int, str] = {}
    states = states_of(graphs, sizes, given, mixing)
    cut = cut_of(first, states, frozenset(mixing))
    if cut is None:
        return found
    joined = {name: ref in cut.joined for name, ref in cut.outputs.items()}
    return replace(found, outputs=joined, cut=cut)


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

"""The fewest precedences that, with a graph's own edges, imply a set of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from moirai_tf.placement.problem import topological_order

Pair = tuple[int, int]
"""(node that comes first, node that waits)."""


@dataclass(frozen=True)
class Reduced:
    """What is left of a set of precedences, and what it implies."""

    pairs: tuple[Pair, ...]
    """Those that nothing else implies, in the order they were given."""
    bits: dict[int, int]
    """Node that comes first in some question -> its bit."""
    before: Sequence[int]
    """For each node, the bits of the nodes that must finish before it starts."""

    def implies(self, first: int, second: int) -> bool:
        """Whether one node must finish before another starts."""
        return bool(self.before[second] & self.bits[first])


def reduced(
    sources: Sequence[Collection[int]], pairs: Sequence[Pair], asked: Iterable[int] = ()
) -> Reduced:
    """Removes every pair that the graph and the other pairs imply.

    In an acyclic graph the edges that no other path replaces are the only smallest set with the
    same closure (Aho, Garey and Ullman, 1972), so all others can go at once.

    Args:
      sources: for each node of the graph, the nodes that it waits for.
      pairs: precedences; with the graph they must be acyclic.
      asked: further nodes that `Reduced.implies` can be asked about as first.

    Raises:
      ValueError: the pairs and the graph have a cycle.
    """
    waits = [set(known) for known in sources]
    for first, second in pairs:
        waits[second].add(first)
    bits = {n: 1 << k for k, n in enumerate(dict.fromkeys((*(a for a, _ in pairs), *asked)))}
    order = topological_order(len(waits), ((a, b) for b, known in enumerate(waits) for a in known))
    if len(order) < len(waits):
        raise ValueError("the planned order and the graph have a cycle")
    before = [0] * len(waits)
    for node in order:
        for source in waits[node]:
            before[node] |= before[source] | bits.get(source, 0)
    kept = tuple(
        (first, second)
        for first, second in dict.fromkeys(pairs)
        if first not in sources[second]
        and not any(before[s] & bits[first] for s in waits[second] if s != first)
    )
    return Reduced(kept, bits, before)

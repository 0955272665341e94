"""What takes time in the model, operators and transfers alike, and the orders between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moirai_tf.placement.bound.linear_program import ModelBuilder


@dataclass(frozen=True)
class Item:
    """Something with a start column, a duration and resources it may occupy."""

    start: int
    duration: tuple[tuple[int, int], ...]
    """Terms (ns, column) that add up to it."""
    uses: Mapping[int, tuple[int, ...]]
    """Columns whose sum, 0 or 1, says whether the resource is occupied."""
    earliest_start: int
    earliest_finish: int
    latest_start: int
    latest_finish: int


def add_orders(
    builder: ModelBuilder, items: list[Item], pairs: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], int]:
    """Rows that keep items with a common resource apart.

    For a pair (a, b), with binaries d_ab and d_ba:

        S_b >= S_a + duration_a - M_ab (1 - d_ab)      M_ab = latest finish of a - earliest of b
        d_ab + d_ba >= use_ar + use_br - 1             for each resource r of both

    and the same for (b, a). Times alone may decide: a pair whose windows are apart needs nothing,
    and an order that the windows exclude gets no binary.

    Returns:
      The column of each order d_ab.
    """
    orders: dict[tuple[int, int], int] = {}
    for first, second in pairs:
        a, b = items[first], items[second]
        shared = [resource for resource in a.uses if resource in b.uses]
        apart = a.latest_finish <= b.earliest_start or b.latest_finish <= a.earliest_start
        if not shared or apart:
            continue
        terms = []
        for before, after, key in ((a, b, (first, second)), (b, a, (second, first))):
            if before.earliest_finish <= after.latest_start:
                orders[key] = _order(builder, before, after)
                terms.append((1, orders[key]))
        for resource in shared:
            used = [*a.uses[resource], *b.uses[resource]]
            builder.at_least([*terms, *((-1, column) for column in used)], -1)
    return orders


def _order(builder: ModelBuilder, before: Item, after: Item) -> int:
    """The binary "before ends before after starts", and its row."""
    order = builder.column(0, 1, integer=True)
    big = before.latest_finish - after.earliest_start
    wait = [(1, after.start), (-1, before.start), *((-ns, c) for ns, c in before.duration)]
    builder.at_least([*wait, (-big, order)], -big)
    return order

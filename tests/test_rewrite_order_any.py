"""Any order of any model is kept, by edges of which none is redundant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.model.validate import violations
from moirai_tf.rewrite.apply import apply_placement
from moirai_tf.rewrite.diff import disordered, misplaced, unplanned_changes
from moirai_tf.rewrite.kept_order import reduced
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.undo import rename_devices, revert
from tests.orders import (
    FIRST,
    GPU,
    SECOND,
    coarse_of,
    depends,
    order_of,
    random_rows,
    waits_in,
)
from tests.placements import plan_of
from tests.saved_models import (
    node_of,
    zoo_options,
)

ZooDir = Callable[[str], Path]
tf1 = tf.compat.v1


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_reduced_is_the_smallest_set_that_implies_the_order(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 9))
    nodes = st.integers(0, count - 1)
    edges = data.draw(st.sets(st.tuples(nodes, nodes)))
    device = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    numbers = data.draw(st.permutations(range(count)))
    sources: list[set[int]] = [set() for _ in range(count)]
    for a, b in ((min(e), max(e)) for e in edges if e[0] != e[1]):
        sources[numbers[b]].add(numbers[a])  # The order of `numbers` is topological.
    rows = [[n for n in numbers if device[n] == k] for k in range(3)]
    pairs = [(a, b) for row in rows for i, a in enumerate(row) for b in row[i + 1 :]]
    pairs = data.draw(st.permutations(pairs))
    result = reduced(sources, pairs)

    def waits(chosen: Any) -> list[set[int]]:
        full = [set(s) for s in sources]
        for first, second in chosen:
            full[second].add(first)
        return full

    assert all(depends(waits(result.pairs), b, a) for a, b in pairs)
    assert all(result.implies(a, b) for a, b in pairs)
    for pair in result.pairs:
        rest = set(result.pairs) - {pair}
        assert not all(depends(waits(rest), b, a) for a, b in pairs)


def test_reduced_refuses_a_cycle() -> None:
    with pytest.raises(ValueError, match="cycle"):
        reduced([set(), {0}], [(1, 0)])


MODELS = (
    "called_twice", "two_tower", "lookup_table", "cond", "switch_case", "lstm", "jit_compile",
    "conv_net_saved", "ensemble", "module", "tf1", "tf1_two_metagraphs", "bert", "t5",
)  # fmt: skip


@pytest.fixture(scope="module")
def coarse_model(zoo_dir: ZooDir) -> Callable[[str, bool], CoarseGraph]:
    """The coarse graph of a zoo entry."""

    @cache
    def read(name: str, fuse: bool) -> CoarseGraph:
        return coarse_of(zoo_dir(name), fuse=fuse, **zoo_options(name))

    return read


def _ordered(
    path: Path, coarse: CoarseGraph, seed: int
) -> tuple[Any, Any, Plan, list[list[str]], int]:
    """Original, placed with a random order, plan, the order, and the pairs it leaves out."""
    rows, second = random_rows(coarse, seed)
    order, placement = order_of(path, coarse, rows, second)
    original = read_saved_model(path).meta_graph(coarse.fine.tags)
    placed = type(original)()
    placed.CopyFrom(original)
    edits = apply_placement(placed, coarse.fine, placement, FIRST, order)
    plan = replace(plan_of(coarse.fine, placement), order=order.promises, edits=edits)
    return original, placed, plan, rows, order.left_out


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(MODELS), fuse=st.booleans(), seed=st.integers(0, 10_000))
def test_any_order(
    name: str,
    fuse: bool,
    seed: int,
    zoo_dir: ZooDir,
    coarse_model: Callable[[str, bool], CoarseGraph],
) -> None:
    coarse = coarse_model(name, fuse)
    original, placed, plan, _, _ = _ordered(zoo_dir(name), coarse, seed)
    assert violations(placed) == []  # No cycle, among others.
    assert unplanned_changes(original, placed, plan) == []
    assert misplaced(placed, plan) == []
    assert disordered(placed, plan) == []
    index, sources = waits_in(placed, plan.signature)
    _, before = waits_in(original, plan.signature)
    for pair in plan.order:
        first, second = index[pair.before], index[pair.after]
        assert depends(sources, second, first)
    # The names of the original's nodes are those of the placed model, whose relays are new.
    assert len(before) + _relays(plan, index) == len(sources)
    names = {FIRST: SECOND, SECOND: GPU}
    plan = rename_devices(placed, plan, names)
    assert unplanned_changes(original, placed, plan) == []
    assert disordered(placed, plan) == []
    revert(placed, plan.edits)
    assert placed.SerializeToString(deterministic=True) == original.SerializeToString(
        deterministic=True
    )


def _relays(plan: Plan, index: dict[str, int]) -> int:
    added = {edit.node for edit in plan.edits.relays}
    return sum(any(name.endswith(node) for node in added) for name in index)


@pytest.mark.parametrize("name", ["ensemble", "two_tower", "lstm", "bert", "t5"])
def test_no_edge_of_a_real_model_is_redundant(
    name: str, zoo_dir: ZooDir, coarse_model: Callable[[str, bool], CoarseGraph]
) -> None:
    path, coarse = zoo_dir(name), coarse_model(name, fuse=True)
    _, placed, plan, _, _ = _ordered(path, coarse, seed=1)
    assert plan.order
    for edge in plan.edits.order:
        less = type(placed)()
        less.CopyFrom(placed)
        bodies = {f.signature.name: f for f in less.graph_def.library.function}
        node_of(bodies[edge.function], edge.node).input.remove(f"^{edge.before}")
        index, sources = waits_in(less, plan.signature)
        broken = [p for p in plan.order if not depends(sources, index[p.after], index[p.before])]
        assert broken, f"{edge} is implied by the rest"

"""Whatever the placement: nothing but the plan changes, every operator lies where it should, and
the way back is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moirai_tf.graph.graph import CLIENT_OPS, Graph
from moirai_tf.graph.prune import prune
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.rewrite.apply import apply_placement
from moirai_tf.rewrite.diff import misplaced, unplanned_changes
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.undo import rename_devices, revert
from tests.placements import plan_of, scattered
from tests.saved_models import graph_of, zoo_options

MODELS = (
    "called_twice", "two_tower", "lookup_table", "host_memory", "tied_embeddings", "cond",
    "switch_case", "lstm", "jit_compile", "custom_gradient", "conv_net_saved", "tf1",
    "tf1_two_metagraphs",
)  # fmt: skip
DEVICES = tuple(f"/device:CPU:{i}" for i in range(4))


@pytest.fixture(scope="module")
def model_of(zoo_dir: Callable[[str], Path]) -> Callable[[str], tuple[Any, Graph]]:
    """The MetaGraph of a zoo entry and its pruned graph."""

    @cache
    def read(name: str) -> tuple[Any, Graph]:
        options = zoo_options(name)
        meta_graph = read_saved_model(zoo_dir(name)).meta_graph(options["tags"])
        return meta_graph, prune(graph_of(zoo_dir(name), **options))

    return read


def _placed(original: Any, graph: Graph, seed: int, devices: int) -> tuple[Any, Plan]:
    placement = scattered(graph, DEVICES[:devices], seed)
    placed = type(original)()
    placed.CopyFrom(original)
    edits = apply_placement(placed, graph, placement, DEVICES[0])
    return placed, replace(plan_of(graph, placement, DEVICES[:devices]), edits=edits)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(MODELS),
    seed=st.integers(0, 10_000),
    devices=st.integers(1, 4),
    turn=st.integers(0, 3),
)
def test_any_placement(
    name: str,
    seed: int,
    devices: int,
    turn: int,
    model_of: Callable[[str], tuple[Any, Graph]],
) -> None:
    original, graph = model_of(name)
    placed, plan = _placed(original, graph, seed, devices)
    assert unplanned_changes(original, placed, plan) == []
    assert misplaced(placed, plan) == []
    names = {DEVICES[i]: DEVICES[(i + turn) % devices] for i in range(devices)}
    plan = rename_devices(placed, plan, names)
    assert unplanned_changes(original, placed, plan) == []
    assert misplaced(placed, plan) == []
    revert(placed, plan.edits)
    assert placed == original


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(MODELS), seed=st.integers(0, 10_000), data=st.data())
def test_any_operator_that_strays_is_named(
    name: str,
    seed: int,
    data: st.DataObject,
    model_of: Callable[[str], tuple[Any, Graph]],
) -> None:
    original, graph = model_of(name)
    placed, plan = _placed(original, graph, seed, 2)
    operators = [o for o in graph.operators if o.op not in CLIENT_OPS]
    stray = data.draw(st.sampled_from(operators))
    other = {DEVICES[0]: DEVICES[1], DEVICES[1]: DEVICES[0]}[plan.placement[stray.name]]
    wrong = replace(plan, placement={**plan.placement, stray.name: other})
    assert any(repr(stray.name) in fault for fault in misplaced(placed, wrong))

"""An order in a model is undone, and changes of it are found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moirai_tf.errors import MoiraiError
from moirai_tf.rewrite.diff import disordered, unplanned_changes
from moirai_tf.rewrite.directory import remap, strip
from moirai_tf.rewrite.plan import NodeEdit, OrderEdit, Precedence, RelayEdit
from moirai_tf.rewrite.plan_file import PLAN_FILE, read_plan
from tests.orders import (
    FIRST,
    GPU,
    SECOND,
    coarse_of,
    conv_blocks,
    order_of,
    write_ordered,
)
from tests.saved_models import (
    digest,
    edited,
    function_of,
    node_of,
    proto_of,
)


@pytest.fixture
def ordered(tmp_path: Path) -> tuple[Path, Path]:
    """`conv_blocks`, and the same with an order that takes a relay."""
    path = conv_blocks(tmp_path / "model")
    coarse = coarse_of(path, fuse=True)
    call = "StatefulPartitionedCall/StatefulPartitionedCall/"
    order, placement = order_of(path, coarse, [[f"{call}block1/relu", f"{call}block0/relu"]])
    write_ordered(path, tmp_path / "placed", coarse, order, placement)
    return path, tmp_path / "placed"


def test_strip_and_remap(ordered: tuple[Path, Path], tmp_path: Path) -> None:
    path, placed = ordered
    strip(placed, tmp_path / "stripped")
    assert digest(tmp_path / "stripped") == digest(path)
    plan = remap(placed, tmp_path / "remapped", {FIRST: GPU})
    (original,), (renamed,) = (proto_of(p).meta_graphs for p in (path, tmp_path / "remapped"))
    assert unplanned_changes(original, renamed, plan) == []
    assert disordered(renamed, plan) == []
    body = function_of(renamed, "serve")
    assert node_of(body, plan.edits.relays[0].node).device == GPU
    strip(tmp_path / "remapped", tmp_path / "again")
    assert digest(tmp_path / "again") == digest(path)


def _forget_edge(meta_graph: Any) -> None:
    node = node_of(function_of(meta_graph, "serve"), "block0/conv/ReadVariableOp")
    node.input.remove("^block1/relu/moirai_order")


def _invent_edge(meta_graph: Any) -> None:
    node_of(function_of(meta_graph, "serve"), "block1/conv/ReadVariableOp").input.append(
        "^block0/conv/ReadVariableOp"
    )


def _forget_relay(meta_graph: Any) -> None:
    _forget_edge(meta_graph)
    nodes = function_of(meta_graph, "serve").node_def
    (at,) = (i for i, n in enumerate(nodes) if n.name == "block1/relu/moirai_order")
    del nodes[at]


def _turn_relay(meta_graph: Any) -> None:
    relay = node_of(function_of(meta_graph, "serve"), "block1/relu/moirai_order")
    relay.input[0] = "block1/BiasAdd:output:0"


@pytest.mark.parametrize(
    ("edit", "change", "disorder"),
    [
        (_forget_edge, "ReadVariableOp' of .* does not wait for 'block1/relu/moirai_order'", True),
        (_invent_edge, "block1/.* waits for 'block0/conv/ReadVariableOp', unplanned", False),
        (_forget_relay, "has lost node 'block1/relu/moirai_order'", True),
        (_turn_relay, "'block1/relu/moirai_order' of .* differs in its field 'input'", True),
    ],
)
def test_a_changed_order_is_found(
    edit: Callable[[Any], None],
    change: str,
    disorder: bool,
    ordered: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    path, placed = ordered
    (original,), (changed,) = (
        proto_of(p).meta_graphs for p in (path, edited(placed, tmp_path / "changed", edit))
    )
    plan = read_plan(placed)
    found = unplanned_changes(original, changed, plan)
    assert any(re.search(change, text) for text in found), found
    missing = disordered(changed, plan)
    assert bool(missing) == disorder
    assert all("block0/conv' does not wait for" in text for text in missing)


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (_forget_edge, "'block0/conv/ReadVariableOp' does not wait for 'block1/relu/moirai_order'"),
        (_forget_relay, "node 'block1/relu/moirai_order' of .* is not on /device:CPU:0"),
        (_turn_relay, "'block1/relu/moirai_order' does not pass on 'block1/relu:activations:0'"),
    ],
)
def test_a_model_whose_order_was_changed_is_not_stripped(
    edit: Callable[[Any], None], rule: str, ordered: tuple[Path, Path], tmp_path: Path
) -> None:
    changed = edited(ordered[1], tmp_path / "changed", edit)
    with pytest.raises(MoiraiError, match=rule):
        strip(changed, tmp_path / "out")


def _faults(ordered: tuple[Path, Path], **changes: Any) -> list[str]:
    (original,), (placed,) = (proto_of(p).meta_graphs for p in ordered)
    plan = read_plan(ordered[1])
    return unplanned_changes(original, placed, replace(plan, edits=replace(plan.edits, **changes)))


def test_edits_that_do_not_fit_are_named(ordered: tuple[Path, Path]) -> None:
    edits = read_plan(ordered[1]).edits
    (edge,), (relay,) = edits.order, edits.relays
    assert _faults(ordered) == []
    nowhere = _faults(ordered, order=(replace(edge, before="nobody"),))
    assert (
        "the plan's edge from 'nobody' to 'block0/conv/ReadVariableOp' does not fit" in nowhere[0]
    )
    unlisted = _faults(ordered, order=())
    assert any("waits for 'block1/relu/moirai_order', unplanned" in text for text in unlisted)
    for broken in (replace(relay, source="nobody:y:0"), replace(relay, dtype="flot")):
        assert (
            "relay 'block1/relu/moirai_order' does not fit" in _faults(ordered, relays=(broken,))[0]
        )
    moved = tuple(replace(e, after=GPU) if e.node == relay.node else e for e in edits.nodes)
    assert any("it would be a transfer" in text for text in _faults(ordered, nodes=moved))


def test_an_order_between_devices_is_none(ordered: tuple[Path, Path]) -> None:
    (placed,) = proto_of(ordered[1]).meta_graphs
    plan = read_plan(ordered[1])
    (pair,) = plan.order
    apart = replace(plan, placement={**plan.placement, pair.before: SECOND})
    assert "on one device" in disordered(placed, apart)[0]
    unknown = replace(plan, order=(Precedence("nobody", pair.after),))
    assert "does not wait for 'nobody'" in disordered(placed, unknown)[0]


def test_the_plan_file_holds_the_order(ordered: tuple[Path, Path]) -> None:
    file = ordered[1] / PLAN_FILE
    values = json.loads(file.read_text())
    assert values["schema"] == 6
    plan = read_plan(ordered[1])
    assert plan.order
    assert isinstance(plan.edits.order[0], OrderEdit)
    assert isinstance(plan.edits.relays[0], RelayEdit)
    assert NodeEdit(plan.edits.relays[0].function, plan.edits.relays[0].node, "", FIRST) in (
        plan.edits.nodes
    )
    for key in ("order", "relays"):
        broken = {**values, "edits": {k: v for k, v in values["edits"].items() if k != key}}
        file.write_text(json.dumps(broken))
        with pytest.raises(MoiraiError, match=rf"edits\.{key}: missing"):
            read_plan(ordered[1])


def test_plans_of_the_first_schema_have_no_order(ordered: tuple[Path, Path]) -> None:
    file = ordered[1] / PLAN_FILE
    values = json.loads(file.read_text())
    del values["order"], values["edits"]["order"], values["edits"]["relays"]
    file.write_text(json.dumps({**values, "schema": 1}))
    plan = read_plan(ordered[1])
    assert (plan.order, plan.edits.order, plan.edits.relays) == ((), (), ())

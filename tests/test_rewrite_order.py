"""The planned order in the model: which edges, no more than these, and the way back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moirai_tf import MoiraiItem
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.model.validate import violations
from moirai_tf.passes import Rewrite
from moirai_tf.pipeline import need
from moirai_tf.rewrite.apply import apply_placement
from moirai_tf.rewrite.diff import disordered, misplaced, unplanned_changes
from moirai_tf.rewrite.directory import remap, strip
from moirai_tf.rewrite.kept_order import reduced
from moirai_tf.rewrite.plan import NodeEdit, OrderEdit, Plan, Precedence, RelayEdit
from moirai_tf.rewrite.plan_file import PLAN_FILE, read_plan
from moirai_tf.rewrite.undo import rename_devices, revert
from tests.orders import coarse_of, depends, order_of, random_rows, waits_in, write_ordered
from tests.placements import CPUS, plan_of
from tests.saved_models import (
    digest,
    edited,
    function_of,
    node_of,
    proto_of,
    save_function,
    save_graph,
    zoo_options,
)
from tests.scatter import logical_cluster, scatter_pipeline
from tests.zoo import ZOO

ZooDir = Callable[[str], Path]
FIRST, SECOND = CPUS
CALL = "PartitionedCall/PartitionedCall/"
GPU = "/job:worker/replica:0/task:1/device:GPU:0"
VECTOR = tf.TensorSpec([4], tf.float32, "x")

tf1 = tf.compat.v1


def _names(*nodes: str) -> list[str]:
    return [CALL + node for node in nodes]


def _pairs(*pairs: tuple[str, str]) -> set[Precedence]:
    return {Precedence(CALL + a, CALL + b) for a, b in pairs}


def _branches(path: Path) -> Path:
    """x -> a, b, c;  a, b -> d;  c, d -> e."""

    @tf.function(input_signature=[VECTOR])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        d = tf.subtract(tf.tanh(x, "a"), tf.sigmoid(x, "b"), "d")
        return {"y": tf.multiply(tf.exp(x, "c"), d, "e")}

    return save_function(path, serve)


def test_only_what_the_data_leaves_open_becomes_an_edge(tmp_path: Path) -> None:
    path = _branches(tmp_path / "model")
    coarse = coarse_of(path)
    # Order c a b d e. b -> d and d -> e are data, so of the four neighbours c-a and a-b are left.
    order, placement = order_of(path, coarse, [_names("c", "a", "b", "d", "e")])
    assert set(order.promises) == _pairs(("c", "a"), ("a", "b"))
    assert (order.neighbours, order.left_out) == (4, 0)
    plan = write_ordered(path, tmp_path / "out", coarse, order, placement)
    (placed,) = proto_of(tmp_path / "out").meta_graphs
    body = function_of(placed, "serve")
    assert [list(node_of(body, n).input) for n in "abcde"] == [
        ["x", "^c"], ["x", "^a"], ["x"], ["a:y:0", "b:y:0"], ["c:y:0", "d:z:0"],
    ]  # fmt: skip
    assert plan.edits.relays == ()


def test_each_device_has_an_order_of_its_own(tmp_path: Path) -> None:
    path = _branches(tmp_path / "model")
    # CPU:0 runs b, then a: one edge. CPU:1 runs c alone; d and e follow by data.
    rows = [_names("b", "a", "d", "e"), _names("c")]
    order, _ = order_of(path, coarse_of(path), rows, _names("c"))
    assert set(order.promises) == _pairs(("b", "a"))


def test_transfers_and_control_edges_of_the_model_count(tmp_path: Path) -> None:
    @tf.function(input_signature=[VECTOR])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        a = tf.tanh(x, "a")
        with tf.control_dependencies([a]):
            b = tf.sigmoid(x, "b")
        c = tf.exp(tf.abs(a, "other"), "c")
        return {"y": tf.stack([a, b, c], name="d")}

    path = save_function(tmp_path / "model", serve)
    # a -> b is a control edge of the model. On CPU:0 a comes before c too, by way of CPU:1, where
    # `other` reads a. So of a b c d only b -> c is left: c -> d is data.
    rows = [_names("a", "b", "c", "d"), _names("other")]
    order, _ = order_of(path, coarse_of(path), rows, _names("other"))
    assert set(order.promises) == _pairs(("b", "c"))
    # Order a c: nothing to write, it follows from the two transfers.
    order, _ = order_of(path, coarse_of(path), [_names("a", "c")], _names("other"))
    assert order.promises == ()
    assert (order.neighbours, order.left_out) == (1, 0)


def _conv_blocks(path: Path) -> Path:
    kernels = [tf.Variable(tf.random.stateless_normal([3, 3, 2, 2], (i, 0))) for i in range(2)]
    biases = [tf.Variable(tf.random.stateless_normal([2], (i, 1))) for i in range(2)]

    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 2], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        def block(k: int) -> tf.Tensor:
            with tf.name_scope(f"block{k}"):
                conv = tf.nn.conv2d(x, kernels[k], 1, "SAME", name="conv")
                return tf.nn.relu(tf.nn.bias_add(conv, biases[k]), name="relu")

        return {"y": tf.concat([block(0), block(1)], -1, "y")}

    return save_function(path, serve, kernels=kernels, biases=biases)


def test_kernels_that_grappler_fuses_are_left_alone(tmp_path: Path) -> None:
    path = _conv_blocks(tmp_path / "model")
    coarse = coarse_of(path, fuse=True)
    call = "StatefulPartitionedCall/StatefulPartitionedCall/"
    rows = [[f"{call}block1/relu", f"{call}block0/relu"]]
    order, placement = order_of(path, coarse, rows)
    # The plan says: Conv2D of block 0 waits for Relu of block 1. Grappler makes each block one
    # kernel only if neither has control edges, so the read of the weights waits for an Identity.
    assert order.promises == (Precedence(f"{call}block1/relu", f"{call}block0/conv"),)
    plan = write_ordered(path, tmp_path / "out", coarse, order, placement)
    (edge,), (relay,) = plan.edits.order, plan.edits.relays
    assert (edge.node, edge.before) == ("block0/conv/ReadVariableOp", "block1/relu/moirai_order")
    assert (relay.node, relay.source, relay.dtype) == (
        "block1/relu/moirai_order", "block1/relu:activations:0", "float"
    )  # fmt: skip
    (placed,) = proto_of(tmp_path / "out").meta_graphs
    node = node_of(function_of(placed, "serve"), relay.node)
    assert (node.op, node.device) == ("Identity", FIRST)


def test_work_that_grappler_does_once_is_left_alone(tmp_path: Path) -> None:
    @tf.function(input_signature=[tf.TensorSpec([4, 4], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        one, two = tf.transpose(x, [1, 0], name="one"), tf.transpose(x, [1, 0], name="two")
        return {"y": tf.nn.softmax(one, name="p") + tf.tanh(two, "q")}

    path = save_function(tmp_path / "model", serve)
    # `one` and `two` compute the same; an edge to either would make Grappler keep both. So `two`
    # counts as done by `one`, and of one q p the neighbours one-q and q-p are left.
    order, _ = order_of(path, coarse_of(path), [_names("one", "q", "two", "p")])
    assert set(order.promises) == _pairs(("one", "q"), ("q", "p"))


def _twice(path: Path) -> Path:
    @tf.function
    def inner(x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(x, "p") * tf.exp(x, "q")

    @tf.function(input_signature=[VECTOR])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": inner(x) - inner(x + 1.0)}

    return save_function(path, serve)


def test_orders_that_differ_between_calls_make_a_clone(tmp_path: Path) -> None:
    path = _twice(tmp_path / "model")
    coarse = coarse_of(path)
    left, right = "PartitionedCall/", "PartitionedCall_1/"
    names = [f"{call}{node}" for call, node in
             ((left, "p"), (left, "q"), (right, "q"), (right, "p"))]  # fmt: skip
    order, placement = order_of(path, coarse, [_names(*names)])
    assert set(order.promises) == _pairs((names[0], names[1]), (names[2], names[3]))
    # The left q and the right q are in different bodies: of three neighbours one is not kept.
    assert (order.neighbours, order.left_out) == (3, 1)
    plan = write_ordered(path, tmp_path / "out", coarse, order, placement)
    ((clone, base),) = plan.edits.clones.items()
    edges = {e.function: (e.before, e.node) for e in plan.edits.order}
    assert edges == {base: ("p", "q"), clone: ("q", "p")}


def test_equal_orders_share_the_function(tmp_path: Path) -> None:
    path = _twice(tmp_path / "model")
    coarse = coarse_of(path)
    calls = ("PartitionedCall/", "PartitionedCall_1/")
    order, placement = order_of(path, coarse, [_names(*(c + n for c in calls for n in "qp"))])
    plan = write_ordered(path, tmp_path / "out", coarse, order, placement)
    assert plan.edits.clones == {}
    assert [(e.before, e.node) for e in plan.edits.order] == [("q", "p")]
    assert len(plan.order) == 2


def test_no_edge_that_would_close_a_cycle_through_a_call(tmp_path: Path) -> None:
    @tf.function
    def inner(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.tanh(x, "p"), tf.exp(y, "q")

    @tf.function(input_signature=[VECTOR])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        p, q = inner(x, tf.sigmoid(x, "before"))
        return {"after": tf.sqrt(p, "after"), "q": q}

    path = save_function(tmp_path / "model", serve)
    coarse = coarse_of(path)
    # Operators: x -> p -> after and x -> before -> q. `after` may well come before `before`, but
    # they are outputs and input of one call, which waits for all its inputs: the call would wait
    # for itself.
    order, placement = order_of(path, coarse, [_names("after", "before")])
    assert order.promises == ()
    assert (order.neighbours, order.left_out) == (1, 1)
    write_ordered(path, tmp_path / "out", coarse, order, placement)
    (placed,) = proto_of(tmp_path / "out").meta_graphs
    assert violations(placed) == []


def test_other_signatures_need_no_more_than_before(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        x, z = (tf1.placeholder(tf.float32, [4], name) for name in "xz")
        a, b = tf.tanh(z, "a"), tf.exp(x, "b")
        both = tf.add(a, b, "both")
        save_graph(tmp_path / "model", graph, {"x": x, "z": z}, {"y": both})

    def second(meta_graph: Any) -> None:
        other = meta_graph.signature_def["other"]
        other.CopyFrom(meta_graph.signature_def["serving_default"])
        del other.inputs["z"]
        other.outputs["y"].name = "b:0"

    path = edited(tmp_path / "model", tmp_path / "two", second)
    # If b waited for a, the signature `other`, which computes b alone, would want a feed for z.
    rows = [["a", "b"]]
    assert order_of(path, coarse_of(path), rows)[0].promises == ()
    alone = order_of(tmp_path / "model", coarse_of(tmp_path / "model"), rows)[0]
    assert alone.promises == (Precedence("a", "b"),)


def test_tf1_control_flow_keeps_the_order_of_the_runtime(zoo_dir: ZooDir) -> None:
    coarse = coarse_of(zoo_dir("tf1"), **zoo_options("tf1"))
    rows, second = random_rows(coarse, 0)
    assert order_of(zoo_dir("tf1"), coarse, rows, second)[0].waits == {}


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


@pytest.fixture
def ordered(tmp_path: Path) -> tuple[Path, Path]:
    """`_conv_blocks`, and the same with an order that takes a relay."""
    path = _conv_blocks(tmp_path / "model")
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
    assert values["schema"] == 4
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


def _rewritten(path: Path, output: Path, name: str, order: str, devices: int = 3) -> MoiraiItem:
    pipeline = scatter_pipeline(ZOO[name], output / order, devices).without("verify")
    (step,) = (step for step in pipeline.passes if isinstance(step, Rewrite))
    ordered = pipeline.replaced(replace(step, order=order))
    return ordered.run(MoiraiItem(path, logical_cluster(devices)))


@pytest.mark.parametrize("devices", [1, 3])
def test_auto_writes_the_order_where_several_devices_work(
    devices: int, zoo_dir: ZooDir, tmp_path: Path
) -> None:
    path = zoo_dir("ensemble")
    plans = {
        order: need(_rewritten(path, tmp_path, "ensemble", order, devices).plan)
        for order in ("auto", "planned", "runtime")
    }
    assert plans["runtime"].edits.order == ()
    assert plans["runtime"].summary.order is None
    assert plans["planned"].edits.order
    assert plans["planned"].summary.order.edges == len(plans["planned"].order)
    same = plans["planned" if devices > 1 else "runtime"]
    assert (plans["auto"].order, plans["auto"].edits) == (same.order, same.edits)
    assert plans["planned"].options["place"] == plans["runtime"].options["place"]


def test_an_order_that_nobody_planned_cannot_be_written(zoo_dir: ZooDir, tmp_path: Path) -> None:
    item = _rewritten(zoo_dir("cond"), tmp_path, "cond", "runtime")
    bare = replace(item, result=None)
    step = Rewrite(output_dir=str(tmp_path / "out"), order="planned")
    with pytest.raises(MoiraiError, match="no pass before this one made a schedule"):
        step(bare)
    assert need(replace(step, order="auto")(bare).plan).order == ()

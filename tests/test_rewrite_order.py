"""The planned order in the model: which edges, and no more than these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from moirai_tf import MoiraiItem
from moirai_tf.errors import MoiraiError
from moirai_tf.model.validate import violations
from moirai_tf.passes import Rewrite
from moirai_tf.pipeline import need
from moirai_tf.rewrite.plan import Precedence
from tests.orders import (
    FIRST,
    coarse_of,
    conv_blocks,
    order_of,
    random_rows,
    write_ordered,
)
from tests.saved_models import (
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
CALL = "PartitionedCall/PartitionedCall/"
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


def test_kernels_that_grappler_fuses_are_left_alone(tmp_path: Path) -> None:
    path = conv_blocks(tmp_path / "model")
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

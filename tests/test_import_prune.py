"""Pruning keeps what the outputs and the outside world need, and the order that they need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from moirai_tf.graph.graph import Graph, dump_graph
from moirai_tf.graph.prune import prune
from tests.saved_models import edited, graph_of, ops_of, save_function, save_graph, zoo_options
from tests.zoo import SMALL

ZooDir = Callable[[str], Path]
X = tf.TensorSpec([None, 4], tf.float32, "x")

tf1 = tf.compat.v1


def _controls(graph: Graph, op: str) -> set[str]:
    """Ops that the only operator of that op waits for."""
    (found,) = (o for o in graph.operators if o.op == op)
    return {graph.operators[c].op for c in found.controls}


def test_unused_operators_and_no_ops_go(tmp_path: Path) -> None:
    w = tf.Variable(tf.random.normal([4, 4]))

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.exp(x)
        return {"y": tf.matmul(x, w)}

    graph = graph_of(save_function(tmp_path / "model", serve, w=w))
    assert {"Exp", "NoOp"} <= set(ops_of(graph))
    pruned = prune(graph)
    assert not {"Exp", "NoOp"} & set(ops_of(pruned))
    assert {"Placeholder", "MatMul", "ReadVariableOp", "VarHandleOp"} <= set(ops_of(pruned))
    assert all(not operator.controls for operator in pruned.operators)


def test_inputs_that_nothing_reads_stay(tmp_path: Path) -> None:
    @tf.function(input_signature=[X, tf.TensorSpec([], tf.bool, "training")])
    def serve(x: tf.Tensor, training: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.relu(x)}

    pruned = prune(graph_of(save_function(tmp_path / "model", serve)))
    assert set(pruned.inputs) == {"x", "training"}
    assert pruned.operators[pruned.inputs["training"]].op == "Placeholder"
    assert pruned.operators[pruned.outputs["y"]].op == "_Retval"


def test_side_effects_stay_in_their_order(tmp_path: Path) -> None:
    counter = tf.Variable(0)

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        counter.assign_add(1)
        tf.print("seen", tf.reduce_sum(x))
        return {"y": x * 2.0, "n": counter.read_value()}

    pruned = prune(graph_of(save_function(tmp_path / "model", serve, counter=counter)))
    assert {"AssignAddVariableOp", "PrintV2", "StringFormat", "Sum"} <= set(ops_of(pruned))
    # Reading the counter waits for the addition, as the program says.
    assert _controls(pruned, "ReadVariableOp") == {"AssignAddVariableOp"}


@pytest.mark.parametrize("assigns", [True, False])
def test_loops_have_the_side_effects_of_their_bodies(assigns: bool, tmp_path: Path) -> None:
    counter = tf.Variable(0)

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        for _ in tf.range(3):
            if assigns:
                counter.assign_add(1)
            else:
                counter.read_value()
        return {"y": x * 2.0}

    pruned = prune(graph_of(save_function(tmp_path / "model", serve, counter=counter)))
    assert ("While" in ops_of(pruned)) == assigns


def _loop(v: tf.Tensor, u: tf.Tensor, body: Callable[[tf.Tensor], tf.Tensor] = tf.sin) -> Any:
    """Variables: counter, maximum of iterations, i, v and u; the body reads u for u alone."""
    return tf.while_loop(
        lambda i, *_: i < 5, lambda i, v, u: (i + 1, v * 2 + body(v), u + 1.0), (0, v, u)
    )


def _names(graph: Graph) -> set[str]:
    return {o.node.name for o in graph.operators}


def _unread(graph: Graph, op: str) -> list[tuple[int, str]]:
    (found,) = (o for o in graph.operators if op in o.op)
    return [(unread.position, unread.node) for unread in found.unread]


@pytest.mark.parametrize("read", [False, True])
def test_what_feeds_a_loop_variable_that_nobody_reads_goes(read: bool, tmp_path: Path) -> None:
    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        _, v, u = _loop(tf.tanh(x), tf.exp(tf.cos(x)))
        return {"y": v + u if read else v}

    graph = graph_of(save_function(tmp_path / "model", serve))
    pruned = prune(graph)
    # The counter stays: the functions of a loop wait for its first variable.
    assert {"while/loop_counter", "Tanh"} <= _names(pruned)
    gone = {"while/maximum_iterations"} if read else {"while/maximum_iterations", "Exp", "Cos"}
    assert _names(graph) - _names(pruned) == gone
    assert _unread(pruned, "While") == [(1, "while/maximum_iterations"), (4, "Exp")][: 2 - read]


def test_a_loop_whose_body_is_not_inlined_needs_all_of_its_variables(tmp_path: Path) -> None:
    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": _loop(tf.tanh(x), tf.exp(tf.cos(x)))[1]}

    def mark(meta_graph: Any) -> None:
        for function in meta_graph.graph_def.library.function:
            function.attr["_noinline"].b = "while_body" in function.signature.name

    model = save_function(tmp_path / "model", serve)
    pruned = prune(graph_of(edited(model, tmp_path / "marked", mark)))
    assert {"while/maximum_iterations", "Exp", "Cos"} <= _names(pruned)
    assert _unread(pruned, "While") == []


def test_an_unread_variable_may_come_from_what_others_read(tmp_path: Path) -> None:
    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.exp(x)
        return {"y": _loop(tf.tanh(y), y)[1]}

    pruned = prune(graph_of(save_function(tmp_path / "model", serve)))
    assert "Exp" in _names(pruned)
    assert _unread(pruned, "While") == [(1, "while/maximum_iterations"), (4, "Exp")]
    (loop,) = (o for o in pruned.operators if "While" in o.op)
    read = {pruned.operators[ref.producer].node.name for ref in loop.inputs}
    assert read == {"while/loop_counter", "Const", "Tanh"}


def test_a_loop_that_is_awaited_needs_all_of_its_variables(tmp_path: Path) -> None:
    """Its end waits for every one of them, and it prints."""

    def body(v: tf.Tensor) -> tf.Tensor:
        tf.print("turn")
        return tf.sin(v)

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": _loop(tf.tanh(x), tf.exp(tf.cos(x)), body)[1]}

    pruned = prune(graph_of(save_function(tmp_path / "model", serve)))
    assert {"while/maximum_iterations", "Exp", "Cos"} <= _names(pruned)
    assert _unread(pruned, "While") == []


@pytest.mark.parametrize("fetched", [False, True])
def test_a_loop_that_is_fetched_needs_all_of_its_variables(fetched: bool, tmp_path: Path) -> None:
    """All outputs of what is fetched by its own name are kept together."""
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [4], "x")
        v = _loop(tf.tanh(x), tf.exp(x))[1]  # an Identity of the loop's fourth output
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": v.op.inputs[0] if fetched else v})
    names = _names(prune(graph_of(tmp_path / "model")))
    assert ("Exp" in names, "while/maximum_iterations" in names) == (fetched, fetched)


def test_what_only_an_unread_result_of_a_branch_needs_goes(tmp_path: Path) -> None:
    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y, z = tf.exp(tf.tanh(x)), tf.sin(x)
        kept, _ = tf.cond(tf.reduce_sum(x) > 0, lambda: (x + z, y * 2), lambda: (z, y))
        return {"y": kept * 2}

    pruned = prune(graph_of(save_function(tmp_path / "model", serve)))
    assert not {"Exp", "Tanh"} & _names(pruned)
    assert [node for _, node in _unread(pruned, "If")] == ["Exp"]


def test_what_only_an_unread_result_of_a_case_needs_goes(tmp_path: Path) -> None:
    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        one, two = tf.exp(x), tf.cos(x)
        chosen = tf.cast(tf.reduce_sum(x), tf.int32)
        kept, _ = tf.switch_case(chosen, [lambda: (x, one), lambda: (two, one), lambda: (x, x)])
        return {"y": kept * 2}

    pruned = prune(graph_of(save_function(tmp_path / "model", serve)))
    assert [node for _, node in _unread(pruned, "Case")] == ["Exp"]
    assert "Cos" in _names(pruned)


def test_control_edges_from_harmless_operators_go(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [4], "x")
        harmless = tf.exp(x, name="harmless")
        with tf.control_dependencies([harmless]):
            barrier = tf.no_op("barrier")
        with tf.control_dependencies([barrier]):
            y = tf.nn.relu(x, name="y")
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": y})
    graph = graph_of(tmp_path / "model")
    assert _controls(graph, "Relu") == {"NoOp"}
    assert ops_of(prune(graph)) == ["Placeholder", "Relu", "_Retval"]


def test_no_ops_hand_on_what_they_wait_for(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [4], "x")
        printed = tf1.Print(x, [x], name="printed")
        with tf.control_dependencies([printed]):
            first = tf.no_op("first")
        with tf.control_dependencies([first]):
            second = tf.no_op("second")
        with tf.control_dependencies([second]):
            y = tf.nn.relu(x, name="y")
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": y})
    assert _controls(prune(graph_of(tmp_path / "model")), "Relu") == {"Print"}


def test_control_edges_of_tensorflow_1_control_flow_stay(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("tf1"))
    pruned = prune(graph)
    # The constants of the loop's body wait for the loop to turn: they would be outside otherwise.
    for operator in pruned.operators:
        if operator.op == "Const" and operator.name.startswith("while/"):
            assert operator.controls
    assert ops_of(pruned).count("NextIteration") == 2


def test_colocation_follows(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("lstm"), **zoo_options("lstm"))
    pruned = prune(graph)
    assert len(pruned) < len(graph)
    before = {g.reason: {graph.operators[m].name for m in g.members} for g in graph.colocation}
    for group in pruned.colocation:
        names = {pruned.operators[m].name for m in group.members}
        assert len(names) > 1
        assert names <= before[group.reason]


@pytest.mark.parametrize("name", SMALL)
def test_pruning_twice_changes_nothing(name: str, zoo_dir: ZooDir) -> None:
    once = prune(graph_of(zoo_dir(name), **zoo_options(name)))
    assert dump_graph(prune(once)) == dump_graph(once)
    assert all(producer < consumer for producer, consumer in once.edges())

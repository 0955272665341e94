"""Which operators must share a device, and the reason that is given for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from moirai_tf.graph.graph import Graph
from tests.saved_models import (
    edited,
    function_of,
    graph_of,
    node_of,
    save_function,
    save_graph,
    zoo_options,
)

ZooDir = Callable[[str], Path]
X = tf.TensorSpec([None, 4], tf.float32, "x")

tf1 = tf.compat.v1


def _groups(graph: Graph) -> dict[str, set[str]]:
    """Reason -> ops of the members, or their names in a graph of TensorFlow 1."""
    return {
        group.reason: {graph.operators[m].name for m in group.members} for group in graph.colocation
    }


def _ops(graph: Graph, names: set[str]) -> list[str]:
    return sorted(graph.operators[graph.index[name]].op for name in names)


def _group_of(graph: Graph, op: str) -> tuple[str, set[str]]:
    """Reason and members of the only group that holds an op."""
    (found,) = (
        (reason, names) for reason, names in _groups(graph).items() if op in _ops(graph, names)
    )
    return found


def _near(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """Asks for the device of another node of the graph."""
    near = tf1.AttrValue.ListValue(s=[f"loc:@{name}".encode()])
    tensor.op._set_attr("_class", tf1.AttrValue(list=near))
    return tensor


def test_readers_stay_with_their_variable(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("tied_embeddings"))
    groups = _groups(graph)
    # The embedding is gathered at the start and multiplied with at the end; the other matrix
    # has one reader.
    assert sorted(_ops(graph, names) for names in groups.values()) == [
        ["ReadVariableOp", "ResourceGather", "VarHandleOp"],
        ["ReadVariableOp", "VarHandleOp"],
    ]
    assert set(groups) == {"resource Variable", "resource Variable_1"}


def test_lookups_stay_with_their_table(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("lookup_table"))
    reason, names = _group_of(graph, "HashTableV2")
    assert reason == "resource hash_table"
    assert _ops(graph, names) == ["HashTableV2", "LookupTableFindV2"]


def test_both_calls_of_a_function_meet_at_its_variable(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("called_twice"))
    for names in _groups(graph).values():
        assert _ops(graph, names) == ["ReadVariableOp", "ReadVariableOp", "VarHandleOp"]


def test_reference_edges(zoo_dir: ZooDir) -> None:
    groups = _groups(graph_of(zoo_dir("tf1")))
    (reason,) = (r for r, names in groups.items() if "reference/bias" in names)
    assert reason.split("; ")[0] == "reference reference/bias"
    assert groups[reason] == {"reference/bias", "reference/bias/read"}


def test_class_attributes_name_operators_of_their_own_scope(tmp_path: Path) -> None:
    @tf.function
    def inner(a: tf.Tensor) -> tf.Tensor:
        first = tf.nn.relu(a, name="first")
        with tf1.colocate_with(first):
            return tf.tanh(a, name="second")

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": inner(x) + inner(x + 1.0)}

    graph = graph_of(save_function(tmp_path / "model", serve))
    found = [g for g in graph.colocation if g.reason == "loc:@first"]
    assert len(found) == 2
    for group in found:
        members = [graph.operators[m] for m in group.members]
        assert sorted(o.op for o in members) == ["Relu", "Tanh"]
        assert len({o.scope for o in members}) == 1


def test_a_class_that_names_no_operator_stays_with_the_client(tmp_path: Path) -> None:
    """Python's loaders take away the device of whatever asks for that of a node without one."""
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [4], "x")
        tf.tanh(x, name="unused")
        y = _near(tf.nn.relu(x, name="y"), "unused")
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": tf.sin(y, name="z")})
    assert _groups(graph_of(tmp_path / "model")) == {"loc:@unused": {"x", "y"}}


def test_a_class_that_names_an_argument_means_its_source(tmp_path: Path) -> None:
    """And the client, where Python's loaders leave what bears it."""

    @tf.function
    def inner(a: tf.Tensor) -> tf.Tensor:
        return tf.tanh(tf.sin(a), name="last")

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": inner(tf.nn.relu(x))}

    def edit(meta_graph: Any) -> None:
        node = node_of(function_of(meta_graph, "inner"), "last")
        node.attr["_class"].list.s.append(b"loc:@a")

    source = save_function(tmp_path / "model", serve)
    graph = graph_of(edited(source, tmp_path / "edited", edit))
    reason, names = _group_of(graph, "Tanh")
    assert (reason, _ops(graph, names)) == ("loc:@a", ["Placeholder", "Relu", "Tanh"])


def test_readers_stay_with_a_variant(tmp_path: Path) -> None:
    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.TensorArray(tf.float32, 2).write(0, x[0]).write(1, x[1])
        return {"y": tf.sin(rows.stack()), "z": rows.read(1)}

    graph = graph_of(save_function(tmp_path / "model", serve), batch_size=2)
    reason, names = _group_of(graph, "TensorListReserve")
    assert reason.startswith("variant PartitionedCall/PartitionedCall/TensorArrayV2;")
    assert _ops(graph, names) == [
        "TensorListGetItem", "TensorListReserve", "TensorListSetItem", "TensorListSetItem",
        "TensorListStack",
    ]  # fmt: skip


def test_a_switch_stays_with_its_data(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [4], "x")
        no, yes = tf.raw_ops.Switch(data=tf.exp(x), pred=tf.reduce_sum(x) > 0, name="s")
        y, _ = tf.raw_ops.Merge(inputs=[tf.sin(no), tf.cos(yes)])
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": y})
    assert _groups(graph_of(tmp_path / "model")) == {"data of Switch s": {"Exp", "s"}}


def test_handles_of_one_shared_name_are_one_resource(tmp_path: Path) -> None:
    def read(name: str, shared: str, container: str = "") -> tf.Tensor:
        handle = tf.raw_ops.VarHandleOp(
            dtype=tf.float32, shape=[4], shared_name=shared, container=container, name=name
        )
        return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32, name=f"{name}/read")

    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [4], "x")
        same = x + read("a", "weight") + read("b", "weight")
        y = tf.add(same + read("c", "weight", "other"), read("d", "bias"), name="y")
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": y})
    groups = _groups(graph_of(tmp_path / "model"))
    assert {frozenset(names) for names in groups.values()} == {
        frozenset({"a", "a/read", "b", "b/read"}),
        frozenset({"c", "c/read"}),
        frozenset({"d", "d/read"}),
    }
    (reason,) = (r for r, names in groups.items() if "a" in names)
    assert "shared name weight" in reason


def test_a_loop_of_tensorflow_1_is_one_group(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("tf1"))
    reason, names = _group_of(graph, "LoopCond")
    assert "loop of while/Enter" in reason
    inside = {o.name for o in graph.operators if o.name.startswith("while/")}
    assert inside <= names
    assert "resource/gate" in names
    assert "logits" not in names
    assert "MatMul" not in names


def test_loop_and_what_feeds_it(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("lstm"), **zoo_options("lstm"))
    for i, operator in enumerate(graph.operators):
        if operator.op != "While":
            continue
        (group,) = (g for g in graph.colocation if i in g.members)
        sources = {ref.producer for ref in operator.inputs if graph.spec(ref).dtype != "resource"}
        assert sources <= set(group.members)
        assert f"inputs of While {operator.name}" in group.reason or "more" in group.reason


def test_branch_and_what_feeds_it(tmp_path: Path) -> None:
    @tf.function(input_signature=[X, tf.TensorSpec([], tf.bool, "p")])
    def serve(x: tf.Tensor, p: tf.Tensor) -> dict[str, tf.Tensor]:
        a = tf.nn.relu(x)
        chosen = tf.cond(tf.math.logical_not(p), lambda: tf.tanh(a), lambda: -a)
        return {"y": tf.sigmoid(chosen)}

    graph = graph_of(save_function(tmp_path / "model", serve))
    reason, names = _group_of(graph, "StatelessIf")
    (branch,) = (o.name for o in graph.operators if o.op == "StatelessIf")
    assert reason == f"inputs of StatelessIf {branch}"
    assert _ops(graph, names) == ["LogicalNot", "Relu", "StatelessIf"]


def test_branch_that_reads_a_call_stays_with_the_client(tmp_path: Path) -> None:
    @tf.function
    def inner(a: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(a)

    @tf.function(input_signature=[X, tf.TensorSpec([], tf.bool, "p")])
    def serve(x: tf.Tensor, p: tf.Tensor) -> dict[str, tf.Tensor]:
        a = inner(x)
        return {"y": tf.cond(tf.math.logical_not(p), lambda: tf.tanh(a), lambda: -a)}

    graph = graph_of(save_function(tmp_path / "model", serve))
    reason, names = _group_of(graph, "StatelessIf")
    assert "reads a call's result or a feed directly" in reason
    assert "Placeholder" in _ops(graph, names)


def test_independent_operators_are_free(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("mlp"))
    held = {m for group in graph.colocation for m in group.members}
    free = [o.op for i, o in enumerate(graph.operators) if i not in held]
    assert {"MatMul", "Relu", "Placeholder", "_Retval"} <= set(free)
    assert {graph.operators[m].op for m in held} == {"VarHandleOp", "ReadVariableOp"}


def test_long_reasons_are_counted(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [4], "x")
        y = x
        for before, name in zip("xabcd", "abcde", strict=True):
            y = _near(tf.nn.relu(y, name=name), before)
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": y})
    (group,) = graph_of(tmp_path / "model").colocation
    # x to e form one chain of five constraints: three are shown.
    assert len(group.members) == 6
    assert group.reason.endswith("and 2 more")

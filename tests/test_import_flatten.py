"""A signature becomes one flat graph: calls inlined, control flow and kept functions whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.python.framework import function as legacy
from tensorflow.python.ops import gen_lookup_ops as lookup

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph
from tests.saved_models import (
    Edit,
    edited,
    function_of,
    graph_of,
    node_of,
    ops_of,
    save_function,
    save_graph,
    scope_names,
    zoo_options,
)
from tests.zoo import SMALL

ZooDir = Callable[[str], Path]
X = tf.TensorSpec([None, 4], tf.float32, "x")

tf1 = tf.compat.v1


def _inputs(graph: Graph, name: str) -> list[str]:
    """Names of what an operator reads, with the port where it is not the first."""
    operator = graph.operators[graph.index[name]]
    return [
        graph.operators[ref.producer].name + (f":{ref.port}" if ref.port else "")
        for ref in operator.inputs
    ]


def test_function_called_twice_makes_two_scopes(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("called_twice"))
    # embed() has four convolutions; serve() calls it for `left` and for `right`.
    convolutions = [o for o in graph.operators if o.op == "Conv2D"]
    assert len(convolutions) == 2 * 4
    assert len({o.scope for o in convolutions}) == 2
    assert len({o.scope.function for o in convolutions}) == 1
    assert ops_of(graph).count("VarHandleOp") == 4
    assert scope_names(graph, "Conv2D") == [
        "StatefulPartitionedCall/StatefulPartitionedCall/StatefulPartitionedCall/Conv2D",
        "StatefulPartitionedCall/StatefulPartitionedCall/StatefulPartitionedCall_1/Conv2D",
    ]


def test_nested_calls_are_wired_through(tmp_path: Path) -> None:
    @tf.function
    def innermost(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return b, tf.add(a, b, name="sum")

    @tf.function
    def inner(a: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return innermost(a, tf.nn.relu(a, name="relu"))

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        passed, added = inner(x)
        return {"y": tf.subtract(added, passed, name="difference")}

    graph = graph_of(save_function(tmp_path / "model", serve))
    (added,) = (o for o in graph.operators if o.op == "AddV2")
    called = [name.split("_")[3] for name in added.scope.functions]
    assert called == ["signature", "serve", "inner", "innermost"]
    assert added.name == f"{added.scope.prefix}sum"
    (relu,) = scope_names(graph, "relu")
    (feed,) = graph.inputs
    assert _inputs(graph, added.name) == [f"serving_default_{feed}", relu]
    # Identities end each function; through them, the difference reads the sum and the ReLU.
    (difference,) = scope_names(graph, "difference")
    ends = [_through_identities(graph, name) for name in _inputs(graph, difference)]
    assert ends == [added.name, relu]


def _through_identities(graph: Graph, name: str) -> str:
    while graph.operators[graph.index[name]].op == "Identity":
        (name,) = _inputs(graph, name)
    return name


@pytest.mark.parametrize(
    ("name", "op", "count", "inside"),
    [("lstm", "While", 3, "MatMul"), ("cond", "If", 1, "Tanh"), ("switch_case", "Case", 1, "Relu")],
)
def test_control_flow_is_one_operator(
    name: str, op: str, count: int, inside: str, zoo_dir: ZooDir
) -> None:
    graph = graph_of(zoo_dir(name), **zoo_options(name))
    assert ops_of(graph).count(op) == count
    functions = {f.signature.name: f for f in graph.library.function}
    for operator in graph.operators:
        if operator.op == op:
            bodies = [v.func.name for v in operator.node.attr.values() if v.HasField("func")]
            bodies += [f.name for v in operator.node.attr.values() for f in v.list.func]
            assert len(bodies) in (2, 3)
            assert any(inside in {n.op for n in functions[b].node_def} for b in bodies)
            assert not {o.scope.function for o in graph.operators} & set(bodies)


def _two_calls(path: Path) -> Path:
    """serve() calls inner() once; the call is the node `StatefulPartitionedCall` or the like."""

    @tf.function
    def inner(a: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(a + 1.0)

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.tanh(inner(x * 2.0))}

    return save_function(path, serve)


def _mark_node(attribute: str) -> Edit:
    def edit(meta_graph: Any) -> None:
        node_of(function_of(meta_graph, "serve"), "PartitionedCall").attr[attribute].b = True

    return edit


def _mark_function(attribute: str) -> Edit:
    def edit(meta_graph: Any) -> None:
        function_of(meta_graph, "inner").attr[attribute].b = True

    return edit


@pytest.mark.parametrize(
    "edit",
    [_mark_function("_noinline"), _mark_function("api_implements"), _mark_node("_XlaMustCompile")],
    ids=["noinline function", "one of several implementations", "call that XLA compiles"],
)
def test_what_the_runtime_does_not_inline_stays_one_operator(edit: Edit, tmp_path: Path) -> None:
    inlined = graph_of(_two_calls(tmp_path / "model"))
    assert "Relu" in ops_of(inlined)
    assert "PartitionedCall" not in ops_of(inlined)
    kept = graph_of(edited(tmp_path / "model", tmp_path / "edited", edit))
    assert "Relu" not in ops_of(kept)
    assert ops_of(kept).count("PartitionedCall") == 1


@pytest.mark.parametrize(
    "edit",
    [_mark_node("_noinline"), _mark_node("api_implements"), _mark_function("_XlaMustCompile")],
    ids=["noinline call", "call of an implementation", "function that XLA compiles elsewhere"],
)
def test_marks_in_the_wrong_place_count_for_nothing(edit: Edit, tmp_path: Path) -> None:
    _two_calls(tmp_path / "model")
    inlined = graph_of(edited(tmp_path / "model", tmp_path / "edited", edit))
    assert "Relu" in ops_of(inlined)
    assert "PartitionedCall" not in ops_of(inlined)


def _table_call(path: Path, *, control_edge: bool, read: bool, control_output: bool = True) -> Path:
    """A TF1 graph that calls a function with a stateful lookup."""

    @tf.function
    def look(table: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        return lookup.lookup_table_find_v2(table, keys, tf.constant(-1.0))

    with tf.Graph().as_default() as graph_v1:
        k = tf1.placeholder(tf.int64, [3], "k")
        table = lookup.hash_table_v2(tf.int64, tf.float32, shared_name="table")
        found = look(table, k)
        with tf.control_dependencies([found.op] if control_edge else []):
            y = tf.add(found if read else tf.cast(k, tf.float32), 1.0, name="y")
        outputs = {"y": y} if read or control_edge else {"y": found}
        save_graph(path, graph_v1, {"k": k}, outputs)
    if control_output:
        return path

    def edit(meta_graph: Any) -> None:
        function_of(meta_graph, "look").control_ret.clear()

    return edited(path, path.with_name("edited"), edit)


@pytest.mark.parametrize(
    ("inlined", "options"),
    [
        (True, {"control_edge": True, "read": True}),
        (True, {"control_edge": True, "read": False}),
        (True, {"control_edge": False, "read": False}),
        (False, {"control_edge": False, "read": True}),
        (False, {"control_edge": True, "read": True, "control_output": False}),
    ],
    ids=["waited for", "only waited for", "fetched", "only read", "no control output"],
)
def test_stateful_functions_are_inlined_if_their_effects_are_awaited(
    inlined: bool, options: dict[str, bool], tmp_path: Path
) -> None:
    """Nobody who only reads a result asks for the rest of a function: a Session keeps the call.

    A fetched call that no node reads has a control edge to the end of the graph.
    """
    ops = ops_of(graph_of(_table_call(tmp_path / "model", **options)))
    assert ("LookupTableFindV2" in ops, "StatefulPartitionedCall" in ops) == (inlined, not inlined)


def test_jit_compiled_function_stays_one_operator(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("jit_compile"))
    assert {"Softmax", "StatefulPartitionedCall"} <= set(ops_of(graph))
    assert not {"Tanh", "Relu"} & set(ops_of(graph))


def test_native_function_op_stays_one_operator(tmp_path: Path) -> None:
    @legacy.Defun(tf.float32, tf.float32, func_name="split_sum")
    def split_sum(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return a + b, a - b

    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [None, 4], "x")
        total, difference = split_sum(x, x * 2.0)
        y = tf.multiply(difference, total, name="y")
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": y})
    graph = graph_of(tmp_path / "model")
    (call,) = (o for o in graph.operators if o.op == "split_sum")
    assert [spec.dtype for spec in call.outputs] == ["float32", "float32"]
    assert _inputs(graph, "y") == [f"{call.name}:1", call.name]


def test_outputs_of_a_node_in_a_function_are_numbered_through(tmp_path: Path) -> None:
    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        values, indices = tf.math.top_k(x, 2)
        first, second = tf.split(values, 2, axis=1)
        return {"y": second - first, "i": indices}

    graph = graph_of(save_function(tmp_path / "model", serve))
    (top,) = (o.name for o in graph.operators if o.op == "TopKV2")
    (split,) = (o.name for o in graph.operators if o.op == "Split")
    (sub,) = (o.name for o in graph.operators if o.op == "Sub")
    assert _inputs(graph, sub) == [f"{split}:1", split]
    assert _inputs(graph, split)[1] == top
    (indices,) = _inputs(graph, "_retval_i")
    assert _inputs(graph, _inputs(graph, indices)[0]) == [f"{top}:1"]


def test_loop_of_tensorflow_1_loses_its_back_edge_only(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("tf1"))
    ops = ops_of(graph)
    assert ops.count("NextIteration") == ops.count("LoopCond") * 2 == 2
    for operator in graph.operators:
        sources = [graph.operators[ref.producer].op for ref in operator.inputs]
        if operator.op == "Merge" and sources[0] == "Enter":
            assert sources == ["Enter"]
        elif operator.op == "Merge":
            assert sources == ["Sigmoid", "AddV2"]


def test_nested_loops_of_tensorflow_1(tmp_path: Path) -> None:
    was_enabled = tf1.control_flow_v2_enabled()
    tf1.disable_control_flow_v2()
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [2, 4], "x")

        def outer(i: tf.Tensor, a: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            _, b = tf1.while_loop(
                lambda j, _: j < 2, lambda j, b: (j + 1, tf.tanh(b)), (0, a), name="inner"
            )
            return i + 1, b * 2.0

        _, y = tf1.while_loop(lambda i, _: i < 3, outer, (0, x), name="outer")
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": y})
    if was_enabled:
        tf1.enable_control_flow_v2()
    graph = graph_of(tmp_path / "model")
    assert ops_of(graph).count("NextIteration") == 4
    (loop,) = (g for g in graph.colocation if len(g.members) > 1)
    inside = {graph.operators[m].name for m in loop.members}
    # All but what is made before the outer loop begins: the input and the counter's first value.
    assert inside == set(graph.index) - {"x", "outer/Const", "_retval_y"}


def test_fed_node_becomes_a_placeholder_and_loses_its_past(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph_v1:
        raw = tf1.placeholder(tf.string, [], "raw")
        decoded = tf.io.decode_raw(raw, tf.float32, name="decoded")
        decoded.set_shape([8])
        y = tf.nn.relu(decoded, name="y")
        save_graph(tmp_path / "model", graph_v1, {"x": decoded}, {"y": y})
    graph = graph_of(tmp_path / "model")
    assert ops_of(graph) == ["Placeholder", "Relu", "_Retval"]
    fed = graph.operators[graph.inputs["x"]]
    assert (fed.name, str(fed.outputs[0])) == ("decoded", "float32[8]")
    assert fed.node.attr["dtype"].type == tf.float32.as_datatype_enum


def test_parts_of_composite_inputs_are_numbered(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph_v1:
        sparse = tf1.sparse_placeholder(tf.float32, [None, 6], "sparse")
        ragged = tf1.ragged.placeholder(tf.float32, 1, [], "ragged")
        y = tf.sparse.reduce_sum(sparse) + tf.reduce_sum(ragged.flat_values)
        save_graph(tmp_path / "model", graph_v1, {"s": sparse, "r": ragged}, {"y": y})
    shapes = ("s/0=5,2", "s/1=5", "s/2=2", "r/0=7", "r/1=4")
    graph = graph_of(tmp_path / "model", input_shapes=shapes)
    found = {key: str(graph.operators[i].outputs[0]) for key, i in graph.inputs.items()}
    assert found == {
        "r/0": "float32[7]",
        "r/1": "int64[4]",
        "s/0": "int64[5,2]",
        "s/1": "float32[5]",
        "s/2": "int64[2]",
    }
    with pytest.raises(MoiraiError, match="unknown: 'r/0'") as caught:
        graph_of(tmp_path / "model")
    assert "'s/0=2,2', 's/1=2')" in caught.value.fix
    graph_of(tmp_path / "model", input_shapes=("r/0=2", "r/1=2", "s/0=2,2", "s/1=2"))


def test_output_that_is_an_input(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [3], "x")
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"same": x})
    graph = graph_of(tmp_path / "model")
    assert _inputs(graph, "_retval_same") == ["x"]


def test_choosing_a_metagraph(zoo_dir: ZooDir) -> None:
    path = zoo_dir("tf1_two_metagraphs")
    assert set(graph_of(path).outputs) == {"logits"}
    assert graph_of(path).tags == ("serve",)
    hidden = graph_of(path, tags=("hidden", "serve"))
    assert set(hidden.outputs) == {"hidden", "logits"}
    assert hidden.tags == ("hidden", "serve")


def test_choosing_a_signature(zoo_dir: ZooDir) -> None:
    path = zoo_dir("two_signatures")
    assert set(graph_of(path).outputs) == {"logits"}
    encoder = graph_of(path, signature="encode")
    assert set(encoder.outputs) == {"code"}
    assert ops_of(encoder).count("MatMul") == 1


@pytest.mark.parametrize("name", SMALL)
def test_flat_graphs_are_sound(name: str, zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir(name), **zoo_options(name))
    assert len(graph.index) == len(graph)
    assert all(producer < consumer for producer, consumer in graph.edges())
    for operator in graph.operators:
        assert all(ref.port < len(graph.operators[ref.producer].outputs) for ref in operator.inputs)
        assert operator.device_types
    assert {graph.operators[i].op for i in graph.inputs.values()} == {"Placeholder"}
    assert {graph.operators[i].op for i in graph.outputs.values()} == {"_Retval"}

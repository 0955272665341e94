"""Static shapes, bytes of tensors and resident bytes, on models small enough to count by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph, Operator, TensorSpec
from moirai_tf.graph.shapes import enum_of, tensor_spec
from tests.saved_models import graph_of, save_function, save_graph, zoo_options
from tests.zoo import SMALL

ZooDir = Callable[[str], Path]

tf1 = tf.compat.v1


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """relu(x @ w): x is float32[?,4], w is float32[4,8]."""
    w = tf.Variable(tf.random.normal([4, 8], seed=1))

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.relu(tf.matmul(x, w))}

    return save_function(tmp_path_factory.mktemp("dense") / "model", serve, w=w)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sum over int32[?,?] and a scalar."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.int32, "tokens"),
            tf.TensorSpec([], tf.int32, "offset"),
        ]
    )
    def serve(tokens: tf.Tensor, offset: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.reduce_sum(tokens, axis=1) + offset}

    return save_function(tmp_path_factory.mktemp("sequences") / "model", serve)


def _only(graph: Graph, op: str) -> Operator:
    (found,) = (o for o in graph.operators if o.op == op)
    return found


def test_batch_size_fills_the_unknown_first_dimension(dense: Path) -> None:
    graph = graph_of(dense, batch_size=3)
    product = _only(graph, "MatMul").outputs[0]
    assert str(product) == "float32[3,8]"
    assert product.nbytes == 3 * 8 * 4
    assert str(graph.operators[graph.inputs["x"]].outputs[0]) == "float32[3,4]"
    assert str(_only(graph_of(dense), "MatMul").outputs[0]) == "float32[1,8]"


def test_weights_are_resident_once_and_outputs_where_they_are_made(dense: Path) -> None:
    graph = graph_of(dense, batch_size=3)
    resident = {o.op: (o.weight_bytes, o.resident_bytes) for o in graph.operators}
    # w has 4 * 8 floats; the product and the ReLU 3 * 8; reading and identities share buffers.
    assert resident["VarHandleOp"] == (128, 128)
    assert resident["ReadVariableOp"] == (0, 0)
    assert resident["MatMul"] == (0, 96)
    assert resident["Relu"] == (0, 96)
    assert resident["Identity"] == (0, 0)
    assert resident["Placeholder"] == (0, 48)
    assert resident["_Retval"] == (0, 96)


def test_reference_variables_and_constants_hold_their_bytes(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("tf1"))
    kernel = graph.operators[graph.index["reference/kernel"]]
    assert (kernel.op, kernel.weight_bytes, kernel.resident_bytes) == ("VariableV2", 4096, 4096)
    assert str(kernel.outputs[0]) == "float32_ref[32,32]"
    constant = graph.operators[graph.index["Const"]]
    assert (constant.weight_bytes, constant.resident_bytes) == (4, 4)


def test_input_shapes_win_over_batch_size(sequences: Path) -> None:
    graph = graph_of(sequences, batch_size=9, input_shapes=("tokens=2,5",))
    assert str(graph.operators[graph.inputs["tokens"]].outputs[0]) == "int32[2,5]"
    assert str(_only(graph, "Sum").outputs[0]) == "int32[2]"
    assert graph.operators[graph.inputs["offset"]].outputs[0].shape == ()


@pytest.mark.parametrize(
    ("dtype", "nbytes"),
    [
        ("float32", 24), ("float64", 48), ("bfloat16", 12), ("half", 12), ("int64", 48),
        ("int8", 6), ("bool", 6), ("complex64", 48), ("string", 6 * 32), ("resource", 0),
        ("variant", 0), ("float32_ref", 24), ("int4", 6),
    ],
)  # fmt: skip
def test_bytes_by_type(dtype: str, nbytes: int) -> None:
    assert tensor_spec(enum_of(dtype), (2, 3)).nbytes == nbytes


def test_unknown_dimensions_count_as_one() -> None:
    float32 = enum_of("float32")
    assert tensor_spec(float32, (5, -1)) == TensorSpec("float32", (5, -1), 20)
    assert str(tensor_spec(float32, (5, -1))) == "float32[5,?]"
    assert tensor_spec(float32, None) == TensorSpec("float32", None, 4)
    assert str(tensor_spec(float32, None)) == "float32[?]"
    assert tensor_spec(float32, (0, 7)).nbytes == 0


def test_shapes_that_depend_on_values_stay_unknown(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [None], "x")
        y = tf.where(x > 0.0, name="y")
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": y})
    spec = _only(graph_of(tmp_path / "model", batch_size=6), "Where").outputs[0]
    assert (str(spec), spec.nbytes) == ("int64[?,1]", 8)


def test_shape_arithmetic_is_evaluated(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [None, 6], "x")
        y = tf.reshape(x, [tf.shape(x)[0] * 2, -1], name="y")
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": y})
    assert str(_only(graph_of(tmp_path / "model", batch_size=5), "Reshape").outputs[0]) == (
        "float32[10,3]"
    )


def test_loop_that_keeps_its_shapes_has_those_of_its_inputs(tmp_path: Path) -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        _, y = tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, tf.tanh(y)), (0, x))
        return {"y": y}

    graph = graph_of(save_function(tmp_path / "model", serve), batch_size=5)
    assert "float32[5,4]" in map(str, _only(graph, "StatelessWhile").outputs)


def test_loop_that_grows_a_tensor_leaves_its_size_open(tmp_path: Path) -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        _, y = tf.while_loop(
            lambda i, _: i < 3,
            lambda i, y: (i + 1, tf.concat([y, x], axis=0)),
            (0, x),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, 4])),
        )
        return {"y": y}

    graph = graph_of(save_function(tmp_path / "model", serve), batch_size=5)
    shapes = list(map(str, _only(graph, "StatelessWhile").outputs))
    assert "float32[?,4]" in shapes
    # What else the loop hands through, such as x itself, is as open as it was traced.
    assert "float32[5,4]" not in shapes


@pytest.mark.parametrize(("rows", "expected"), [("same", "float32[5,4]"), ("half", "float32[?,4]")])
def test_branches_must_agree(rows: str, expected: str, tmp_path: Path) -> None:
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 4], tf.float32, "x"),
            tf.TensorSpec([], tf.bool, "p"),
        ]
    )
    def serve(x: tf.Tensor, p: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.cond(p, lambda: tf.tanh(x), lambda: x[::2] if rows == "half" else -x)}

    graph = graph_of(save_function(tmp_path / "model", serve), batch_size=5)
    assert str(_only(graph, "StatelessIf").outputs[0]) == expected


def _rows(x: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.rank(x) > 2, lambda: tf.shape(x)[2], lambda: tf.shape(x)[0])


def _turned(x: tf.Tensor) -> tf.Tensor:
    perm = tf.cond(tf.rank(x) > 2, lambda: tf.constant([0, 2, 1]), lambda: tf.constant([1, 0]))
    return tf.transpose(x, perm)


def _switched(x: tf.Tensor) -> tf.Tensor:
    return tf.switch_case(
        tf.rank(x),
        [lambda: x, lambda: x, lambda: tf.transpose(x), lambda: tf.transpose(x, [0, 2, 1])],
    )


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda x: tf.reshape(x, [_rows(x), -1]), "float32[?,?]"),
        (_turned, "float32[?,?]"),
        (_switched, "float32[?]"),
    ],
)
def test_branch_that_is_not_taken_need_not_suit_the_inputs(
    compute: Callable[[tf.Tensor], tf.Tensor], expected: str, tmp_path: Path
) -> None:
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        kept = tf.cond(tf.reduce_sum(x) > 0, lambda: tf.sin(x), lambda: tf.cos(x))
        return {"y": compute(x), "z": kept}

    path = save_function(tmp_path / "model", serve)
    graph = graph_of(path, input_shapes=("x=3,4",))
    y, z = (graph.operators[graph.outputs[name]].inputs[0] for name in "yz")
    assert (str(graph.spec(y)), str(graph.spec(z))) == (expected, "float32[3,4]")


def test_loop_of_tensorflow_1_has_shapes(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("tf1"), batch_size=5)
    found = {o.name: str(o.outputs[0]) for o in graph.operators if o.outputs}
    assert found["while/Merge_1"] == found["while/Tanh"] == found["while/Exit_1"] == "float32[5,32]"
    assert found["logits"] == "float32[5,10]"


def test_lookup_has_the_shape_of_its_keys(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("lookup_table"), batch_size=5)
    assert str(_only(graph, "LookupTableFindV2").outputs[0]) == "int64[5,6]"
    assert str(_only(graph, "Mean").outputs[0]) == "float32[5,64]"


@pytest.mark.parametrize("name", SMALL)
def test_outputs_of_the_zoo_have_known_sizes(name: str, zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir(name), **zoo_options(name))
    for i in graph.outputs.values():
        spec = graph.spec(graph.operators[i].inputs[0])
        assert spec.shape is not None
        # Keras' recurrent layers give lists of tensors, whose batch size nothing tells.
        assert -1 not in spec.shape or name == "lstm"


@pytest.mark.parametrize(
    ("options", "rule", "fix"),
    [
        ({}, r"unknown: 'tokens' \[-1, -1\]", "tokens=1,128"),
        ({"input_shapes": ("tokens=2",)}, r"'tokens' is given the shape \[2\]", "fits"),
        ({"input_shapes": ("tokens=2,3", "offset=4")}, r"'offset' is given the shape", "fits"),
        (
            {"input_shapes": ("words=2,3",)},
            r"input_shapes holds 'words=2,3'",
            "tokens=1,128",
        ),
        ({"input_shapes": ("tokens",)}, r"input_shapes holds 'tokens'", "tokens=1,128"),
        (
            {"input_shapes": ("tokens=a,3",)},
            r"input_shapes holds 'tokens=a,3'",
            "tokens=1,128",
        ),
        (
            {"input_shapes": ("tokens=-1,3",)},
            r"input_shapes holds 'tokens=-1,3'",
            "tokens=1,128",
        ),
        (
            {"input_shapes": (f"tokens={2**63},3",)},
            r"input_shapes holds",
            "tokens=1,128",
        ),
        ({"batch_size": 0}, r"batch_size is 0", "1 to 2147483647"),
        ({"batch_size": 2**64}, r"batch_size is 18446744073709551616", "1 to 2147483647"),
    ],
)
def test_shape_errors(options: dict[str, object], rule: str, fix: str, sequences: Path) -> None:
    with pytest.raises(MoiraiError, match=rule) as caught:
        graph_of(sequences, **options)
    assert caught.value.why
    assert fix in caught.value.fix


def test_shape_that_the_graph_refuses(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [None, None], "x")
        y = tf.matmul(x, tf.ones([4, 2]))
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": y})
    assert str(_only(graph_of(tmp_path / "model", input_shapes=("x=3,4",)), "MatMul").outputs[0])
    with pytest.raises(MoiraiError, match="TensorFlow cannot infer the shapes"):
        graph_of(tmp_path / "model", input_shapes=("x=3,5",))


def test_shape_that_the_graph_refuses_beside_a_branch(tmp_path: Path) -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x @ tf.ones([4, 2]), "z": _turned(x)}

    path = save_function(tmp_path / "model", serve)
    assert str(_only(graph_of(path, input_shapes=("x=3,4",)), "MatMul").outputs[0])
    with pytest.raises(MoiraiError, match="TensorFlow cannot infer the shapes"):
        graph_of(path, input_shapes=("x=3,5",))

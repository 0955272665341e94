"""Kinds of models that TensorFlow places in its own way: each must be verified wherever it lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from moirai_tf.fusion.coarsen import coarsen
from tests.examiner import Examiner
from tests.saved_models import edited, function_of, graph_of, node_of, save_function, save_graph

tf1 = tf.compat.v1
X = tf.TensorSpec([6, 4], tf.float32, "x")
Serve = Callable[[tf.Tensor], Mapping[str, tf.Tensor]]
Build = Callable[[], tuple[tf.Tensor, tf.Tensor]]


def _proves(examiner: Examiner, model: Path, *, coarse: bool = True) -> None:
    """Two placements by lot are proved, and something crosses devices."""
    reports = [examiner(model, seed, coarse=coarse) for seed in (1, 3)]
    assert [finding.text for report in reports for finding in report.findings] == []
    assert any(proof.planned for report in reports for proof in report.proofs)


# One tensor that several inlined calls pass on.


@tf.function
def _relu(a: tf.Tensor) -> tf.Tensor:
    return tf.nn.relu(a)


@tf.function
def _tanh(a: tf.Tensor) -> tf.Tensor:
    return tf.tanh(a)


@tf.function
def _twice(a: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    b = tf.exp(a)
    return b, b


def _two_calls(x: tf.Tensor) -> dict[str, tf.Tensor]:
    h = tf.sin(x)
    return {"y": tf.nn.softmax(_relu(h)) * tf.nn.softmax(_tanh(h))}


def _fed_to_calls(x: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"y": _relu(x) @ tf.transpose(_tanh(x)), "z": tf.cos(x)}


def _returned_twice(x: tf.Tensor) -> dict[str, tf.Tensor]:
    a, b = _twice(tf.nn.softmax(x))
    return {"y": tf.nn.softmax(a) + _relu(b), "z": tf.nn.softmax(_tanh(a))}


@pytest.mark.parametrize("serve", [_two_calls, _fed_to_calls, _returned_twice])
def test_a_tensor_that_several_calls_pass_on(
    examiner: Examiner, tmp_path: Path, serve: Serve
) -> None:
    model = save_function(tmp_path / "model", tf.function(serve, input_signature=[X]))
    _proves(examiner, model, coarse=False)


def test_it_crosses_once_for_every_call_until_grappler_sees_it(
    examiner: Examiner, tmp_path: Path
) -> None:
    model = save_function(tmp_path / "model", tf.function(_two_calls, input_signature=[X]))
    reports = [examiner(model, seed, coarse=False) for seed in range(6)]
    repeated = {proof.repeated for report in reports for proof in report.proofs}
    # Once more where both readers are elsewhere than the sine, else not.
    assert repeated == {0, 1}
    assert any("1 once more, for another call" in str(report) for report in reports)


# Values that are no data: datasets and other variants.


def _dataset(x: tf.Tensor) -> dict[str, tf.Tensor]:
    batches = tf.data.Dataset.from_tensor_slices(tf.exp(x)).batch(2)
    return {"y": tf.sin(batches.reduce(tf.zeros([2, 4]), lambda a, b: a + b))}


def _mapped_dataset(x: tf.Tensor) -> dict[str, tf.Tensor]:
    doubled = tf.data.Dataset.from_tensor_slices(x).map(lambda v: v * 2.0).batch(6)
    return {"y": tf.sin(doubled.get_single_element())}


def _optional(x: tf.Tensor) -> dict[str, tf.Tensor]:
    held = tf.experimental.Optional.from_value(tf.nn.softmax(x))
    return {"y": tf.nn.softmax(held.get_value()), "z": tf.cast(held.has_value(), tf.float32)}


def _tensor_list(x: tf.Tensor) -> dict[str, tf.Tensor]:
    rows = tf.TensorArray(tf.float32, 6).unstack(tf.nn.softmax(x))
    return {"y": tf.nn.softmax(rows.stack()), "z": tf.cos(rows.read(2))}


def _ragged(x: tf.Tensor) -> dict[str, tf.Tensor]:
    rows = tf.RaggedTensor.from_row_lengths(tf.exp(x), [1, 2, 3], validate=False)
    again = tf.RaggedTensor._from_variant(rows._to_variant(), tf.float32, output_ragged_rank=1)
    return {"y": tf.nn.softmax(again.flat_values)}


@pytest.mark.parametrize("serve", [_dataset, _mapped_dataset, _optional, _tensor_list, _ragged])
def test_variants_stay_with_their_readers(examiner: Examiner, tmp_path: Path, serve: Serve) -> None:
    model = save_function(tmp_path / "model", tf.function(serve, input_signature=[X]))
    _proves(examiner, model, coarse=serve is not _dataset)


def test_what_only_an_assertion_needs_is_no_part_of_its_branch(
    examiner: Examiner, tmp_path: Path
) -> None:
    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_less(x, 1e9)]):
            h = tf.nn.softmax(x)
        with tf.control_dependencies([tf.debugging.assert_non_negative(h)]):
            return {"y": tf.nn.softmax(tf.exp(h))}

    _proves(examiner, save_function(tmp_path / "model", serve))


# Control flow of TensorFlow 1.


def _switch() -> tuple[tf.Tensor, tf.Tensor]:
    x = tf1.placeholder(tf.float32, [4], "x")
    a = tf.exp(x)
    no, yes = tf.raw_ops.Switch(data=a, pred=tf.reduce_sum(x) > 0)
    return x, tf.raw_ops.Merge(inputs=[tf.sin(no), tf.cos(yes)])[0]


def _switch_of_a_switch() -> tuple[tf.Tensor, tf.Tensor]:
    x = tf1.placeholder(tf.float32, [4], "x")
    positive = tf.reduce_sum(x) > 0
    no, yes = tf.raw_ops.Switch(data=tf.exp(x), pred=positive)
    below, above = tf.raw_ops.Switch(data=yes, pred=tf.reduce_max(yes) > 2)
    inner, _ = tf.raw_ops.Merge(inputs=[tf.sin(below), tf.cos(above)])
    return x, tf.raw_ops.Merge(inputs=[tf.sqrt(no), inner])[0]


def _switched_feed() -> tuple[tf.Tensor, tf.Tensor]:
    x = tf1.placeholder(tf.float32, [4], "x")
    no, yes = tf.raw_ops.Switch(data=x, pred=tf.reduce_sum(tf.sin(x)) > 0)
    return x, tf.raw_ops.Merge(inputs=[tf.nn.softmax(no), tf.cos(yes)])[0]


@pytest.mark.parametrize("build", [_switch, _switch_of_a_switch, _switched_feed])
def test_a_switch_stays_with_its_data(examiner: Examiner, tmp_path: Path, build: Build) -> None:
    with tf.Graph().as_default() as graph:
        x, y = build()
        save_graph(tmp_path / "model", graph, {"x": x}, {"y": tf.sqrt(tf.abs(y), name="y")})
    _proves(examiner, tmp_path / "model", coarse=False)


# Nodes that ask to be near others.


def _inner_model(folder: Path, near: str) -> Path:
    """`first` and `second` of a called function ask to be near something."""

    @tf.function
    def inner(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        tf.square(b, name="unused")
        first = tf.nn.relu(a, name="first")
        return tf.tanh(tf.nn.softmax(first) * b, name="second")

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        h = tf.nn.softmax(tf.exp(x))
        return {"y": tf.nn.softmax(inner(h, tf.nn.softmax(x)))}

    def edit(meta_graph: Any) -> None:
        for name in ("first", "second"):
            node = node_of(function_of(meta_graph, "inner"), name)
            node.attr["_class"].list.s.append(f"loc:@{near}".encode())

    return edited(save_function(folder / "plain", serve), folder / "model", edit)


@pytest.mark.parametrize(
    "near", ["a", "nothing", "unused", "first", "PartitionedCall/Exp",
             "PartitionedCall/PartitionedCall/Exp"]
)  # fmt: skip
def test_nodes_near_an_argument_or_a_name_of_nothing(
    examiner: Examiner, tmp_path: Path, near: str
) -> None:
    _proves(examiner, _inner_model(tmp_path, near), coarse=False)


# Contractions whose bias is no weight: fed, or computed.

_IMAGE, _KERNEL = tf.TensorSpec([2, 6, 6, 3], tf.float32), tf.TensorSpec([3, 3, 3, 4], tf.float32)
_MATRIX, _OTHER = tf.TensorSpec([6, 4], tf.float32), tf.TensorSpec([4, 5], tf.float32)
_FED_BIAS = {
    "product": (_MATRIX, _OTHER, lambda x, w, b: tf.nn.bias_add(x @ w, b)),
    "product_and_relu": (_MATRIX, _OTHER, lambda x, w, b: tf.nn.relu(tf.nn.bias_add(x @ w, b))),
    "sum": (_MATRIX, _OTHER, lambda x, w, b: tf.exp(b) + x @ w),
    "convolution": (
        _IMAGE, _KERNEL, lambda x, w, b: tf.nn.bias_add(tf.nn.conv2d(x, w, 1, "SAME"), b[:4])
    ),
    "convolution_and_elu": (
        _IMAGE, _KERNEL,
        lambda x, w, b: tf.nn.elu(tf.nn.bias_add(tf.nn.conv2d(x, w, 1, "SAME"), b[:4])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", _FED_BIAS)
def test_a_bias_that_is_no_weight(examiner: Examiner, tmp_path: Path, kind: str) -> None:
    data, weight, compute = _FED_BIAS[kind]

    @tf.function(input_signature=[data, weight, tf.TensorSpec([5], tf.float32)])
    def serve(x: tf.Tensor, w: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": compute(tf.nn.softmax(x), w, b)}

    model = save_function(tmp_path / "model", serve)
    (fused,) = (f for f in coarsen(graph_of(model))[0].operators if "contraction+bias" in f.rule)
    assert ("activation" in fused.rule) == ("_and_" in kind)
    reports = [examiner(model, seed, grappler="on") for seed in (2, 4)]
    assert [finding.text for report in reports for finding in report.findings] == []


# Compiled functions.

_WEIGHTS = tf.Variable(tf.random.stateless_normal([4, 4], [1, 2]))


@tf.function(jit_compile=True)
def _compiled(a: tf.Tensor) -> tf.Tensor:
    return tf.nn.softmax(a @ _WEIGHTS)


@tf.function
def _calls_compiled(a: tf.Tensor) -> tf.Tensor:
    return _compiled(tf.sin(a))


def _looped(a: tf.Tensor) -> tf.Tensor:
    found: tf.Tensor = tf.while_loop(
        lambda i, h: i < 2, lambda i, h: (i + 1, _compiled(h)), [0, a], maximum_iterations=2
    )[1]
    return found


@pytest.mark.parametrize("compute", [_compiled, _calls_compiled, _looped])
def test_a_compiled_function_that_reads_variables_stays_with_the_client(
    tmp_path: Path, compute: Callable[[tf.Tensor], tf.Tensor]
) -> None:
    """`tf.saved_model.load` without options has all variables there, and XLA wants no others."""

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.softmax(compute(tf.exp(x))), "z": tf.nn.softmax(x @ _WEIGHTS)}

    graph = graph_of(save_function(tmp_path / "model", serve, weights=_WEIGHTS))
    (group,) = (g for g in graph.colocation if "compiled function" in g.reason)
    ops = {graph.operators[m].op for m in group.members}
    assert {"Placeholder", "VarHandleOp", "ReadVariableOp"} < ops
    # The product that is not compiled is free, and so is a compiled function without variables.
    assert not {"MatMul", "Softmax"} & ops


def test_a_compiled_function_without_variables_is_free(tmp_path: Path) -> None:
    pure = tf.function(tf.nn.softmax, jit_compile=True)

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.sin(pure(tf.exp(x)))}

    assert graph_of(save_function(tmp_path / "model", serve)).colocation == ()


# Arithmetic on shapes that Grappler does where the shape is read.


def _count(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(tf.shape(tf.nn.softmax(tf.sin(x))))


def _count_of_a_product(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(tf.shape(x @ tf.transpose(x)), keepdims=True)


def _count_of_an_input(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(tf.shape(x, tf.int64))


@pytest.mark.parametrize("count", [_count, _count_of_a_product, _count_of_an_input])
def test_the_product_of_a_shape_is_where_the_shape_is_read(
    tmp_path: Path, count: Callable[[tf.Tensor], tf.Tensor]
) -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.softmax(x) * tf.cast(count(x), tf.float32)}

    graph = graph_of(save_function(tmp_path / "model", serve), input_shapes=("x=6,4",))
    owners = [
        {graph.operators[m].op for m in fused.members} for fused in coarsen(graph)[0].operators
    ]
    (found,) = (ops for ops in owners if "Prod" in ops)
    assert "Shape" in found

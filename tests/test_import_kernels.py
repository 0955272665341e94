"""Which device types can run an operator, by TensorFlow's own kernel registry, and why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.framework import node_def_pb2

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import CLIENT_OPS, Graph
from moirai_tf.graph.kernels import (
    device_types,
    has_kernels,
    registered_kernels,
    require_gpu_kernels,
    why_not,
)
from tests.saved_models import graph_of, save_function, zoo_options
from tests.zoo import SMALL

ZooDir = Callable[[str], Path]


def _node(op: str, **types: tf.DType) -> node_def_pb2.NodeDef:
    node = node_def_pb2.NodeDef(name="node", op=op)
    for name, dtype in types.items():
        node.attr[name].type = dtype.as_datatype_enum
    return node


def _library(graph: Graph) -> Mapping[str, Any]:
    return {f.signature.name: f for f in graph.library.function}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (_node("MatMul", T=tf.float32), ("CPU", "GPU")),
        (_node("StringUpper"), ("CPU",)),
        (_node("StringJoin"), ("CPU",)),
        (_node("LookupTableFindV2", Tin=tf.string, Tout=tf.int64), ("CPU",)),
        (_node("Conv2D", T=tf.bfloat16), ("CPU", "GPU")),
        (_node("Conv2D", T=tf.int32), ("CPU", "GPU")),
        (_node("Conv2D", T=tf.string), ()),
        (_node("NoOp"), ("CPU", "GPU")),
        (_node("Placeholder", dtype=tf.string), ("CPU", "GPU")),
        (_node("_Retval", T=tf.string), ("CPU", "GPU")),
        (_node("NcclAllReduce", T=tf.float32), ("GPU",)),
    ],
    ids=lambda value: value.op if isinstance(value, node_def_pb2.NodeDef) else "",
)
def test_device_types(node: node_def_pb2.NodeDef, expected: tuple[str, ...]) -> None:
    assert device_types(node, {}) == expected


def test_why_not_names_op_and_types() -> None:
    assert why_not(_node("MatMul", T=tf.float32), "GPU", {}) is None
    assert why_not(_node("StringUpper"), "GPU", {}) == (
        "TensorFlow has no GPU kernel for StringUpper"
    )
    assert why_not(_node("MatMul", T=tf.string), "CPU", {}) == (
        "TensorFlow has no CPU kernel for MatMul with T=string"
    )
    assert why_not(_node("NoSuchOp"), "CPU", {}) == "TensorFlow has no CPU kernel for NoSuchOp"


def test_types_that_were_left_out_have_their_default() -> None:
    # ArgMax may leave out Tidx=int32 and output_type=int64.
    assert why_not(_node("ArgMax", T=tf.float32), "CPU", {}) is None
    reason = why_not(_node("ArgMax", T=tf.string), "CPU", {})
    assert reason is not None
    assert reason.endswith("T=string, Tidx=int32, output_type=int64")


def test_labelled_kernels_are_for_nodes_that_ask_for_them() -> None:
    node = _node("Conv2D", T=tf.float32)
    node.attr["_kernel"].s = b"no such label"
    assert device_types(node, {}) == ()
    rewritten = _node("_MklNativeConv2D", T=tf.float32)
    assert device_types(rewritten, {}) == ()
    rewritten.attr["_kernel"].s = b"MklNameChangeOp"
    assert device_types(rewritten, {}) == ("CPU",)


def test_control_flow_runs_where_its_bodies_do(tmp_path: Path) -> None:
    @tf.function(input_signature=[tf.TensorSpec([2], tf.string, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        _, y = tf.while_loop(
            lambda i, _: i < 3, lambda i, y: (i + 1, tf.strings.upper(y, name="shout")), (0, x)
        )
        return {"y": y}

    graph = graph_of(save_function(tmp_path / "model", serve))
    (loop,) = (o for o in graph.operators if o.op == "StatelessWhile")
    assert loop.device_types == ("CPU",)
    reason = why_not(loop.node, "GPU", _library(graph))
    assert reason is not None
    body = loop.node.attr["body"].func.name
    assert reason.startswith(f"its function {body!r} holds 'while/shout'")
    assert reason.endswith("TensorFlow has no GPU kernel for StringUpper")


def test_a_recursive_function_is_asked_once() -> None:
    from tensorflow.core.framework import function_pb2

    function = function_pb2.FunctionDef()
    function.signature.name = "f"
    call = function.node_def.add(name="again", op="PartitionedCall")
    call.attr["f"].func.name = "f"
    assert device_types(call, {"f": function}) == ("CPU", "GPU")
    function.node_def.add(name="text", op="StringUpper")
    assert device_types(call, {"f": function}) == ("CPU",)


def test_gpus_need_a_tensorflow_with_their_kernels() -> None:
    def without_gpus(op: str) -> list[Any]:
        """The registry of tensorflow-cpu."""
        return [kernel for kernel in registered_kernels(op) if kernel.device_type != "GPU"]

    assert has_kernels("GPU")
    assert has_kernels("CPU", without_gpus)
    assert not has_kernels("GPU", without_gpus)
    require_gpu_kernels(["/device:GPU:0"])
    require_gpu_kernels([], without_gpus)
    with pytest.raises(MoiraiError, match="no kernels for GPUs") as refused:
        require_gpu_kernels(["/device:GPU:0"], without_gpus)
    for way_out in ("moirai_tf[gpu]", "leave the GPUs out", "--costs"):
        assert way_out in refused.value.fix


@pytest.mark.parametrize("name", SMALL)
def test_every_operator_of_the_zoo_runs_on_cpu_and_says_why_not_elsewhere(
    name: str, zoo_dir: ZooDir
) -> None:
    graph = graph_of(zoo_dir(name), **zoo_options(name))
    library = _library(graph)
    for operator in graph.operators:
        assert "CPU" in operator.device_types
        reason = why_not(operator.node, "GPU", library)
        assert (reason is None) == ("GPU" in operator.device_types)
        strings = {spec.dtype for spec in operator.outputs} == {"string"}
        assert not strings or reason or operator.op in CLIENT_OPS | {"Identity", "Const"}

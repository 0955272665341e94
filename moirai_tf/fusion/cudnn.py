"""What TensorFlow runs as one kernel on NVIDIA's GPUs: little, compared with CPUs.

The rules follow Grappler's remapper (`remapper.cc`) and its folding of transposes
(`arithmetic_optimizer.cc`). They assume what is TensorFlow's default: neither TF_USE_CUBLASLT, with
which products take in their bias, nor TF_CUDNN_USE_RUNTIME_FUSION, with which convolutions take in
other activations than Relu, nor XLA. On virtual GPUs of compute capability 7.0 and 8.0 Grappler
fuses the same. Products and convolutions with a bias alone, filters of which one side is 1, other
types than float32 and batch norm in pieces stay apart.
"""

from __future__ import annotations

from moirai_tf.fusion import ops
from moirai_tf.fusion.checks import (
    batch_norm_mode,
    computes,
    first_output_only,
    one_type,
    single_exit,
    spatial_filter,
    swaps_rows_and_columns,
)
from moirai_tf.fusion.pattern import Check, Pattern, Rule, fixed, maybe, node, tensor

_FLOAT32 = computes("float32")
_TRANSPOSES = ("left_transpose", "right_transpose")


def _rule(name: str, pattern: Pattern, *checks: Check) -> Rule:
    return Rule(f"cudnn/{name}", pattern, (single_exit, one_type, *checks), ("GPU",))


def _convolution() -> Pattern:
    contraction = node("contraction", "Conv2D", tensor("input"), fixed("filter"))
    return node("activation", "Relu", node("bias", "BiasAdd", contraction, tensor("bias_value")))


def _batch_norm() -> Pattern:
    return node("activation", "Relu", node("batch_norm", ops.BATCH_NORMS, tensor("input")))


def _product() -> Pattern:
    operands = (maybe(label, "Transpose", tensor(f"{label}d")) for label in _TRANSPOSES)
    return node("contraction", ("MatMul", "BatchMatMul", "BatchMatMulV2"), *operands)


RULES = (
    _rule("convolution+bias+relu", _convolution(), _FLOAT32, spatial_filter("filter")),
    _rule(
        "batch_norm+relu",
        _batch_norm(),
        _FLOAT32,
        batch_norm_mode("batch_norm", training=False),
        first_output_only("batch_norm"),
    ),
    _rule("transpose+product", _product(), swaps_rows_and_columns(*_TRANSPOSES)),
)

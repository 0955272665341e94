"""What NNPACK computes at once: a layer with its bias and ReLU, in float32."""

from __future__ import annotations

from moirai_tf.fusion.checks import computes, no_broadcast, one_type, single_exit
from moirai_tf.fusion.pattern import Rule, fixed, node, tensor

_CHECKS = (
    single_exit,
    one_type,
    no_broadcast("contraction", "bias", "activation"),
    computes("float32"),
)


def _layer(name: str, op: str) -> Rule:
    biased = node(
        "bias",
        ("BiasAdd", "AddV2", "Add"),
        node("contraction", op, tensor("input")),
        fixed("bias_value"),
    )
    return Rule(f"nnpack/{name}+bias+relu", node("activation", "Relu", biased), _CHECKS)


RULES = (_layer("convolution", "Conv2D"), _layer("fully_connected", "MatMul"))

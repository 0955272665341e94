"""What Eigen's kernels compute at once: a contraction with what follows it, and expressions.

The rules follow TensorFlow's Grappler (`remapper.cc`, `arithmetic_optimizer.cc`,
`constant_folding.cc`), which makes these fusions on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

from moirai_tf.fusion import ops
from moirai_tf.fusion.checks import (
    batch_norm_mode,
    computes,
    first_output_only,
    no_broadcast,
    one_type,
    same_size,
    single_exit,
)
from moirai_tf.fusion.epilogues import (
    activated,
    batch_normalised,
    biased,
    convolution,
    product,
    scaled,
    scaled_and_shifted,
)
from moirai_tf.fusion.pattern import Check, Pattern, Rule, maybe, node, tensor

TAIL = ("bias", "scale", "shift", "batch_norm", "residual_add", "activation")
"""Labels of what may follow a contraction; none of them may enlarge its output."""

FLOATS = computes("float32", "float64", "float16", "bfloat16")
ONE_KERNEL = (single_exit, one_type, no_broadcast("contraction", *TAIL))
INFERENCE = (batch_norm_mode("batch_norm", training=False), first_output_only("batch_norm"))


def _rules() -> Iterator[Rule]:
    for contraction in (convolution(), product()):
        yield from _with_activation("contraction+bias", biased(contraction))
        yield from _with_activation("contraction+batch_norm", scaled_and_shifted(contraction))
        yield from _with_activation("contraction+batch_norm", batch_normalised(contraction))
        yield _rule("contraction+scale", scaled(contraction))
        yield _rule("contraction+activation", activated(contraction))
        yield _rule("operands+contraction", contraction)
    yield Rule("eigen/batch_norm+activation", _normalised(), _normalised_checks())


def _with_activation(name: str, pattern: Pattern) -> Iterator[Rule]:
    yield _rule(f"{name}+activation", activated(pattern))
    yield _rule(name, pattern)


def _rule(name: str, pattern: Pattern) -> Rule:
    return Rule(f"eigen/{name}", pattern, (*ONE_KERNEL, FLOATS, *INFERENCE))


def _normalised() -> Pattern:
    """Batch norm, a side input, and ReLU: cuDNN has a kernel for it."""
    batch_norm = node("batch_norm", ops.BATCH_NORMS)
    return node("activation", "Relu", maybe("side", ops.ADDS, batch_norm, tensor("side_input")))


def _normalised_checks() -> tuple[Check, ...]:
    return (single_exit, one_type, first_output_only("batch_norm"), same_size("side_input", "side"))


RULES = tuple(_rules())

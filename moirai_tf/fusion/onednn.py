"""What oneDNN computes at once beyond Eigen: residuals, longer activations, norms, softmax.

The rules follow TensorFlow's Grappler (`remapper.cc`) and its oneDNN layout pass
(`mkl_layout_pass.cc`), and add the forms that Keras exports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from moirai_tf.fusion import eigen, ops
from moirai_tf.fusion.checks import (
    batch_norm_mode,
    computes,
    constants,
    first_output_only,
    no_broadcast,
    not_negative,
    one_element,
    one_type,
    same_size,
    single_exit,
)
from moirai_tf.fusion.epilogues import (
    GELU_CONSTANTS,
    activated,
    batch_normalised,
    biased,
    convolution,
    exact_gelus,
    hard_swishes,
    leaky_maximum,
    mish,
    product,
    scaled_and_shifted,
    swish,
    tanh_gelus,
)
from moirai_tf.fusion.pattern import Check, Pattern, Rule, fixed, maybe, node, tensor

_FLOATS = computes("float32", "bfloat16", "float16")
_ELEMENT_WISE = (single_exit, one_type, _FLOATS)


def _formulas(x: Pattern) -> Iterator[tuple[str, Pattern, tuple[Check, ...]]]:
    """Activations that are several operators: name, pattern over x, and further checks."""
    yield "swish", swish(x), ()
    yield "mish", mish(x), ()
    yield "leaky_relu", leaky_maximum(x), (not_negative("alpha"),)
    for pattern in hard_swishes(x):
        yield "hard_swish", pattern, (constants({"three": 3.0}),)
    for pattern in (*exact_gelus(x), *tanh_gelus(x)):
        yield "gelu", pattern, (constants(GELU_CONSTANTS),)


def _activations() -> Iterator[Rule]:
    for name, pattern, checks in _formulas(tensor("x")):
        yield Rule(f"onednn/{name}", pattern, (*_ELEMENT_WISE, *checks))
    for contraction in (convolution(), product()):
        for before, x in _bases(contraction):
            for name, pattern, checks in _formulas(x):
                yield _contraction_rule(f"{before}+{name}", pattern, *checks)


def _residuals() -> Iterator[Rule]:
    for contraction in (convolution(), product()):
        for before, x in _bases(contraction):
            add = node("residual_add", (*ops.ADDS, "AddN"), x, tensor("residual"))
            check = same_size("residual", "residual_add")
            yield _contraction_rule(f"{before}+residual+activation", activated(add), check)
            yield _contraction_rule(f"{before}+residual", add, check)


def _bases(contraction: Pattern) -> Iterator[tuple[str, Pattern]]:
    yield "contraction+bias", biased(contraction)
    yield "contraction+batch_norm", scaled_and_shifted(contraction)
    yield "contraction+batch_norm", batch_normalised(contraction)


def _contraction_rule(name: str, pattern: Pattern, *checks: Check) -> Rule:
    every = (*eigen.ONE_KERNEL, _FLOATS, *eigen.INFERENCE, *checks)
    return Rule(f"onednn/{name}", pattern, every)


def _batch_matmuls() -> Iterator[Rule]:
    """Attention scores: a product, scaled by one number, with a mask added."""
    scaled = node("scaled", ("Mul", "RealDiv"), product(), tensor("factor"))
    masked = node("masked", ops.ADDS, scaled, tensor("mask"))
    checks = (
        single_exit,
        one_type,
        no_broadcast("contraction", "scaled", "masked"),
        one_element("factor"),
        _FLOATS,
    )
    yield Rule("onednn/batch_matmul+mul+add", masked, checks)
    yield Rule("onednn/batch_matmul+mul", scaled, checks)


def _layer_norms() -> Iterator[Rule]:
    """Layer norm and, over other axes, instance norm; root-mean-square norm without a mean."""
    for pattern in (*_moments_norms(), *_centred_norms(), _root_mean_square_norm()):
        yield Rule("onednn/layer_norm", pattern, _ELEMENT_WISE)
    by_batch_norm = (
        single_exit,
        _FLOATS,
        batch_norm_mode("batch_norm", training=True),
        first_output_only("batch_norm"),
    )
    yield Rule("onednn/layer_norm", _batch_norm_of_rows(), by_batch_norm)


def _inverse_deviation(variance: Pattern) -> Pattern:
    """gamma / sqrt(variance + epsilon)."""
    with_epsilon = node("with_epsilon", ops.ADDS, variance, fixed("epsilon"))
    return maybe("gamma", "Mul", node("rsqrt", "Rsqrt", with_epsilon), fixed("gamma_value"))


def _moments_norms() -> Iterator[Pattern]:
    """x * inv + (beta - mean * inv), the difference as such or as a sum with -mean."""
    x = tensor("x")
    mean = node("mean", "Mean", x)
    squares = node("squares", "SquaredDifference", x, mean)
    inverse = _inverse_deviation(node("variance", "Mean", squares))
    scaled = node("scaled", "Mul", x, inverse)
    moved = node("moved", "Mul", node("negated", "Neg", mean), inverse)
    yield node("sum", ops.ADDS, scaled, maybe("beta", ops.ADDS, moved, fixed("beta_value")))
    moved = node("moved", "Mul", mean, inverse)
    yield node("sum", ops.ADDS, scaled, node("beta", "Sub", fixed("beta_value"), moved))
    yield node("sum", "Sub", scaled, moved)


def _centred_norms() -> Iterator[Pattern]:
    """(x - mean) * inv + beta."""
    x = tensor("x")
    mean = node("mean", "Mean", x)
    centred = node("centred", "Sub", x, mean)
    for squares in (
        node("squares", "Square", centred),
        node("squares", "SquaredDifference", x, mean),
    ):
        inverse = _inverse_deviation(node("variance", "Mean", squares))
        scaled = node("scaled", "Mul", centred, inverse)
        yield node("sum", ops.ADDS, scaled, fixed("beta_value"))
        yield scaled


def _root_mean_square_norm() -> Pattern:
    x = tensor("x")
    square = node("square", "Square", x)
    with_epsilon = node("with_epsilon", ops.ADDS, node("mean", "Mean", square), fixed("epsilon"))
    scaled = node("scaled", "Mul", x, node("rsqrt", "Rsqrt", with_epsilon))
    return node("sum", "Mul", scaled, fixed("gamma_value"))


def _batch_norm_of_rows() -> Pattern:
    """Rows as channels of a batch norm in training mode, then gamma and beta."""
    rows = node("rows", "Reshape", tensor("x"))
    normalised = node("shaped", "Reshape", node("batch_norm", ops.BATCH_NORMS, rows))
    scaled = node("scaled", "Mul", normalised, fixed("gamma_value"))
    return node("sum", ops.ADDS, scaled, fixed("beta_value"))


def _softmaxes() -> Iterator[Rule]:
    x = tensor("x")
    exp = node("exp", "Exp", maybe("shifted", "Sub", x, node("max", "Max", x)))
    decomposed = node("softmax", "RealDiv", exp, node("sum", "Sum", exp))
    yield Rule("onednn/softmax", decomposed, _ELEMENT_WISE)
    masked = node("mask", (*ops.ADDS, "Mul", "SelectV2"), tensor("a"), tensor("b"))
    checks = (single_exit, no_broadcast("mask", "softmax"), _FLOATS)
    yield Rule("onednn/mask+softmax", node("softmax", "Softmax", masked), checks)


_OWN: tuple[Callable[[], Iterator[Rule]], ...] = (
    _activations,
    _residuals,
    _batch_matmuls,
    _layer_norms,
    _softmaxes,
)

RULES = (
    *(replace(rule, name=rule.name.replace("eigen", "onednn")) for rule in eigen.RULES),
    *(rule for family in _OWN for rule in family()),
)

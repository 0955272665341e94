"""The parts that rules are put together from: contractions, and what may follow them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moirai_tf.fusion import ops
from moirai_tf.fusion.pattern import Pattern, bias, fixed, maybe, node, tensor

ACTIVATIONS = ("Relu", "Relu6", "Elu", "LeakyRelu", "Tanh", "Sigmoid")

GELU_CONSTANTS = {
    "half": 0.5,
    "one": 1.0,
    "cubic": 0.044715,
    "root_two_over_pi": 0.797884,
    "exponent": 3.0,
}


def convolution() -> Pattern:
    """A convolution, with the padding or the rearrangement for a dilation before it."""
    before = maybe("padding", ("Pad", "SpaceToBatchND"), tensor("input"))
    return node("contraction", ops.CONVOLUTIONS, before)


def product() -> Pattern:
    """A product of matrices, with the transposes of its operands, which become attributes."""
    return node("contraction", ops.PRODUCTS, _operand("left"), _operand("right"))


def _operand(side: str) -> Pattern:
    transpose = maybe(f"{side}_transpose", "Transpose", tensor(side))
    return maybe(f"{side}_view", "Reshape", transpose)


def viewed(contraction: Pattern) -> Pattern:
    """A contraction whose output may be seen in another shape, as 1-D convolutions do."""
    return maybe("view", (*ops.VIEWS, "BatchToSpaceND"), contraction)


def biased(contraction: Pattern) -> Pattern:
    """A contraction and its bias, which Grappler fuses wherever the bias comes from."""
    return node("bias", ("BiasAdd", *ops.ADDS), viewed(contraction), bias("bias_value"))


def maybe_biased(contraction: Pattern) -> Pattern:
    """A contraction and its bias, if it has one."""
    return replace(biased(contraction), optional=True)


def scaled(contraction: Pattern) -> Pattern:
    """A contraction, perhaps with a bias, times a constant: the queries of attention."""
    return node("scale", "Mul", maybe_biased(contraction), fixed("scale_value"))


def scaled_and_shifted(contraction: Pattern) -> Pattern:
    """Batch norm in inference, decomposed: x * scale + shift, or (x - mean) * scale + shift."""
    centred = maybe("centred", "Sub", maybe_biased(contraction), fixed("mean"))
    product = node("scale", "Mul", centred, fixed("scale_value"))
    return node("shift", (*ops.ADDS, "Sub"), product, fixed("shift_value"))


def batch_normalised(contraction: Pattern) -> Pattern:
    """Batch norm as one operator."""
    return node("batch_norm", ops.BATCH_NORMS, maybe_biased(contraction))


def activated(x: Pattern) -> Pattern:
    """An activation that is one operator."""
    return node("activation", ACTIVATIONS, x)


def swish(x: Pattern) -> Pattern:
    """x * sigmoid(x), or x * sigmoid(beta x)."""
    return node(
        "swish", "Mul", x, node("sigmoid", "Sigmoid", maybe("scaled", "Mul", x, fixed("beta")))
    )


def mish(x: Pattern) -> Pattern:
    """x * tanh(softplus(x))."""
    return node("mish", "Mul", x, node("tanh", "Tanh", node("softplus", "Softplus", x)))


def leaky_maximum(x: Pattern) -> Pattern:
    """Leaky ReLU as max(x, alpha x)."""
    return node("maximum", "Maximum", node("sloped", "Mul", x, fixed("alpha")), x)


def hard_swishes(x: Pattern) -> Iterator[Pattern]:
    """x * relu6(x + 3) / 6, divided before or after the product."""
    clipped = node("relu6", "Relu6", node("plus_three", ops.ADDS, x, fixed("three")))
    sixth = node("sixth", ("Mul", "RealDiv"), clipped, fixed("six"))
    yield node("hard_swish", "Mul", x, sixth)
    yield node("hard_swish", ("Mul", "RealDiv"), node("product", "Mul", x, clipped), fixed("six"))


def exact_gelus(x: Pattern) -> Iterator[Pattern]:
    """x / 2 * (1 + erf(x / sqrt 2)), or with erfc(-x / sqrt 2) for the bracket."""
    half = node("halved", "Mul", x, fixed("half"))
    erf = node("erf", "Erf", node("argument", ("Mul", "RealDiv"), x, fixed("root_two")))
    bracket = node("bracket", ops.ADDS, erf, fixed("one"))
    yield node("gelu", "Mul", half, bracket)
    yield node("gelu", "Mul", x, node("halved", "Mul", bracket, fixed("half")))
    negated = node("argument", ("Mul", "RealDiv"), node("neg", "Neg", x), fixed("root_two"))
    yield node("gelu", "Mul", half, node("erfc", "Erfc", negated))


def tanh_gelus(x: Pattern) -> Iterator[Pattern]:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
    cubes = (
        node("cube", "Pow", x, fixed("exponent")),
        node("cube", "Mul", x, node("square", "Square", x)),
        node("cube", "Mul", x, node("square", "Mul", x, x)),
    )
    for cube in cubes:
        inner = node("inner", ops.ADDS, x, node("cubed", "Mul", cube, fixed("cubic")))
        tanh = node("tanh", "Tanh", node("argument", "Mul", inner, fixed("root_two_over_pi")))
        bracket = node("bracket", ops.ADDS, tanh, fixed("one"))
        yield node("gelu", "Mul", node("halved", "Mul", x, fixed("half")), bracket)
        yield node("gelu", "Mul", x, node("halved", "Mul", bracket, fixed("half")))

"""Small graphs that rules of fusion match, or nearly."""

from __future__ import annotations

from collections.abc import Callable

from moirai_tf.graph.graph import Graph, TensorRef
from tests.graphs import GraphBuilder

IMAGE = (2, 4, 4, 8)
ROWS = (2, 8)
Build = Callable[[GraphBuilder], TensorRef]
"""Adds operators and returns the output."""
Formula = Callable[[GraphBuilder, TensorRef], TensorRef]
"""The same, of one tensor."""


def conv_bias(b: GraphBuilder) -> TensorRef:
    return b.op("BiasAdd", "bias", b.conv("c", b.feed("x", IMAGE)), b.weight("b", 8), shape=IMAGE)


def dense(b: GraphBuilder) -> TensorRef:
    return b.dense("d", b.feed("x", ROWS))


def pooled(b: GraphBuilder) -> TensorRef:
    """Something that no rule fuses with what follows."""
    return b.op("MaxPool", "pool", b.feed("x", ROWS))


def dense_batch_norm(b: GraphBuilder) -> TensorRef:
    return b.batch_norm("bn", product(b), ROWS)


def product(b: GraphBuilder) -> TensorRef:
    return b.op("MatMul", "d/MatMul", b.feed("x", ROWS), b.weight("d/kernel", 8, 8))


def then(before: Build, formula: Formula) -> Build:
    return lambda b: formula(b, before(b))


def activated(op: str, before: Build, shape: tuple[int, ...]) -> Build:
    return lambda b: b.op(op, "activation", before(b), shape=shape)


def conv_add(b: GraphBuilder) -> TensorRef:
    """An AddV2 of a vector is a bias, in either order."""
    return b.op("AddV2", "add", b.weight("b", 8), b.conv("c", b.feed("x", IMAGE)), shape=IMAGE)


def conv_1d(b: GraphBuilder) -> TensorRef:
    """Keras makes a 1-D convolution of a 2-D one and squeezes it before the bias."""
    squeezed = b.op("Squeeze", "squeeze", b.conv("c", b.feed("x", IMAGE)), shape=(2, 16, 8))
    return b.op("BiasAdd", "bias", squeezed, b.weight("b", 8), shape=(2, 16, 8))


def conv_batch_norm(b: GraphBuilder) -> TensorRef:
    return b.batch_norm("bn", b.conv("c", b.feed("x", IMAGE)))


def fused_batch_norm(b: GraphBuilder, x: TensorRef, training: bool = False) -> TensorRef:
    parts = [b.weight(part, 8) for part in ("scale", "offset", "mean", "variance")]
    attrs = {"is_training": training}
    return b.op("FusedBatchNormV3", "bn", x, *parts, shape=IMAGE, outputs=6, attrs=attrs)


def conv_fused_batch_norm(b: GraphBuilder) -> TensorRef:
    return fused_batch_norm(b, b.conv("c", b.feed("x", IMAGE)))


def pad_conv(b: GraphBuilder) -> TensorRef:
    paddings = b.const("paddings", [[0, 0], [1, 1], [1, 1], [0, 0]], "int32")
    return b.conv("c", b.op("Pad", "pad", b.feed("x", IMAGE), paddings, shape=(2, 6, 6, 8)))


def scaled_query(b: GraphBuilder) -> TensorRef:
    return b.op("Mul", "scaled", dense(b), b.const("factor", 0.125))


def batch_norm_relu(b: GraphBuilder) -> TensorRef:
    pooled = b.op("MaxPool", "pool", b.feed("x", IMAGE), shape=IMAGE)
    return b.op("Relu", "relu", fused_batch_norm(b, pooled), shape=IMAGE)


def residual(b: GraphBuilder, x: TensorRef) -> TensorRef:
    return b.op("AddV2", "sum", b.feed("skip", ROWS), x)


def residual_relu(b: GraphBuilder, x: TensorRef) -> TensorRef:
    return b.op("Relu", "relu", residual(b, x))


def gelu_erf(b: GraphBuilder, x: TensorRef) -> TensorRef:
    erf = b.op("Erf", "erf", b.op("RealDiv", "arg", x, b.const("root", 1.41421)))
    bracket = b.op("AddV2", "bracket", b.const("one", 1.0), erf)
    return b.op("Mul", "gelu", b.op("Mul", "halved", b.const("half", 0.5), x), bracket)


def gelu_erfc(b: GraphBuilder, x: TensorRef) -> TensorRef:
    argument = b.op("Mul", "arg", b.op("Neg", "neg", x), b.const("root", 0.70710678))
    halved = b.op("Mul", "halved", x, b.const("half", 0.5))
    return b.op("Mul", "gelu", halved, b.op("Erfc", "erfc", argument))


def gelu_tanh(b: GraphBuilder, x: TensorRef, cubic: float = 0.044715) -> TensorRef:
    cube = b.op("Pow", "cube", x, b.const("three", 3.0))
    inner = b.op("AddV2", "inner", x, b.op("Mul", "cubed", b.const("cubic", cubic), cube))
    tanh = b.op("Tanh", "tanh", b.op("Mul", "arg", b.const("root", 0.7978845), inner))
    bracket = b.op("AddV2", "bracket", b.const("one", 1.0), tanh)
    return b.op("Mul", "gelu", b.op("Mul", "halved", b.const("half", 0.5), x), bracket)


def swish(b: GraphBuilder, x: TensorRef) -> TensorRef:
    """As Keras exports it: the custom gradient leaves an IdentityN that also reads x."""
    beta = b.const("beta", 1.0)
    product = b.op("Mul", "swish", x, b.op("Sigmoid", "sigmoid", b.op("Mul", "scaled", beta, x)))
    return b.op("IdentityN", "identity", product, x, beta, outputs=3)


def hard_swish(b: GraphBuilder, x: TensorRef) -> TensorRef:
    clipped = b.op("Relu6", "relu6", b.op("AddV2", "plus", x, b.const("three", 3.0)))
    return b.op("Mul", "hard", x, b.op("Mul", "sixth", clipped, b.const("six", 1 / 6)))


def hard_swish_divided_last(b: GraphBuilder, x: TensorRef) -> TensorRef:
    clipped = b.op("Relu6", "relu6", b.op("AddV2", "plus", x, b.const("three", 3.0)))
    return b.op("RealDiv", "hard", b.op("Mul", "product", x, clipped), b.const("six", 6.0))


def mish(b: GraphBuilder, x: TensorRef) -> TensorRef:
    return b.op("Mul", "mish", x, b.op("Tanh", "tanh", b.op("Softplus", "softplus", x)))


def leaky(b: GraphBuilder, x: TensorRef, alpha: float = 0.1) -> TensorRef:
    return b.op("Maximum", "leaky", b.op("Mul", "sloped", x, b.const("alpha", alpha)), x)


def scores(b: GraphBuilder, factor_shape: tuple[int, ...] = ()) -> TensorRef:
    query, key = b.feed("q", (2, 4, 8, 8)), b.feed("k", (2, 4, 8, 8))
    key = b.op("Transpose", "transpose", key, b.const("order", [0, 1, 3, 2], "int32"),
               shape=(2, 4, 8, 8))  # fmt: skip
    product = b.op("BatchMatMulV2", "product", query, key, shape=(2, 4, 8, 8))
    factor = b.feed("factor", factor_shape)
    scaled = b.op("Mul", "scaled", product, factor, shape=(2, 4, 8, 8))
    return b.op("AddV2", "masked", scaled, b.feed("mask", (2, 1, 8, 8)), shape=(2, 4, 8, 8))


def moments(b: GraphBuilder, x: TensorRef) -> tuple[TensorRef, TensorRef]:
    axis = b.const("axis", [-1], "int32")
    mean = b.op("Mean", "mean", x, axis, shape=(2, 1))
    stopped = b.op("StopGradient", "stop", mean, shape=(2, 1))
    squares = b.op("SquaredDifference", "squares", x, stopped)
    variance = b.op("Mean", "variance", squares, axis, shape=(2, 1))
    rsqrt = b.op("AddV2", "eps", variance, b.const("epsilon", 1e-3), shape=(2, 1))
    rsqrt = b.op("Rsqrt", "rsqrt", rsqrt, shape=(2, 1))
    return mean, b.op("Mul", "inverse", rsqrt, b.weight("gamma", 8))


def layer_norm_keras(b: GraphBuilder) -> TensorRef:
    x = pooled(b)
    mean, inverse = moments(b, x)
    moved = b.op("Mul", "moved", b.op("Neg", "neg", mean, shape=(2, 1)), inverse)
    shift = b.op("AddV2", "shift", moved, b.weight("beta", 8))
    return b.op("AddV2", "norm", b.op("Mul", "scaled", x, inverse), shift)


def layer_norm_tf(b: GraphBuilder) -> TensorRef:
    x = pooled(b)
    mean, inverse = moments(b, x)
    shift = b.op("Sub", "shift", b.weight("beta", 8), b.op("Mul", "moved", mean, inverse))
    return b.op("AddV2", "norm", b.op("Mul", "scaled", x, inverse), shift)


def layer_norm_centred(b: GraphBuilder) -> TensorRef:
    x = pooled(b)
    axis = b.const("axis", [-1], "int32")
    centred = b.op("Sub", "centred", x, b.op("Mean", "mean", x, axis, shape=(2, 1)))
    variance = b.op("Mean", "variance", b.op("Square", "square", centred), axis, shape=(2, 1))
    rsqrt = b.op("AddV2", "eps", variance, b.const("epsilon", 1e-3), shape=(2, 1))
    rsqrt = b.op("Rsqrt", "rsqrt", rsqrt, shape=(2, 1))
    scaled = b.op("Mul", "scaled", centred, b.op("Mul", "inverse", rsqrt, b.weight("gamma", 8)))
    return b.op("AddV2", "norm", scaled, b.weight("beta", 8))


def layer_norm_by_batch_norm(b: GraphBuilder, training: bool = True) -> TensorRef:
    x = pooled(b)
    rows = b.op("Reshape", "rows", x, b.const("to", [1, 2, 8, 1], "int32"), shape=(1, 2, 8, 1))
    ones, zeros, none = (b.const(n, v) for n, v in (("1", [1, 1]), ("0", [0, 0]), ("n", [])))
    attrs = {"is_training": training}
    shape = (1, 2, 8, 1)
    normal = b.op("FusedBatchNormV3", "bn", rows, ones, zeros, none, none, shape=shape, outputs=6,
                  attrs=attrs)  # fmt: skip
    back = b.op("Reshape", "back", normal, b.const("back_to", [2, 8], "int32"))
    return b.op("AddV2", "norm", b.op("Mul", "scaled", back, b.weight("gamma", 8)),
                b.weight("beta", 8))  # fmt: skip


def root_mean_square_norm(b: GraphBuilder) -> TensorRef:
    x = pooled(b)
    axis = b.const("axis", [-1], "int32")
    mean = b.op("Mean", "mean", b.op("Square", "square", x), axis, shape=(2, 1))
    rsqrt = b.op("AddV2", "eps", mean, b.const("epsilon", 1e-3), shape=(2, 1))
    scaled = b.op("Mul", "scaled", x, b.op("Rsqrt", "rsqrt", rsqrt, shape=(2, 1)))
    return b.op("Mul", "norm", scaled, b.weight("gamma", 8))


def softmax(b: GraphBuilder) -> TensorRef:
    x = pooled(b)
    axis = b.const("axis", [-1], "int32")
    exp = b.op("Exp", "exp", b.op("Sub", "shift", x, b.op("Max", "max", x, axis, shape=(2, 1))))
    return b.op("RealDiv", "softmax", exp, b.op("Sum", "sum", exp, axis, shape=(2, 1)))


def scaled_scores(b: GraphBuilder) -> TensorRef:
    product = b.op("BatchMatMulV2", "product", b.feed("q"), b.feed("k"))
    return b.op("RealDiv", "scaled", product, b.feed("factor", ()))


def transposed(b: GraphBuilder, order: list[int]) -> TensorRef:
    shape = (2, 8, 8)
    keys = b.op("Transpose", "transposed", b.feed("k", shape), b.const("order", order, "int32"),
                shape=shape)  # fmt: skip
    return b.op("BatchMatMulV2", "product", b.feed("q", shape), keys, shape=shape)


def pointwise(b: GraphBuilder) -> TensorRef:
    conv = b.op("Conv2D", "c", b.feed("x", IMAGE), b.weight("line", 1, 7, 8, 8), shape=IMAGE)
    bias = b.op("BiasAdd", "bias", conv, b.weight("b", 8), shape=IMAGE)
    return b.op("Relu", "relu", bias, shape=IMAGE)


def half_relu(b: GraphBuilder) -> TensorRef:
    x = b.feed("x", IMAGE, "bfloat16")
    parts = [b.weight(part, 8) for part in ("scale", "offset", "mean", "variance")]
    normal = b.op("FusedBatchNormV3", "bn", x, *parts, shape=IMAGE, outputs=6, dtype="bfloat16",
                  attrs={"is_training": False})  # fmt: skip
    return b.op("Relu", "relu", normal, shape=IMAGE, dtype="bfloat16")


def masked_softmax(b: GraphBuilder) -> TensorRef:
    masked = b.op("AddV2", "masked", pooled(b), b.feed("mask"))
    return b.op("Softmax", "softmax", masked)


def two_readers(b: GraphBuilder) -> TensorRef:
    conv = b.conv("conv1", b.feed("x", IMAGE))
    a = b.op("BiasAdd", "a", conv, b.weight("bias", 8), shape=IMAGE)
    return b.op("Concat", "joined", a, b.op("MaxPool", "b", conv, shape=IMAGE), shape=IMAGE)


def fetched(b: GraphBuilder) -> TensorRef:
    conv = b.conv("conv1", b.feed("x", IMAGE))
    b.fetch("logits", conv)
    return b.op("BiasAdd", "a", conv, b.weight("bias", 8), shape=IMAGE)


def two_types(b: GraphBuilder) -> TensorRef:
    x = b.dense("d", b.feed("x"))
    return b.op("Relu", "activation", x, dtype="bfloat16")


def integers(b: GraphBuilder) -> TensorRef:
    product = b.op("MatMul", "d", b.feed("x"), b.weight("kernel", 8, 8), dtype="int32")
    return b.op("BiasAdd", "sum", product, b.weight("bias", 8), dtype="int32")


def enlarged(b: GraphBuilder) -> TensorRef:
    product = b.op("MatMul", "d", b.feed("x", (1, 8)), b.weight("kernel", 8, 8), shape=(1, 8))
    return b.op("AddV2", "sum", product, b.weight("table", 5, 8), shape=(5, 8))


def small_residual(b: GraphBuilder) -> TensorRef:
    return b.op("AddV2", "sum", b.dense("d", b.feed("x")), b.feed("row", (1, 8)))


def training(b: GraphBuilder) -> TensorRef:
    return fused_batch_norm(b, b.conv("c", b.feed("x", IMAGE)), training=True)


def statistics(b: GraphBuilder) -> TensorRef:
    normal = conv_fused_batch_norm(b)
    b.op("MaxPool", "logger", TensorRef(normal.producer, 1), shape=IMAGE)
    return normal


def graph(build: Build) -> Graph:
    builder = GraphBuilder()
    builder.fetch("output", build(builder))
    return builder.build()

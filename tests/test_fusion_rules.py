"""Every rule matches what it describes, and every check that fails says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.analysis import analyse
from moirai_tf.fusion.coarsen import coarsen, near_misses
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.fusion.pattern import match
from moirai_tf.fusion.rules import RULE_SETS, rules_for
from moirai_tf.graph.graph import Graph, TensorRef
from tests.graphs import GraphBuilder, names

IMAGE = (2, 4, 4, 8)
ROWS = (2, 8)
Build = Callable[[GraphBuilder], TensorRef]
"""Adds operators and returns the output."""
Formula = Callable[[GraphBuilder, TensorRef], TensorRef]
"""The same, of one tensor."""


def _conv_bias(b: GraphBuilder) -> TensorRef:
    return b.op("BiasAdd", "bias", b.conv("c", b.feed("x", IMAGE)), b.weight("b", 8), shape=IMAGE)


def _dense(b: GraphBuilder) -> TensorRef:
    return b.dense("d", b.feed("x", ROWS))


def _pooled(b: GraphBuilder) -> TensorRef:
    """Something that no rule fuses with what follows."""
    return b.op("MaxPool", "pool", b.feed("x", ROWS))


def _dense_batch_norm(b: GraphBuilder) -> TensorRef:
    return b.batch_norm("bn", _product(b), ROWS)


def _product(b: GraphBuilder) -> TensorRef:
    return b.op("MatMul", "d/MatMul", b.feed("x", ROWS), b.weight("d/kernel", 8, 8))


def _then(before: Build, formula: Formula) -> Build:
    return lambda b: formula(b, before(b))


def _activated(op: str, before: Build, shape: tuple[int, ...]) -> Build:
    return lambda b: b.op(op, "activation", before(b), shape=shape)


def _conv_add(b: GraphBuilder) -> TensorRef:
    """An AddV2 of a vector is a bias, in either order."""
    return b.op("AddV2", "add", b.weight("b", 8), b.conv("c", b.feed("x", IMAGE)), shape=IMAGE)


def _conv_1d(b: GraphBuilder) -> TensorRef:
    """Keras makes a 1-D convolution of a 2-D one and squeezes it before the bias."""
    squeezed = b.op("Squeeze", "squeeze", b.conv("c", b.feed("x", IMAGE)), shape=(2, 16, 8))
    return b.op("BiasAdd", "bias", squeezed, b.weight("b", 8), shape=(2, 16, 8))


def _conv_batch_norm(b: GraphBuilder) -> TensorRef:
    return b.batch_norm("bn", b.conv("c", b.feed("x", IMAGE)))


def _fused_batch_norm(b: GraphBuilder, x: TensorRef, training: bool = False) -> TensorRef:
    parts = [b.weight(part, 8) for part in ("scale", "offset", "mean", "variance")]
    attrs = {"is_training": training}
    return b.op("FusedBatchNormV3", "bn", x, *parts, shape=IMAGE, outputs=6, attrs=attrs)


def _conv_fused_batch_norm(b: GraphBuilder) -> TensorRef:
    return _fused_batch_norm(b, b.conv("c", b.feed("x", IMAGE)))


def _pad_conv(b: GraphBuilder) -> TensorRef:
    paddings = b.const("paddings", [[0, 0], [1, 1], [1, 1], [0, 0]], "int32")
    return b.conv("c", b.op("Pad", "pad", b.feed("x", IMAGE), paddings, shape=(2, 6, 6, 8)))


def _scaled_query(b: GraphBuilder) -> TensorRef:
    return b.op("Mul", "scaled", _dense(b), b.const("factor", 0.125))


def _batch_norm_relu(b: GraphBuilder) -> TensorRef:
    pooled = b.op("MaxPool", "pool", b.feed("x", IMAGE), shape=IMAGE)
    return b.op("Relu", "relu", _fused_batch_norm(b, pooled), shape=IMAGE)


def _residual(b: GraphBuilder, x: TensorRef) -> TensorRef:
    return b.op("AddV2", "sum", b.feed("skip", ROWS), x)


def _residual_relu(b: GraphBuilder, x: TensorRef) -> TensorRef:
    return b.op("Relu", "relu", _residual(b, x))


def _gelu_erf(b: GraphBuilder, x: TensorRef) -> TensorRef:
    erf = b.op("Erf", "erf", b.op("RealDiv", "arg", x, b.const("root", 1.41421)))
    bracket = b.op("AddV2", "bracket", b.const("one", 1.0), erf)
    return b.op("Mul", "gelu", b.op("Mul", "halved", b.const("half", 0.5), x), bracket)


def _gelu_erfc(b: GraphBuilder, x: TensorRef) -> TensorRef:
    argument = b.op("Mul", "arg", b.op("Neg", "neg", x), b.const("root", 0.70710678))
    halved = b.op("Mul", "halved", x, b.const("half", 0.5))
    return b.op("Mul", "gelu", halved, b.op("Erfc", "erfc", argument))


def _gelu_tanh(b: GraphBuilder, x: TensorRef, cubic: float = 0.044715) -> TensorRef:
    cube = b.op("Pow", "cube", x, b.const("three", 3.0))
    inner = b.op("AddV2", "inner", x, b.op("Mul", "cubed", b.const("cubic", cubic), cube))
    tanh = b.op("Tanh", "tanh", b.op("Mul", "arg", b.const("root", 0.7978845), inner))
    bracket = b.op("AddV2", "bracket", b.const("one", 1.0), tanh)
    return b.op("Mul", "gelu", b.op("Mul", "halved", b.const("half", 0.5), x), bracket)


def _swish(b: GraphBuilder, x: TensorRef) -> TensorRef:
    """As Keras exports it: the custom gradient leaves an IdentityN that also reads x."""
    beta = b.const("beta", 1.0)
    product = b.op("Mul", "swish", x, b.op("Sigmoid", "sigmoid", b.op("Mul", "scaled", beta, x)))
    return b.op("IdentityN", "identity", product, x, beta, outputs=3)


def _hard_swish(b: GraphBuilder, x: TensorRef) -> TensorRef:
    clipped = b.op("Relu6", "relu6", b.op("AddV2", "plus", x, b.const("three", 3.0)))
    return b.op("Mul", "hard", x, b.op("Mul", "sixth", clipped, b.const("six", 1 / 6)))


def _hard_swish_divided_last(b: GraphBuilder, x: TensorRef) -> TensorRef:
    clipped = b.op("Relu6", "relu6", b.op("AddV2", "plus", x, b.const("three", 3.0)))
    return b.op("RealDiv", "hard", b.op("Mul", "product", x, clipped), b.const("six", 6.0))


def _mish(b: GraphBuilder, x: TensorRef) -> TensorRef:
    return b.op("Mul", "mish", x, b.op("Tanh", "tanh", b.op("Softplus", "softplus", x)))


def _leaky(b: GraphBuilder, x: TensorRef, alpha: float = 0.1) -> TensorRef:
    return b.op("Maximum", "leaky", b.op("Mul", "sloped", x, b.const("alpha", alpha)), x)


def _scores(b: GraphBuilder, factor_shape: tuple[int, ...] = ()) -> TensorRef:
    query, key = b.feed("q", (2, 4, 8, 8)), b.feed("k", (2, 4, 8, 8))
    key = b.op("Transpose", "transpose", key, b.const("order", [0, 1, 3, 2], "int32"),
               shape=(2, 4, 8, 8))  # fmt: skip
    product = b.op("BatchMatMulV2", "product", query, key, shape=(2, 4, 8, 8))
    factor = b.feed("factor", factor_shape)
    scaled = b.op("Mul", "scaled", product, factor, shape=(2, 4, 8, 8))
    return b.op("AddV2", "masked", scaled, b.feed("mask", (2, 1, 8, 8)), shape=(2, 4, 8, 8))


def _moments(b: GraphBuilder, x: TensorRef) -> tuple[TensorRef, TensorRef]:
    axis = b.const("axis", [-1], "int32")
    mean = b.op("Mean", "mean", x, axis, shape=(2, 1))
    stopped = b.op("StopGradient", "stop", mean, shape=(2, 1))
    squares = b.op("SquaredDifference", "squares", x, stopped)
    variance = b.op("Mean", "variance", squares, axis, shape=(2, 1))
    rsqrt = b.op("AddV2", "eps", variance, b.const("epsilon", 1e-3), shape=(2, 1))
    rsqrt = b.op("Rsqrt", "rsqrt", rsqrt, shape=(2, 1))
    return mean, b.op("Mul", "inverse", rsqrt, b.weight("gamma", 8))


def _layer_norm_keras(b: GraphBuilder) -> TensorRef:
    x = _pooled(b)
    mean, inverse = _moments(b, x)
    moved = b.op("Mul", "moved", b.op("Neg", "neg", mean, shape=(2, 1)), inverse)
    shift = b.op("AddV2", "shift", moved, b.weight("beta", 8))
    return b.op("AddV2", "norm", b.op("Mul", "scaled", x, inverse), shift)


def _layer_norm_tf(b: GraphBuilder) -> TensorRef:
    x = _pooled(b)
    mean, inverse = _moments(b, x)
    shift = b.op("Sub", "shift", b.weight("beta", 8), b.op("Mul", "moved", mean, inverse))
    return b.op("AddV2", "norm", b.op("Mul", "scaled", x, inverse), shift)


def _layer_norm_centred(b: GraphBuilder) -> TensorRef:
    x = _pooled(b)
    axis = b.const("axis", [-1], "int32")
    centred = b.op("Sub", "centred", x, b.op("Mean", "mean", x, axis, shape=(2, 1)))
    variance = b.op("Mean", "variance", b.op("Square", "square", centred), axis, shape=(2, 1))
    rsqrt = b.op("AddV2", "eps", variance, b.const("epsilon", 1e-3), shape=(2, 1))
    rsqrt = b.op("Rsqrt", "rsqrt", rsqrt, shape=(2, 1))
    scaled = b.op("Mul", "scaled", centred, b.op("Mul", "inverse", rsqrt, b.weight("gamma", 8)))
    return b.op("AddV2", "norm", scaled, b.weight("beta", 8))


def _layer_norm_by_batch_norm(b: GraphBuilder, training: bool = True) -> TensorRef:
    x = _pooled(b)
    rows = b.op("Reshape", "rows", x, b.const("to", [1, 2, 8, 1], "int32"), shape=(1, 2, 8, 1))
    ones, zeros, none = (b.const(n, v) for n, v in (("1", [1, 1]), ("0", [0, 0]), ("n", [])))
    attrs = {"is_training": training}
    shape = (1, 2, 8, 1)
    normal = b.op("FusedBatchNormV3", "bn", rows, ones, zeros, none, none, shape=shape, outputs=6,
                  attrs=attrs)  # fmt: skip
    back = b.op("Reshape", "back", normal, b.const("back_to", [2, 8], "int32"))
    return b.op("AddV2", "norm", b.op("Mul", "scaled", back, b.weight("gamma", 8)),
                b.weight("beta", 8))  # fmt: skip


def _root_mean_square_norm(b: GraphBuilder) -> TensorRef:
    x = _pooled(b)
    axis = b.const("axis", [-1], "int32")
    mean = b.op("Mean", "mean", b.op("Square", "square", x), axis, shape=(2, 1))
    rsqrt = b.op("AddV2", "eps", mean, b.const("epsilon", 1e-3), shape=(2, 1))
    scaled = b.op("Mul", "scaled", x, b.op("Rsqrt", "rsqrt", rsqrt, shape=(2, 1)))
    return b.op("Mul", "norm", scaled, b.weight("gamma", 8))


def _softmax(b: GraphBuilder) -> TensorRef:
    x = _pooled(b)
    axis = b.const("axis", [-1], "int32")
    exp = b.op("Exp", "exp", b.op("Sub", "shift", x, b.op("Max", "max", x, axis, shape=(2, 1))))
    return b.op("RealDiv", "softmax", exp, b.op("Sum", "sum", exp, axis, shape=(2, 1)))


def _scaled_scores(b: GraphBuilder) -> TensorRef:
    product = b.op("BatchMatMulV2", "product", b.feed("q"), b.feed("k"))
    return b.op("RealDiv", "scaled", product, b.feed("factor", ()))


def _transposed(b: GraphBuilder, order: list[int]) -> TensorRef:
    shape = (2, 8, 8)
    keys = b.op("Transpose", "transposed", b.feed("k", shape), b.const("order", order, "int32"),
                shape=shape)  # fmt: skip
    return b.op("BatchMatMulV2", "product", b.feed("q", shape), keys, shape=shape)


def _pointwise(b: GraphBuilder) -> TensorRef:
    conv = b.op("Conv2D", "c", b.feed("x", IMAGE), b.weight("line", 1, 7, 8, 8), shape=IMAGE)
    bias = b.op("BiasAdd", "bias", conv, b.weight("b", 8), shape=IMAGE)
    return b.op("Relu", "relu", bias, shape=IMAGE)


def _half_relu(b: GraphBuilder) -> TensorRef:
    x = b.feed("x", IMAGE, "bfloat16")
    parts = [b.weight(part, 8) for part in ("scale", "offset", "mean", "variance")]
    normal = b.op("FusedBatchNormV3", "bn", x, *parts, shape=IMAGE, outputs=6, dtype="bfloat16",
                  attrs={"is_training": False})  # fmt: skip
    return b.op("Relu", "relu", normal, shape=IMAGE, dtype="bfloat16")


def _masked_softmax(b: GraphBuilder) -> TensorRef:
    masked = b.op("AddV2", "masked", _pooled(b), b.feed("mask"))
    return b.op("Softmax", "softmax", masked)


FORMULAS: dict[str, list[tuple[Formula, set[str]]]] = {
    "residual": [(_residual, {"sum"})],
    "residual+activation": [(_residual_relu, {"sum", "relu"})],
    "gelu": [
        (_gelu_erf, {"arg", "erf", "bracket", "halved", "gelu"}),
        (_gelu_erfc, {"neg", "arg", "erfc", "halved", "gelu"}),
        (_gelu_tanh,
         {"cube", "cubed", "inner", "arg", "tanh", "bracket", "halved", "gelu"}),
    ],
    "swish": [(_swish, {"scaled", "sigmoid", "swish", "identity"})],
    "hard_swish": [
        (_hard_swish, {"plus", "relu6", "sixth", "hard"}),
        (_hard_swish_divided_last, {"plus", "relu6", "product", "hard"}),
    ],
    "mish": [(_mish, {"softplus", "tanh", "mish"})],
    "leaky_relu": [(_leaky, {"sloped", "leaky"})],
}  # fmt: skip
"""What follows a contraction, by the end of the rule's name."""

BASES: list[tuple[str, Build, set[str]]] = [
    ("contraction+bias+", _dense, {"d/MatMul", "d/BiasAdd"}),
    ("contraction+batch_norm+", _dense_batch_norm, {"d/MatMul", "bn/mul_1", "bn/add_1"}),
    ("", _pooled, set()),
]
"""What a formula follows, by the start of the rule's name."""

EIGEN: list[tuple[str, Build, set[str]]] = [
    ("eigen/contraction+bias+activation", _activated("Relu", _conv_bias, IMAGE),
     {"c/conv", "bias", "activation"}),
    *(("eigen/contraction+bias+activation", _activated(op, _dense, ROWS),
       {"d/MatMul", "d/BiasAdd", "activation"})
      for op in ("Relu", "Relu6", "Elu", "LeakyRelu", "Tanh", "Sigmoid")),
    ("eigen/contraction+bias", _conv_bias, {"c/conv", "bias"}),
    ("eigen/contraction+bias", _conv_add, {"c/conv", "add"}),
    ("eigen/contraction+bias", _conv_1d, {"c/conv", "squeeze", "bias"}),
    ("eigen/contraction+batch_norm", _conv_batch_norm, {"c/conv", "bn/mul_1", "bn/add_1"}),
    ("eigen/contraction+batch_norm+activation", _activated("Relu", _conv_batch_norm, IMAGE),
     {"c/conv", "bn/mul_1", "bn/add_1", "activation"}),
    ("eigen/contraction+batch_norm", _conv_fused_batch_norm, {"c/conv", "bn"}),
    ("eigen/contraction+batch_norm+activation", _activated("Relu", _conv_fused_batch_norm, IMAGE),
     {"c/conv", "bn", "activation"}),
    ("eigen/contraction+activation",
     _activated("Relu", lambda b: b.conv("c", b.feed("x", IMAGE)), IMAGE),
     {"c/conv", "activation"}),
    ("eigen/operands+contraction", _pad_conv, {"pad", "c/conv"}),
    ("eigen/contraction+scale", _scaled_query, {"d/MatMul", "d/BiasAdd", "scaled"}),
    ("eigen/batch_norm+activation", _batch_norm_relu, {"bn", "relu"}),
]  # fmt: skip

OTHERS: list[tuple[str, Build, set[str]]] = [
    ("nnpack/convolution+bias+relu", _activated("Relu", _conv_bias, IMAGE),
     {"c/conv", "bias", "activation"}),
    ("nnpack/fully_connected+bias+relu", _activated("Relu", _dense, ROWS),
     {"d/MatMul", "d/BiasAdd", "activation"}),
    ("onednn/batch_matmul+mul+add", _scores, {"transpose", "product", "scaled", "masked"}),
    ("onednn/batch_matmul+mul", _scaled_scores, {"product", "scaled"}),
    ("onednn/layer_norm", _layer_norm_keras,
     {"mean", "stop", "squares", "variance", "eps", "rsqrt", "inverse", "neg", "moved", "shift",
      "scaled", "norm"}),
    ("onednn/layer_norm", _layer_norm_tf,
     {"mean", "stop", "squares", "variance", "eps", "rsqrt", "inverse", "moved", "shift",
      "scaled", "norm"}),
    ("onednn/layer_norm", _layer_norm_centred,
     {"mean", "centred", "square", "variance", "eps", "rsqrt", "inverse", "scaled", "norm"}),
    ("onednn/layer_norm", _layer_norm_by_batch_norm, {"rows", "bn", "back", "scaled", "norm"}),
    ("onednn/layer_norm", _root_mean_square_norm,
     {"square", "mean", "eps", "rsqrt", "scaled", "norm"}),
    ("onednn/softmax", _softmax, {"max", "shift", "exp", "sum", "softmax"}),
    ("onednn/mask+softmax", _masked_softmax, {"masked", "softmax"}),
]  # fmt: skip

CUDNN: list[tuple[str, Build, set[str]]] = [
    ("cudnn/convolution+bias+relu", _activated("Relu", _conv_bias, IMAGE),
     {"c/conv", "bias", "activation"}),
    ("cudnn/batch_norm+relu", _activated("Relu", _conv_fused_batch_norm, IMAGE),
     {"bn", "activation"}),
    ("cudnn/transpose+product", lambda b: _transposed(b, [0, 2, 1]), {"transposed", "product"}),
]  # fmt: skip


MATCHES = [
    *EIGEN,
    *((rule.replace("eigen", "onednn"), build, members) for rule, build, members in EIGEN),
    *OTHERS,
    *CUDNN,
    *(
        (f"onednn/{start}{end}", _then(before, formula), members | more)
        for start, before, members in BASES
        for end, formulas in FORMULAS.items()
        for formula, more in formulas
        if start or not end.startswith("residual")
    ),
]


def _graph(build: Build) -> Graph:
    builder = GraphBuilder()
    builder.fetch("output", build(builder))
    return builder.build()


@pytest.mark.parametrize(
    ("rule", "build", "members"), MATCHES, ids=[f"{i}-{m[0]}" for i, m in enumerate(MATCHES)]
)
def test_rule_matches(rule: str, build: Build, members: set[str]) -> None:
    graph = _graph(build)
    coarse, _ = coarsen(graph, FuseOptions(rules=(rule.partition("/")[0],)))
    (fused,) = [f for f in coarse.operators if f.rule == rule]
    fixed = analyse(graph).fixed
    assert names(graph, (m for m in fused.members if not fixed[m])) == members


def test_every_rule_is_tested() -> None:
    assert {rule for rule, _, _ in MATCHES} == {
        rule.name for rules in RULE_SETS.values() for rule in rules
    }


def test_sets_together_share_what_they_have_in_common() -> None:
    together = rules_for(("eigen", "onednn"))
    assert len(together) < len(RULE_SETS["eigen"]) + len(RULE_SETS["onednn"])
    assert rules_for(("eigen", "nnpack", "onednn"), ["GPU"]) == ()
    assert rules_for(tuple(RULE_SETS), ["GPU"]) == RULE_SETS["cudnn"]


def test_unknown_rule_set() -> None:
    with pytest.raises(
        MoiraiError, match=r"no rule set 'tensorrt'[\s\S]*eigen, nnpack, onednn, cudnn"
    ):
        rules_for(("tensorrt",))


def test_bigger_fusion_wins_and_operators_are_fused_once() -> None:
    builder = GraphBuilder()
    left = builder.dense("left", builder.feed("a"))
    right = builder.dense("right", builder.feed("b"))
    total = builder.op("Relu", "relu", builder.op("AddV2", "sum", left, right))
    builder.fetch("output", total)
    graph = builder.build()
    fusions, _ = match(analyse(graph), rules_for(tuple(RULE_SETS)))
    assert [(f.rule, names(graph, f.members)) for f in fusions] == [
        (
            "onednn/contraction+bias+residual+activation",
            {"left/MatMul", "left/BiasAdd", "sum", "relu"},
        ),
        ("eigen/contraction+bias", {"right/MatMul", "right/BiasAdd"}),
    ]


def _two_readers(b: GraphBuilder) -> TensorRef:
    conv = b.conv("conv1", b.feed("x", IMAGE))
    a = b.op("BiasAdd", "a", conv, b.weight("bias", 8), shape=IMAGE)
    return b.op("Concat", "joined", a, b.op("MaxPool", "b", conv, shape=IMAGE), shape=IMAGE)


def _fetched(b: GraphBuilder) -> TensorRef:
    conv = b.conv("conv1", b.feed("x", IMAGE))
    b.fetch("logits", conv)
    return b.op("BiasAdd", "a", conv, b.weight("bias", 8), shape=IMAGE)


def _two_types(b: GraphBuilder) -> TensorRef:
    x = b.dense("d", b.feed("x"))
    return b.op("Relu", "activation", x, dtype="bfloat16")


def _integers(b: GraphBuilder) -> TensorRef:
    product = b.op("MatMul", "d", b.feed("x"), b.weight("kernel", 8, 8), dtype="int32")
    return b.op("BiasAdd", "sum", product, b.weight("bias", 8), dtype="int32")


def _enlarged(b: GraphBuilder) -> TensorRef:
    product = b.op("MatMul", "d", b.feed("x", (1, 8)), b.weight("kernel", 8, 8), shape=(1, 8))
    return b.op("AddV2", "sum", product, b.weight("table", 5, 8), shape=(5, 8))


def _small_residual(b: GraphBuilder) -> TensorRef:
    return b.op("AddV2", "sum", b.dense("d", b.feed("x")), b.feed("row", (1, 8)))


def _training(b: GraphBuilder) -> TensorRef:
    return _fused_batch_norm(b, b.conv("c", b.feed("x", IMAGE)), training=True)


def _statistics(b: GraphBuilder) -> TensorRef:
    normal = _conv_fused_batch_norm(b)
    b.op("MaxPool", "logger", TensorRef(normal.producer, 1), shape=IMAGE)
    return normal


MISSES: list[tuple[str, Build, str]] = [
    ("eigen/contraction+bias", _two_readers, "conv1/conv feeds two consumers: a, b"),
    ("eigen/contraction+bias", _fetched, "conv1/conv feeds two consumers: logits, a"),
    ("eigen/contraction+bias+activation", _two_types,
     "d/MatMul computes float32, activation bfloat16"),
    ("eigen/contraction+bias", _integers,
     "sum computes int32; only float32, float64, float16, bfloat16 are fused"),
    ("eigen/contraction+bias", _enlarged, "sum broadcasts d from shape [1, 8] to [5, 8]"),
    ("onednn/contraction+bias+residual", _small_residual,
     "sum broadcasts row from shape [1, 8] to [2, 8]"),
    ("eigen/contraction+batch_norm", _training, "bn runs in training mode"),
    ("onednn/layer_norm", lambda b: _layer_norm_by_batch_norm(b, training=False),
     "bn runs in inference mode"),
    ("eigen/contraction+batch_norm", _statistics, "logger reads output 1 of bn"),
    ("onednn/contraction+bias+gelu", lambda b: _gelu_tanh(b, _dense(b), cubic=0.5),
     "cubic is 0.5 where 0.044715 is needed"),
    ("onednn/contraction+bias+leaky_relu", lambda b: _leaky(b, _dense(b), alpha=-1.0),
     "alpha is -1, which is negative"),
    ("onednn/batch_matmul+mul+add", lambda b: _scores(b, (8,)),
     "factor has shape [8], not one element"),
    ("cudnn/convolution+bias+relu", _pointwise,
     "line/read has shape [1, 7, 8, 8], which is not spatial"),
    ("cudnn/batch_norm+relu", _half_relu, "relu computes bfloat16; only float32 are fused"),
    ("cudnn/transpose+product", lambda b: _transposed(b, [1, 0, 2]),
     "transposed does more than swap rows and columns"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "build", "reason"), MISSES, ids=[m[2] for m in MISSES])
def test_failed_check_says_why(rule: str, build: Build, reason: str) -> None:
    missed = near_misses(_graph(build), FuseOptions(rules=(rule.partition("/")[0],)))
    assert f"not fused by {rule}: {reason}" in {str(miss) for miss in missed}

"""Every rule matches what it describes."""

from __future__ import annotations

import pytest

from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.analysis import analyse
from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.fusion.pattern import match
from moirai_tf.fusion.rules import RULE_SETS, rules_for
from tests import fusion_patterns as p
from tests.graphs import GraphBuilder, names

FORMULAS: dict[str, list[tuple[p.Formula, set[str]]]] = {
    "residual": [(p.residual, {"sum"})],
    "residual+activation": [(p.residual_relu, {"sum", "relu"})],
    "gelu": [
        (p.gelu_erf, {"arg", "erf", "bracket", "halved", "gelu"}),
        (p.gelu_erfc, {"neg", "arg", "erfc", "halved", "gelu"}),
        (p.gelu_tanh,
         {"cube", "cubed", "inner", "arg", "tanh", "bracket", "halved", "gelu"}),
    ],
    "swish": [(p.swish, {"scaled", "sigmoid", "swish", "identity"})],
    "hard_swish": [
        (p.hard_swish, {"plus", "relu6", "sixth", "hard"}),
        (p.hard_swish_divided_last, {"plus", "relu6", "product", "hard"}),
    ],
    "mish": [(p.mish, {"softplus", "tanh", "mish"})],
    "leaky_relu": [(p.leaky, {"sloped", "leaky"})],
}  # fmt: skip
"""What follows a contraction, by the end of the rule's name."""

BASES: list[tuple[str, p.Build, set[str]]] = [
    ("contraction+bias+", p.dense, {"d/MatMul", "d/BiasAdd"}),
    ("contraction+batch_norm+", p.dense_batch_norm, {"d/MatMul", "bn/mul_1", "bn/add_1"}),
    ("", p.pooled, set()),
]
"""What a formula follows, by the start of the rule's name."""

EIGEN: list[tuple[str, p.Build, set[str]]] = [
    ("eigen/contraction+bias+activation", p.activated("Relu", p.conv_bias, p.IMAGE),
     {"c/conv", "bias", "activation"}),
    *(("eigen/contraction+bias+activation", p.activated(op, p.dense, p.ROWS),
       {"d/MatMul", "d/BiasAdd", "activation"})
      for op in ("Relu", "Relu6", "Elu", "LeakyRelu", "Tanh", "Sigmoid")),
    ("eigen/contraction+bias", p.conv_bias, {"c/conv", "bias"}),
    ("eigen/contraction+bias", p.conv_add, {"c/conv", "add"}),
    ("eigen/contraction+bias", p.conv_1d, {"c/conv", "squeeze", "bias"}),
    ("eigen/contraction+batch_norm", p.conv_batch_norm, {"c/conv", "bn/mul_1", "bn/add_1"}),
    ("eigen/contraction+batch_norm+activation", p.activated("Relu", p.conv_batch_norm, p.IMAGE),
     {"c/conv", "bn/mul_1", "bn/add_1", "activation"}),
    ("eigen/contraction+batch_norm", p.conv_fused_batch_norm, {"c/conv", "bn"}),
    ("eigen/contraction+batch_norm+activation",
     p.activated("Relu", p.conv_fused_batch_norm, p.IMAGE), {"c/conv", "bn", "activation"}),
    ("eigen/contraction+activation",
     p.activated("Relu", lambda b: b.conv("c", b.feed("x", p.IMAGE)), p.IMAGE),
     {"c/conv", "activation"}),
    ("eigen/operands+contraction", p.pad_conv, {"pad", "c/conv"}),
    ("eigen/contraction+scale", p.scaled_query, {"d/MatMul", "d/BiasAdd", "scaled"}),
    ("eigen/batch_norm+activation", p.batch_norm_relu, {"bn", "relu"}),
]  # fmt: skip

OTHERS: list[tuple[str, p.Build, set[str]]] = [
    ("nnpack/convolution+bias+relu", p.activated("Relu", p.conv_bias, p.IMAGE),
     {"c/conv", "bias", "activation"}),
    ("nnpack/fully_connected+bias+relu", p.activated("Relu", p.dense, p.ROWS),
     {"d/MatMul", "d/BiasAdd", "activation"}),
    ("onednn/batch_matmul+mul+add", p.scores, {"transpose", "product", "scaled", "masked"}),
    ("onednn/batch_matmul+mul", p.scaled_scores, {"product", "scaled"}),
    ("onednn/layer_norm", p.layer_norm_keras,
     {"mean", "stop", "squares", "variance", "eps", "rsqrt", "inverse", "neg", "moved", "shift",
      "scaled", "norm"}),
    ("onednn/layer_norm", p.layer_norm_tf,
     {"mean", "stop", "squares", "variance", "eps", "rsqrt", "inverse", "moved", "shift",
      "scaled", "norm"}),
    ("onednn/layer_norm", p.layer_norm_centred,
     {"mean", "centred", "square", "variance", "eps", "rsqrt", "inverse", "scaled", "norm"}),
    ("onednn/layer_norm", p.layer_norm_by_batch_norm, {"rows", "bn", "back", "scaled", "norm"}),
    ("onednn/layer_norm", p.root_mean_square_norm,
     {"square", "mean", "eps", "rsqrt", "scaled", "norm"}),
    ("onednn/softmax", p.softmax, {"max", "shift", "exp", "sum", "softmax"}),
    ("onednn/mask+softmax", p.masked_softmax, {"masked", "softmax"}),
]  # fmt: skip

CUDNN: list[tuple[str, p.Build, set[str]]] = [
    ("cudnn/convolution+bias+relu", p.activated("Relu", p.conv_bias, p.IMAGE),
     {"c/conv", "bias", "activation"}),
    ("cudnn/batch_norm+relu", p.activated("Relu", p.conv_fused_batch_norm, p.IMAGE),
     {"bn", "activation"}),
    ("cudnn/transpose+product", lambda b: p.transposed(b, [0, 2, 1]), {"transposed", "product"}),
]  # fmt: skip


MATCHES = [
    *EIGEN,
    *((rule.replace("eigen", "onednn"), build, members) for rule, build, members in EIGEN),
    *OTHERS,
    *CUDNN,
    *(
        (f"onednn/{start}{end}", p.then(before, formula), members | more)
        for start, before, members in BASES
        for end, formulas in FORMULAS.items()
        for formula, more in formulas
        if start or not end.startswith("residual")
    ),
]


@pytest.mark.parametrize(
    ("rule", "build", "members"), MATCHES, ids=[f"{i}-{m[0]}" for i, m in enumerate(MATCHES)]
)
def test_rule_matches(rule: str, build: p.Build, members: set[str]) -> None:
    graph = p.graph(build)
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

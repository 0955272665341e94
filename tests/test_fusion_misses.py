"""Every check of a rule that fails says why."""

from __future__ import annotations

import pytest

from moirai_tf.fusion.coarsen import near_misses
from moirai_tf.fusion.options import FuseOptions
from tests import fusion_patterns as p

MISSES: list[tuple[str, p.Build, str]] = [
    ("eigen/contraction+bias", p.two_readers, "conv1/conv feeds two consumers: a, b"),
    ("eigen/contraction+bias", p.fetched, "conv1/conv feeds two consumers: logits, a"),
    ("eigen/contraction+bias+activation", p.two_types,
     "d/MatMul computes float32, activation bfloat16"),
    ("eigen/contraction+bias", p.integers,
     "sum computes int32; only float32, float64, float16, bfloat16 are fused"),
    ("eigen/contraction+bias", p.enlarged, "sum broadcasts d from shape [1, 8] to [5, 8]"),
    ("onednn/contraction+bias+residual", p.small_residual,
     "sum broadcasts row from shape [1, 8] to [2, 8]"),
    ("eigen/contraction+batch_norm", p.training, "bn runs in training mode"),
    ("onednn/layer_norm", lambda b: p.layer_norm_by_batch_norm(b, training=False),
     "bn runs in inference mode"),
    ("eigen/contraction+batch_norm", p.statistics, "logger reads output 1 of bn"),
    ("onednn/contraction+bias+gelu", lambda b: p.gelu_tanh(b, p.dense(b), cubic=0.5),
     "cubic is 0.5 where 0.044715 is needed"),
    ("onednn/contraction+bias+leaky_relu", lambda b: p.leaky(b, p.dense(b), alpha=-1.0),
     "alpha is -1, which is negative"),
    ("onednn/batch_matmul+mul+add", lambda b: p.scores(b, (8,)),
     "factor has shape [8], not one element"),
    ("cudnn/convolution+bias+relu", p.pointwise,
     "line/read has shape [1, 7, 8, 8], which is not spatial"),
    ("cudnn/batch_norm+relu", p.half_relu, "relu computes bfloat16; only float32 are fused"),
    ("cudnn/transpose+product", lambda b: p.transposed(b, [1, 0, 2]),
     "transposed does more than swap rows and columns"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "build", "reason"), MISSES, ids=[m[2] for m in MISSES])
def test_failed_check_says_why(rule: str, build: p.Build, reason: str) -> None:
    missed = near_misses(p.graph(build), FuseOptions(rules=(rule.partition("/")[0],)))
    assert f"not fused by {rule}: {reason}" in {str(miss) for miss in missed}

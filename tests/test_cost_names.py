"""Kernel names of a profile lead back to operators."""

from __future__ import annotations

import pytest

from moirai_tf.cost.step_stats import KernelNames
from tests.graphs import GraphBuilder

OPERATORS = (
    "call/dense/MatMul",
    "call/dense/BiasAdd",
    "call/while",
    "call/norm/add_2",
    "call/Gelu/Pow",
    "call/attention/Cast",
    "call/conv",
)


@pytest.fixture(scope="module")
def names() -> KernelNames:
    builder = GraphBuilder()
    for name in OPERATORS:
        builder.op("Relu", name)
    return KernelNames(builder.build())


@pytest.mark.parametrize(
    ("kernel", "operator"),
    [
        ("call/dense/BiasAdd", "call/dense/BiasAdd"),
        ("call/while/body/_17/while/MatMul", "call/while"),
        ("call/while/cond/_16/while/ArithmeticOptimizer/Less_x", "call/while"),
        ("call/norm/ArithmeticOptimizer/AddOpsRewrite_Leaf_1_add_2", "call/norm/add_2"),
        ("call/Gelu/ArithmeticOptimizer/ConvertPow__inner_Pow", "call/Gelu/Pow"),
        (
            "call/attention/ArithmeticOptimizer/ArithmeticOptimizer/"
            "ReorderCastLikeAndValuePreserving_int32_ReorderCastLikeAndValuePreserving_int32_Cast",
            "call/attention/Cast",
        ),
        ("ConstantFolding/call/dense/MatMul-folded-0", "call/dense/MatMul"),
        ("call/conv-0-TransposeNHWCToNCHW-LayoutOptimizer", "call/conv"),
        ("call/dense/MatMul/unary_ops_composition", "call/dense/MatMul"),
    ],
)
def test_leads_to(names, kernel, operator):
    assert names.owner(kernel) == OPERATORS.index(operator)


@pytest.mark.parametrize("kernel", ["", "MatMul", "call", "call/other_MatMul", "call/norm/x_add_2"])
def test_leads_nowhere(names, kernel):
    assert names.owner(kernel) is None

"""The op types that fusion speaks of, each set under its name."""

from __future__ import annotations

CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative", "Conv3D")
PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum")
CONTRACTIONS = (*CONVOLUTIONS, *PRODUCTS)

ADDS = ("AddV2", "Add")
BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
VIEWS = ("Reshape", "Squeeze", "ExpandDims")
"""Ops that change the shape of a tensor without touching its elements."""

COMMUTATIVE = frozenset({*ADDS, "AddN", "Mul", "Maximum", "Minimum", "SquaredDifference"})

IDENTITIES = frozenset({"Identity", "IdentityN", "StopGradient", "PreventGradient", "Snapshot"})
"""Ops that pass a tensor on; TensorFlow's optimisers remove them."""

SHAPE_SOURCES = frozenset({"Shape", "ShapeN", "Size", "Rank"})
"""Ops that read a tensor's shape but none of its elements."""

VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
VARIABLE_READS = frozenset({"ReadVariableOp", *VARIABLES})

FRAME_OPS = frozenset({
    "Enter", "RefEnter", "Exit", "RefExit", "Switch", "RefSwitch", "Merge", "RefMerge",
    "NextIteration", "RefNextIteration", "LoopCond",
})  # fmt: skip
"""TF1 control flow: whatever passes through is not a constant of the inference."""

ELEMENT_WISE = frozenset({
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Cos", "Cosh",
    "Digamma", "Elu", "Erf", "Erfc", "Exp", "Expm1", "Floor", "Inv", "IsFinite", "IsInf", "IsNan",
    "LeakyRelu", "Lgamma", "Log", "Log1p", "LogicalNot", "Neg", "Reciprocal", "Relu", "Relu6",
    "Rint", "Round", "Rsqrt", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign",
    "Sqrt", "Square", "Tan", "Tanh",
    "Add", "AddN", "AddV2", "Atan2", "BiasAdd", "Div", "DivNoNan", "Equal", "FloorDiv", "FloorMod",
    "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalOr", "Maximum", "Minimum",
    "Mod", "Mul", "MulNoNan", "NotEqual", "Pow", "RealDiv", "SquaredDifference", "Sub",
    "TruncateDiv", "TruncateMod", "Xdivy", "Xlogy",
    "ClipByValue", "Select", "SelectV2",
})  # fmt: skip
"""Ops whose every output element depends on one element of each input, broadcasting aside."""

MONOTONIC = frozenset({
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Elu", "Erf", "Erfc", "Exp", "Expm1",
    "Floor", "Log", "Log1p", "Neg", "Relu", "Relu6", "Rint", "Rsqrt", "Selu", "Sigmoid", "Sign",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Tanh",
})  # fmt: skip
"""Element-wise operators that keep or reverse the order of values."""

COMPOSABLE = frozenset({
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Elu", "Exp",
    "Expm1", "Floor", "Inv", "Log", "Log1p", "Neg", "Reciprocal", "Relu", "Relu6", "Rint", "Round",
    "Rsqrt", "Selu", "Sigmoid", "Sin", "Sinh", "Sqrt", "Square", "Tan", "Tanh",
})  # fmt: skip
"""Operators of one operand that TensorFlow's CPU kernel `_UnaryOpsComposition` can hold."""

EXTREMA = frozenset({
    "ArgMax", "ArgMin", "Max", "MaxPool", "MaxPool3D", "MaxPoolV2", "MaxPoolWithArgmax", "Min",
})  # fmt: skip
"""Operators that pick the largest or smallest of their input's values."""

TRANSPOSES = frozenset({"ConjugateTranspose", "Transpose"})
PASSED_OVER = {
    **dict.fromkeys(("Add", "AddV2", "Sub"), frozenset({"Neg"})),
    **dict.fromkeys(TRANSPOSES, frozenset({"Conj", *TRANSPOSES})),
    "Conj": frozenset({"Conj", *TRANSPOSES}),
    **{op: frozenset({op}) for op in ("Inv", "Invert", "LogicalNot", "Neg", "Reciprocal")},
}
"""Op -> ops whose inputs Grappler may let it read in their place (`arithmetic_optimizer.cc`)."""

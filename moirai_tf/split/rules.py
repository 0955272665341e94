"""What operators make of rows: one rule for each kind, and the ops of that kind.

A rule raises `Mixed` where its operator would not treat rows independently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tensorflow.python.framework import op_def_registry

from moirai_tf.graph.graph import Operator
from moirai_tf.split import arithmetic, layout, sizes
from moirai_tf.split.lists import LIST_RULES
from moirai_tf.split.rows import SAME, Listed, Mixed, Rule, Size, State, View
from moirai_tf.split.sizes import OF_SIZES, sizes_of

_SHAPE_OPERANDS = {
    "Reshape": (1,), "BroadcastTo": (1,), "Fill": (0,), "Tile": (1,), "Slice": (2,),
    "StridedSlice": (2,), "Conv2DBackpropInput": (0,), "Conv3DBackpropInputV2": (0,),
    "Shape": (0,), "ShapeN": (0,), "EmptyTensorList": (0,), "TensorListReserve": (0,),
    "TensorListFromTensor": (1,), "TensorListStack": (1,), "TensorListGetItem": (2,),
    "TensorListGather": (2,),
}  # fmt: skip
"""Inputs that only say what shape the output has: sizes may reach them."""

_READERS = frozenset({
    "VarHandleOp", "ReadVariableOp", "VariableV2", "HashTableV2", "MutableHashTableV2",
    "LookupTableFindV2", "ResourceGather", "ResourceGatherNd", "Placeholder",
})  # fmt: skip
"""Stateful ops whose outputs are decided by their inputs and by what stays between steps."""


def rule_of(operator: Operator) -> Rule:
    """The rule of an operator; one for what sees no rows, which every op may do that is a function.

    Raises:
      Mixed: its output is decided by more than its inputs.
    """

    def judged(view: View) -> Sequence[State]:
        if operator.op in _FORWARDING:
            return view.states
        if not view.rows:
            _require_function(operator)
            if all(state == SAME for state in view.states) and operator.op not in LIST_RULES:
                return [SAME] * len(operator.outputs)
        only_shapes = _SHAPE_OPERANDS.get(operator.op, ())
        computes_sizes = any(
            isinstance(state, Size) and position not in only_shapes
            for position, state in enumerate(view.states)
        )
        if computes_sizes:
            if view.rows or operator.op not in OF_SIZES:
                raise Mixed("it computes with the number of rows")
            return sizes_of(view)
        rule = _RULES.get(operator.op)
        holds_list = any(isinstance(state, Listed) for state in view.states)
        if rule is None or (holds_list and operator.op not in LIST_RULES):
            raise Mixed("no rule says that it treats rows independently")
        return rule(view)

    return judged


def _require_function(operator: Operator) -> None:
    op_def = op_def_registry.get(operator.op)
    if op_def is None or (op_def.is_stateful and operator.op not in _READERS):
        raise Mixed("what it gives may change from call to call")


_FORWARDING = frozenset({"Identity", "IdentityN"})
"""Ops that hand on what they are given, whatever it is."""

_KINDS: dict[Rule, str] = {
    arithmetic.elementwise: """
        Abs Acos Acosh Add AddN AddV2 Asin Asinh AsString Atan Atan2 Atanh BitwiseAnd BitwiseOr
        BitwiseXor Cast Ceil CheckNumerics ClipByValue Cos Cosh Digamma Div DivNoNan Elu
        EnsureShape Equal Erf Erfc Erfinv Exp Expm1 Floor FloorDiv FloorMod Greater GreaterEqual
        Inv IsFinite IsInf IsNan LeakyRelu Less LessEqual Lgamma Log Log1p LogicalAnd
        LogicalNot LogicalOr Maximum Minimum Mod Mul MulNoNan Neg NotEqual OnesLike Pow
        PreventGradient RealDiv Reciprocal RegexReplace Relu Relu6 Rint Round Rsqrt SelectV2 Selu
        Sigmoid Sign Sin Sinh Snapshot Softplus Softsign Sqrt Square SquaredDifference
        StaticRegexReplace StaticRegexFullMatch StopGradient StringLength StringLower StringStrip
        StringToHashBucketFast StringToNumber StringUpper Sub Tan Tanh TruncateDiv TruncateMod
        Xdivy Xlogy ZerosLike StringJoin
        """,
    arithmetic.first_input: """
        AvgPool AvgPool3D Conv2D Conv3D DepthToSpace DepthwiseConv2dNative Dilation2D
        ExtractImagePatches LRN MaxPool MaxPool3D MaxPoolV2 ResizeArea ResizeBicubic ResizeBilinear
        ResizeNearestNeighbor SpaceToDepth
        """,
    arithmetic.bias: "BiasAdd",
    arithmetic.batch_norm: "FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3",
    arithmetic.back_convolution: "Conv2DBackpropInput Conv3DBackpropInputV2",
    arithmetic.space_to_batch: "SpaceToBatchND",
    arithmetic.batch_to_space: "BatchToSpaceND",
    arithmetic.matrix_product: "MatMul",
    arithmetic.batched_product: "BatchMatMul BatchMatMulV2 BatchMatMulV3",
    arithmetic.einsum: "Einsum",
    arithmetic.last_axis: "Softmax LogSoftmax TopK TopKV2",
    arithmetic.matrices: "MatrixBandPart MatrixInverse Cholesky",
    arithmetic.along: "Cumsum Cumprod CumulativeLogsumexp",
    arithmetic.reduction: "All Any EuclideanNorm Max Mean Min Prod Sum",
    arithmetic.arg_extreme: "ArgMax ArgMin",
    layout.reshape: "ExpandDims Reshape Squeeze",
    layout.fill: "Fill",
    layout.broadcast: "BroadcastTo",
    layout.tile: "Tile",
    layout.transpose: "Transpose",
    layout.concat: "ConcatV2",
    layout.pack: "Pack",
    layout.unpack: "Unpack",
    layout.split: "Split",
    layout.split_sizes: "SplitV",
    layout.same_size: "MirrorPad Pad PadV2 Slice",
    layout.strided_slice: "StridedSlice",
    layout.gather: "GatherV2",
    layout.table_gather: "LookupTableFindV2 ResourceGather",
    layout.indexed: "GatherNd ResourceGatherNd",
    layout.one_hot: "OneHot",
    arithmetic.reverse: "ReverseV2",
    arithmetic.select: "Select",
    sizes.shape_of: "Shape ShapeN",
    sizes.count_of: "Size",
    sizes.rank_of: "Rank",
}
_RULES: Mapping[str, Rule] = {
    **LIST_RULES,
    **{op: rule for rule, names in _KINDS.items() for op in names.split()},
}

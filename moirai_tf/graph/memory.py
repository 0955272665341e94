"""Bytes that an operator keeps resident on its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moirai_tf.graph.graph import TensorSpec
from moirai_tf.graph.shapes import tensor_spec
from moirai_tf.model.op_types import attr_of

VARIABLE_OPS = frozenset({"VarHandleOp", "VariableV2", "Variable"})

_FORWARDING_OPS = frozenset({
    "ReadVariableOp", "Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient",
    "PreventGradient", "Enter", "RefEnter", "Exit", "Merge", "Switch", "NextIteration", "Snapshot",
    "EnsureShape", "_Retval",
})  # fmt: skip
"""Ops whose outputs share the buffer of their input."""


def weight_bytes(node: Any, outputs: Sequence[TensorSpec]) -> int:
    """Bytes of the variable or constant that a node holds, 0 for any other node."""
    if node.op in VARIABLE_OPS:
        sizes = tuple(d.size for d in attr_of(node, "shape").shape.dim)
        return tensor_spec(attr_of(node, "dtype").type, sizes).nbytes
    if node.op == "Const":
        return sum(o.nbytes for o in outputs)
    return 0


def resident_bytes(op: str, weight: int, outputs: Sequence[TensorSpec]) -> int:
    """Weights once, and outputs that need memory of their own."""
    if op == "Const" or op in VARIABLE_OPS or op in _FORWARDING_OPS:
        return weight
    return weight + sum(o.nbytes for o in outputs)

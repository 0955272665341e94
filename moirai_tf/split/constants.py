"""The values of small integers that are computed from constants alone, such as permutations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorflow.python.framework import tensor_util

from moirai_tf.graph.graph import Graph, Operator, TensorRef
from moirai_tf.model.op_types import attr_of

Value = npt.NDArray[Any]
_BINARY: Mapping[str, Callable[[Value, Value], Value]] = {
    "Add": np.add, "AddV2": np.add, "Sub": np.subtract, "Mul": np.multiply,
    "FloorMod": np.mod, "FloorDiv": np.floor_divide,
}  # fmt: skip
_RESHAPING = frozenset({"ExpandDims", "Reshape", "Squeeze"})
_FORWARDING = frozenset({"Cast", "Identity", "Snapshot", "StopGradient"})


def constant_of(graph: Graph, ref: TensorRef) -> Value | None:
    """The value of a tensor that depends on constants only; None if not, or if not simple."""
    operator = graph.operators[ref.producer]
    if operator.op == "Const":
        return np.asarray(tensor_util.MakeNdarray(operator.node.attr["value"].tensor))
    known = operator.op in _BINARY or operator.op in _RESHAPING or operator.op in _FORWARDING
    if not (known or operator.op in ("ConcatV2", "GatherV2", "Pack", "Range")):
        return None
    inputs = []
    for source in operator.inputs:
        value = constant_of(graph, source)
        if value is None:
            return None
        inputs.append(value)
    return _computed(operator, inputs)


def _computed(operator: Operator, inputs: list[Value]) -> Value | None:
    op = operator.op
    if op in _FORWARDING:
        return inputs[0]
    if op in _BINARY:
        return _BINARY[op](*inputs)
    if op in _RESHAPING:
        shape = operator.outputs[0].shape
        return None if shape is None else inputs[0].reshape(shape)
    if op == "ConcatV2":
        return np.concatenate(inputs[:-1], axis=int(inputs[-1]))
    if op == "Pack":
        return np.stack(inputs, axis=attr_of(operator.node, "axis").i)
    if op == "Range":
        return np.arange(*map(int, inputs))
    return np.take(inputs[0], inputs[1], int(inputs[2]))

"""Hand-made operator graphs: no model, no SavedModel, just the values that fusion works on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow.core.framework import attr_value_pb2, node_def_pb2
from tensorflow.python.framework import tensor_util

from moirai_tf.graph.graph import ColocationGroup, Graph, Operator, Scope, TensorRef, TensorSpec

_MAIN = Scope("", "")
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int32": 4, "resource": 0, "bool": 1, "string": 32}
BOTH = ("CPU", "GPU")


class GraphBuilder:
    """Adds operators one after another, inputs first; every method returns a tensor."""

    def __init__(self) -> None:
        self._operators: list[Operator] = []
        self._groups: list[ColocationGroup] = []

    def op(
        self,
        op: str,
        name: str,
        *inputs: TensorRef,
        shape: Sequence[int] | None = (2, 8),
        dtype: str = "float32",
        outputs: int = 1,
        controls: Sequence[TensorRef] = (),
        device_types: tuple[str, ...] = BOTH,
        attrs: Mapping[str, Any] | None = None,
        weight_bytes: int = 0,
    ) -> TensorRef:
        """Any operator; all its outputs have one shape and type."""
        node = node_def_pb2.NodeDef(name=name, op=op)
        for key, value in (attrs or {}).items():
            node.attr[key].CopyFrom(_attr(value))
        spec = spec_of(shape, dtype)
        self._operators.append(
            Operator(
                name=name,
                op=op,
                node=node,
                scope=_MAIN,
                inputs=inputs,
                controls=tuple(c.producer for c in controls),
                outputs=(spec,) * outputs,
                device_types=device_types,
                weight_bytes=weight_bytes,
                resident_bytes=weight_bytes + spec.nbytes * outputs,
            )
        )
        return TensorRef(len(self._operators) - 1, 0)

    def feed(self, name: str, shape: Sequence[int] = (2, 8), dtype: str = "float32") -> TensorRef:
        """A signature input."""
        return self.op("Placeholder", name, shape=shape, dtype=dtype)

    def fetch(self, name: str, value: TensorRef) -> TensorRef:
        """A signature output."""
        spec = self._operators[value.producer].outputs[value.port]
        return self.op("_Retval", name, value, shape=spec.shape, dtype=spec.dtype, outputs=0)

    def const(self, name: str, value: Any, dtype: str = "float32") -> TensorRef:
        """A constant with its value."""
        array = np.asarray(value, dtype=np.int32 if dtype == "int32" else np.float32)
        return self.op(
            "Const",
            name,
            shape=array.shape,
            dtype=dtype,
            attrs={"value": tensor_util.make_tensor_proto(array)},
            weight_bytes=array.nbytes,
        )

    def variable(self, name: str, shape: Sequence[int], reads: int = 1) -> list[TensorRef]:
        """A variable and what its read operators return."""
        spec = spec_of(shape, "float32")
        handle = self.op("VarHandleOp", name, shape=(), dtype="resource", weight_bytes=spec.nbytes)
        values = [
            self.op("ReadVariableOp", f"{name}/read_{k}" if k else f"{name}/read", handle,
                    shape=shape)
            for k in range(reads)
        ]  # fmt: skip
        self.colocate(handle, *values, reason=f"resource {name}")
        return values

    def weight(self, name: str, *shape: int) -> TensorRef:
        """What the only read of a variable returns."""
        return self.variable(name, shape)[0]

    def colocate(self, *tensors: TensorRef, reason: str = "_class") -> None:
        """A colocation group."""
        self._groups.append(ColocationGroup(tuple(t.producer for t in tensors), reason))

    def build(self) -> Graph:
        """The graph so far."""
        named = list(enumerate(self._operators))
        return Graph(
            signature="serving_default",
            operators=tuple(self._operators),
            inputs={o.name: i for i, o in named if o.op == "Placeholder"},
            outputs={o.name: i for i, o in named if o.op == "_Retval"},
            colocation=tuple(self._groups),
        )

    # Layers, as Keras exports them.

    def dense(self, name: str, x: TensorRef, units: int = 8) -> TensorRef:
        """A product with a bias."""
        product = self.op("MatMul", f"{name}/MatMul", x, self.weight(f"{name}/kernel", 8, units))
        return self.op("BiasAdd", f"{name}/BiasAdd", product, self.weight(f"{name}/bias", units))

    def conv(self, name: str, x: TensorRef, shape: Sequence[int] = (2, 4, 4, 8)) -> TensorRef:
        """A convolution without bias."""
        kernel = self.weight(f"{name}/kernel", 3, 3, shape[-1], shape[-1])
        return self.op("Conv2D", f"{name}/conv", x, kernel, shape=shape)

    def batch_norm(self, name: str, x: TensorRef, shape: Sequence[int] = (2, 4, 4, 8)) -> TensorRef:
        """Batch norm in inference in the pieces that Keras 3 exports."""
        channels = (shape[-1],)
        gamma, beta, mean, variance = (
            self.weight(f"{name}/{part}", *channels) for part in ("gamma", "beta", "mean", "var")
        )
        epsilon = self.const(f"{name}/epsilon", 1e-3)
        with_epsilon = self.op("AddV2", f"{name}/add", variance, epsilon, shape=channels)
        rsqrt = self.op("Rsqrt", f"{name}/Rsqrt", with_epsilon, shape=channels)
        inverse = self.op("Mul", f"{name}/mul", rsqrt, gamma, shape=channels)
        scaled = self.op("Mul", f"{name}/mul_1", x, inverse, shape=shape)
        moved = self.op("Mul", f"{name}/mul_2", mean, inverse, shape=channels)
        shift = self.op("Sub", f"{name}/sub", beta, moved, shape=channels)
        return self.op("AddV2", f"{name}/add_1", scaled, shift, shape=shape)

    def conv_block(self, name: str, x: TensorRef, shape: Sequence[int] = (2, 4, 4, 8)) -> TensorRef:
        """Convolution, batch norm, ReLU: 20 operators."""
        normalised = self.batch_norm(f"{name}/bn", self.conv(name, x, shape), shape)
        return self.op("Relu", f"{name}/relu", normalised, shape=shape)


def branching_network(operators: int, branches: int = 4) -> Graph:
    """An Inception-like network of at least that many operators, for benchmarks of scale."""
    build = GraphBuilder()
    x = build.feed("images", (2, 4, 4, 8))
    stage = 0
    while len(build._operators) < operators:
        paths = []
        for branch in range(branches):
            y = x
            for depth in range(branch + 1):
                y = build.conv_block(f"stage_{stage}/branch_{branch}/{depth}", y)
            paths.append(y)
        axis = build.const(f"stage_{stage}/axis", 3, dtype="int32")
        joined = build.op("ConcatV2", f"stage_{stage}/concat", *paths, axis, shape=(2, 4, 4, 32))
        x = build.op("MaxPool", f"stage_{stage}/pool", joined, shape=(2, 4, 4, 8))
        stage += 1
    build.fetch("logits", x)
    return build.build()


def spec_of(shape: Sequence[int] | None, dtype: str) -> TensorSpec:
    """The static type of a tensor and its bytes."""
    sizes = None if shape is None else tuple(shape)
    elements = 1 if sizes is None else int(np.prod([max(size, 1) for size in sizes]))
    return TensorSpec(dtype, sizes, elements * _ITEM_BYTES[dtype])


def names(graph: Graph, indices: Iterable[int]) -> set[str]:
    """Names of some operators."""
    return {graph.operators[i].name for i in indices}


def _attr(value: Any) -> Any:
    if isinstance(value, bool):
        return attr_value_pb2.AttrValue(b=value)
    if isinstance(value, str):
        return attr_value_pb2.AttrValue(s=value.encode())
    return attr_value_pb2.AttrValue(tensor=value)

"""What fusion must know of a graph: who really reads a tensor, and what is no data at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tensorflow.python.framework import op_def_registry, tensor_util

from moirai_tf.fusion import ops
from moirai_tf.graph.graph import CLIENT_OPS, Graph, Operator, TensorRef

SMALL_BYTES = 1024
"""Up to this size a constant may be sent at every inference: it costs a latency, no bandwidth."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """Facts about each operator of a graph, by index."""

    graph: Graph
    forwards: Sequence[TensorRef | None]
    """The tensor that an identity passes on, or that an earlier operator computes as well, seen
    through other such operators; None for all others."""
    readers: Sequence[Sequence[tuple[int, int]]]
    """(port, reader) of every read through operators that forward, which count as no readers."""
    fixed: Sequence[bool]
    """Depends on constants and variables alone, so that it is no data of the inference."""
    shape: Sequence[bool]
    """Small arithmetic on the shapes of tensors."""
    weight: Sequence[bool]
    """Holds, reads or computes weights that must not travel at every inference."""

    def source(self, ref: TensorRef) -> TensorRef:
        """The tensor behind any operators that forward it."""
        return self.forwards[ref.producer] or ref

    def data_readers(self, i: int) -> tuple[int, ...]:
        """Operators that read elements of operator `i`'s outputs, each once, ascending."""
        kinds = self.graph.operators
        return tuple(
            sorted({r for _, r in self.readers[i] if kinds[r].op not in ops.SHAPE_SOURCES})
        )


def analyse(graph: Graph) -> Analysis:
    """Collects the facts in a few passes over the graph."""
    forwards = _forwards(graph)
    fixed = _fixed(graph)
    return Analysis(
        graph=graph,
        forwards=forwards,
        readers=_readers(graph, forwards),
        fixed=fixed,
        shape=_shape_arithmetic(graph, fixed),
        weight=_weights(graph, fixed),
    )


def constant_values(graph: Graph, index: int) -> list[float]:
    """All values of a `Const`; none for anything else."""
    operator = graph.operators[index]
    value: Any = operator.attr("value")
    if operator.op != "Const" or value is None:
        return []
    return [float(v) for v in tensor_util.MakeNdarray(value.tensor).flat]


def _forwards(graph: Graph) -> list[TensorRef | None]:
    ports = _read_ports(graph)
    forwards: list[TensorRef | None] = []
    computed: dict[object, list[int]] = {}
    for i, operator in enumerate(graph.operators):
        inputs = tuple(forwards[ref.producer] or ref for ref in operator.inputs)
        position = _passed_on(operator, ports[i])
        if position is not None:
            forwards.append(inputs[position])
            continue
        twin = _twin(graph, i, computed, inputs) if _is_repeatable(operator) else None
        forwards.append(None if twin is None else TensorRef(twin, 0))
    return forwards


def _passed_on(operator: Operator, read: set[int]) -> int | None:
    """The input that an identity stands for; an `IdentityN` only if one of its outputs is read."""
    if operator.op not in ops.IDENTITIES:
        return None
    if operator.op != "IdentityN":
        return 0
    return next(iter(read)) if len(read) == 1 else None


def _is_repeatable(operator: Operator) -> bool:
    """Whether Grappler would compute several operators like this one only once."""
    plain = operator.inputs and len(operator.outputs) == 1 and not operator.controls
    return bool(plain) and _keeps_constants(operator) and operator.op not in ops.VARIABLE_READS


def _twin(
    graph: Graph, i: int, computed: dict[object, list[int]], inputs: tuple[TensorRef, ...]
) -> int | None:
    """An earlier operator that does the same with the same inputs; remembers this one if none."""
    operator = graph.operators[i]
    like = computed.setdefault((operator.op, inputs), [])
    for earlier in like:
        if _attributes(graph.operators[earlier]) == _attributes(operator):
            return earlier
    like.append(i)
    return None


def _attributes(operator: Operator) -> dict[str, bytes]:
    """What an operator computes; attributes with an underscore are notes."""
    attributes = operator.node.attr.items()
    return {
        name: value.SerializeToString(deterministic=True)
        for name, value in attributes
        if not name.startswith("_")
    }


def _read_ports(graph: Graph) -> list[set[int]]:
    ports: list[set[int]] = [set() for _ in graph.operators]
    for operator in graph.operators:
        for ref in operator.inputs:
            ports[ref.producer].add(ref.port)
    return ports


def _readers(graph: Graph, forwards: Sequence[TensorRef | None]) -> list[list[tuple[int, int]]]:
    readers: list[list[tuple[int, int]]] = [[] for _ in graph.operators]
    for i, operator in enumerate(graph.operators):
        if forwards[i] is not None:
            continue
        for ref in operator.inputs:
            source = forwards[ref.producer] or ref
            readers[source.producer].append((source.port, i))
    return readers


def _fixed(graph: Graph) -> list[bool]:
    fixed: list[bool] = []
    for operator in graph.operators:
        inputs_fixed = all(fixed[ref.producer] for ref in operator.inputs)
        fixed.append(inputs_fixed and _keeps_constants(operator))
    return fixed


def _keeps_constants(operator: Operator) -> bool:
    """Whether constant inputs (or none) make a constant output."""
    if operator.op in CLIENT_OPS or operator.op in ops.FRAME_OPS or not operator.outputs:
        return False
    if operator.op in ops.VARIABLE_READS:
        return True
    if not operator.inputs and all(o.dtype == "resource" for o in operator.outputs):
        return True
    return _is_stateless(operator.op)


@cache
def _is_stateless(op: str) -> bool:
    op_def = op_def_registry.get(op)
    return op_def is not None and not op_def.is_stateful


def _shape_arithmetic(graph: Graph, fixed: Sequence[bool]) -> list[bool]:
    shape: list[bool] = []
    for i, operator in enumerate(graph.operators):
        shape.append(not fixed[i] and _is_shape_arithmetic(operator, fixed, shape))
    return shape


def _is_shape_arithmetic(operator: Operator, fixed: Sequence[bool], shape: Sequence[bool]) -> bool:
    if operator.op in ops.SHAPE_SOURCES:
        return True
    if not operator.inputs or not _keeps_constants(operator):
        return False
    small = all(o.nbytes <= SMALL_BYTES for o in operator.outputs)
    return small and all(fixed[r.producer] or shape[r.producer] for r in operator.inputs)


def _weights(graph: Graph, fixed: Sequence[bool]) -> list[bool]:
    derived: list[bool] = []
    weight: list[bool] = []
    for i, operator in enumerate(graph.operators):
        big = any(o.nbytes > SMALL_BYTES for o in operator.outputs)
        held = operator.op in ops.VARIABLES or operator.weight_bytes > SMALL_BYTES
        derived.append(fixed[i] and (held or any(derived[r.producer] for r in operator.inputs)))
        reads = operator.op in ops.VARIABLE_READS or _passes_on(operator, weight)
        weight.append(derived[i] and (big or reads))
    return weight


def _passes_on(operator: Operator, weight: Sequence[bool]) -> bool:
    return operator.op in ops.IDENTITIES and any(weight[r.producer] for r in operator.inputs)

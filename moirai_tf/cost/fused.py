"""What a fused operator costs, from the costs of its parts.

Rule. Let m run over the members of a fused operator, and let a tensor be *kept inside* if a member
makes it, only members read it, and it is no view of a weight. Then on every device

    time = sum over m of  time(m) - floor(traffic(m) * kept(m) / operands(m))

where operands(m) are the bytes of all inputs and outputs of m, and kept(m) of those that are kept
inside: a fused kernel neither writes nor reads them. Measured times have no traffic, because they
are those of the operators after fusion; their fused time is their sum. The subtracted part is at
most traffic(m), so the result is never more than the sum of the parts, and never less than the sum
(hence the largest) of their compute times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moirai_tf.cost.table import CostTable
from moirai_tf.fusion.coarse import CoarseGraph, FusedOperator
from moirai_tf.graph.graph import Graph, TensorRef


@dataclass(frozen=True)
class FusedCosts:
    """Costs of the fused operators of one coarse graph."""

    table: CostTable
    graph: Graph
    operand_bytes: Sequence[int]
    """Of each fine operator."""
    kept_bytes: Sequence[int]
    """The part of `operand_bytes` that fusion keeps out of memory."""
    output_bytes: Sequence[int]
    """Bytes of each fused operator's tensors that others read, views of one buffer once."""

    def time_ns(self, fused: FusedOperator, column: int) -> int | None:
        """Time on one device of the table; None if a member cannot run there."""
        total = 0
        for member in fused.members:
            cost = self.table.operators[self.graph.operators[member].name]
            time, traffic = cost.time_ns[column], cost.traffic_ns[column]
            if time is None:
                return None
            total += time - traffic * self.kept_bytes[member] // max(1, self.operand_bytes[member])
        return total

    def memory_bytes(self, index: int, fused: FusedOperator) -> int:
        """Weights once, and the outputs that leave the fused operator."""
        weights = sum(self.graph.operators[member].weight_bytes for member in fused.members)
        return weights + self.output_bytes[index]


def fused_costs(coarse: CoarseGraph, table: CostTable) -> FusedCosts:
    """Prepares the costs of a coarse graph; see the module for the rule."""
    graph = coarse.fine
    owner = {member: i for i, fused in enumerate(coarse.operators) for member in fused.members}
    leaving = [tensor.source for tensor in coarse.tensors if tensor.source.port >= 0]
    operands = [_operands(graph, i) for i in range(len(graph))]
    left = set(leaving)
    kept = {
        ref
        for i, refs in enumerate(operands)
        for ref in refs[: len(graph.operators[i].inputs)]
        if owner[ref.producer] == owner[i] and ref not in left and not is_weight(graph, ref)
    }
    return FusedCosts(
        table=table,
        graph=graph,
        operand_bytes=[sum(graph.spec(ref).nbytes for ref in refs) for refs in operands],
        kept_bytes=[
            sum(graph.spec(ref).nbytes for ref in refs if ref in kept) for refs in operands
        ],
        output_bytes=_output_bytes(coarse, owner, leaving),
    )


def _operands(graph: Graph, index: int) -> list[TensorRef]:
    operator = graph.operators[index]
    outputs = (TensorRef(index, port) for port in range(len(operator.outputs)))
    return [*operator.inputs, *outputs]


def is_weight(graph: Graph, ref: TensorRef) -> bool:
    """Whether a tensor is a view of a variable or constant, which is read from memory anyway."""
    while _is_view(graph, ref):
        ref = graph.operators[ref.producer].inputs[0]
    return graph.operators[ref.producer].weight_bytes > 0


def _is_view(graph: Graph, ref: TensorRef) -> bool:
    """Whether a tensor shares the buffer of its producer's first input."""
    operator = graph.operators[ref.producer]
    return operator.resident_bytes == 0 and bool(operator.inputs)


def _output_bytes(
    coarse: CoarseGraph, owner: dict[int, int], leaving: Sequence[TensorRef]
) -> list[int]:
    graph = coarse.fine
    buffers: list[set[TensorRef]] = [set() for _ in coarse.operators]
    for ref in leaving:
        group = owner[ref.producer]
        while _is_view(graph, ref) and owner[graph.operators[ref.producer].inputs[0].producer] == (
            group
        ):
            ref = graph.operators[ref.producer].inputs[0]
        if not _is_view(graph, ref) and graph.operators[ref.producer].weight_bytes == 0:
            buffers[group].add(ref)
    return [sum(graph.spec(ref).nbytes for ref in refs) for refs in buffers]

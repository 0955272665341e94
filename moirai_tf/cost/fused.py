"""What a fused operator costs, from the costs of its parts.

Rule. On a device, let m run over the members of a fused operator, and let a tensor be *kept inside*
if the device's type runs its producer and all of its readers as one kernel, and it is no view of a
weight. Then

    time = sum over m of  time(m) - floor(traffic(m) * kept(m) / operands(m))
           - launch * (launches - 1), summed over the kernels of the device's type

where operands(m) are the bytes of all inputs and outputs of m, and kept(m) of those that are kept
inside: a fused kernel neither writes nor reads them. A computed time of a GPU holds the launch of a
kernel of its own, of which a fused kernel needs one. Measured times have no traffic and no launch,
because they are those of the operators after fusion; their fused time is their sum. The subtracted
parts are at most traffic(m) and launches that times hold, so the result is never more than the sum
of the parts, and never less than the sum (hence the largest) of their compute times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moirai_tf.cluster import DEVICE_TYPES
from moirai_tf.cost.gpu_peaks import launch_ns
from moirai_tf.cost.options import ANALYTICAL
from moirai_tf.cost.table import CostTable, DeviceProfile, OperatorCost
from moirai_tf.fusion.coarse import CoarseGraph, FusedOperator, Kernel
from moirai_tf.graph.graph import Graph, TensorRef


@dataclass(frozen=True)
class FusedCosts:
    """Costs of the fused operators of one coarse graph."""

    table: CostTable
    graph: Graph
    operand_bytes: Sequence[int]
    """Of each fine operator."""
    kept_bytes: Mapping[str, Sequence[int]]
    """Device type -> the part of `operand_bytes` that its kernels keep out of memory."""
    output_bytes: Sequence[int]
    """Bytes of each fused operator's tensors that others read, views of one buffer once."""

    def time_ns(self, fused: FusedOperator, column: int) -> int | None:
        """Time on one device of the table; None if a member cannot run there."""
        profile = self.table.devices[column]
        kept = self.kept_bytes[profile.device.type]
        total = 0
        for member in fused.members:
            cost = self._cost(member)
            time, traffic = cost.time_ns[column], cost.traffic_ns[column]
            if time is None:
                return None
            total += time - traffic * kept[member] // max(1, self.operand_bytes[member])
        return total - self._saved_launches_ns(fused, column, profile)

    def _saved_launches_ns(self, fused: FusedOperator, column: int, profile: DeviceProfile) -> int:
        """Launches in the computed times of members that a kernel of several does without."""
        device = profile.device
        if device.type != "GPU" or profile.source != ANALYTICAL:
            return 0
        launch = round(launch_ns(device) / device.speed)
        saved = 0
        for kernel in (kernel for kernel in fused.kernels if kernel.device_type == device.type):
            times = [self._cost(member).time_ns[column] or 0 for member in kernel.members]
            saved += max(0, sum(time >= launch for time in times) - 1) * launch
        return saved

    def _cost(self, member: int) -> OperatorCost:
        return self.table.operators[self.graph.operators[member].name]

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
    return FusedCosts(
        table=table,
        graph=graph,
        operand_bytes=[sum(graph.spec(ref).nbytes for ref in refs) for refs in operands],
        kept_bytes={t: _kept_bytes(coarse, operands, t) for t in DEVICE_TYPES},
        output_bytes=_output_bytes(coarse, owner, leaving),
    )


def _kept_bytes(
    coarse: CoarseGraph, operands: Sequence[Sequence[TensorRef]], device_type: str
) -> list[int]:
    """For each fine operator, bytes of its operands that kernels of a device type keep inside."""
    graph = coarse.fine
    kernel_of: dict[int, Kernel] = {
        member: kernel
        for fused in coarse.operators
        for kernel in fused.kernels
        if kernel.device_type == device_type
        for member in kernel.members
    }
    read: set[TensorRef] = set()
    left: set[TensorRef] = set()
    for i, operator in enumerate(graph.operators):
        for ref in operator.inputs:
            inside = i in kernel_of and kernel_of[i] is kernel_of.get(ref.producer)
            (read if inside else left).add(ref)
    kept = {ref for ref in read - left if not is_weight(graph, ref)}
    return [sum(graph.spec(ref).nbytes for ref in refs if ref in kept) for refs in operands]


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

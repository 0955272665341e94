"""From a coarse graph, a cluster and a cost table to the placement problem: integers only."""

from __future__ import annotations

from functools import cache

from moirai_tf.cluster import Cluster, Device
from moirai_tf.cost.fused import FusedCosts, fused_costs
from moirai_tf.cost.host_memory import GPU, HostMemories, Links, host_of
from moirai_tf.cost.table import CostTable, links_of
from moirai_tf.fusion.coarse import CoarseGraph, CoarseTensor, FusedOperator
from moirai_tf.graph.graph import CLIENT_OPS
from moirai_tf.graph.kernels import has_kernels
from moirai_tf.placement import problem as placement

Matrix = tuple[tuple[int, ...], ...]


def build_problem(
    coarse: CoarseGraph,
    cluster: Cluster,
    table: CostTable,
    *,
    transfers: str = placement.PER_TENSOR,
    congestion: str = placement.PORT,
) -> placement.Problem:
    """The placement problem of a coarse graph on a cluster.

    Feeds and fetches (`CLIENT_OPS`) take no time and can only be on the cluster's client. A control
    dependency between devices takes the link's latency. Measured links of the table win over those
    of the cluster. Tensors of equal size share one matrix of transfer times. Within a server a
    tensor from or to a GPU takes no time that is, or is wanted, in host memory: if it changes
    memory, its reader on a GPU waits for it wherever it was made (see `host_memory`).

    Args:
      coarse: the fused operators.
      cluster: devices and links.
      table: costs of every fine operator on every device of the cluster.
      transfers: see `placement.Problem.transfers`.
      congestion: see `placement.Problem.congestion`.

    Raises:
      MoiraiError: the table is stale: made for another model, other shapes or other devices.
    """
    table.require_fit(coarse.fine, cluster)
    links = links_of(cluster, table.links)
    memories = HostMemories(coarse.fine)
    transfer_times = _transfer_times(coarse, cluster, memories, links)
    return placement.Problem(
        name=coarse.fine.signature,
        devices=tuple(placement.Device(d.name, d.memory_bytes) for d in cluster.devices),
        operators=_operators(coarse, cluster, fused_costs(coarse, table), memories, links),
        tensors=tuple(
            placement.Tensor(tensor.producer, tensor.consumers, time_ns)
            for tensor, time_ns in zip(coarse.tensors, transfer_times, strict=True)
        ),
        colocation=coarse.colocation,
        transfers=transfers,
        congestion=congestion,
        source=f"cluster {cluster.name}",
    )


def _transfer_times(
    coarse: CoarseGraph, cluster: Cluster, memories: HostMemories, links: Links
) -> list[Matrix]:
    """Time of every tensor of a coarse graph from device to device, in nanoseconds."""
    has_gpus = any(device.type == GPU for device in cluster.devices)

    @cache
    def matrix(nbytes: int, made_on_host: bool, settled: bool) -> Matrix:
        def time_ns(a: Device, b: Device) -> int:
            on_host = (a.type == GPU and made_on_host) or (b.type == GPU and settled)
            free = a == b or (a.task == b.task and on_host)
            return 0 if free else links[a.name, b.name].transfer_ns(nbytes)

        return tuple(tuple(time_ns(a, b) for b in cluster.devices) for a in cluster.devices)

    def times_ns(tensor: CoarseTensor) -> Matrix:
        if tensor.source.port < 0 or not has_gpus:
            return matrix(tensor_bytes(tensor), False, False)
        readers = [
            member
            for consumer in tensor.consumers
            for member in coarse.operators[consumer].members
            if tensor.source in coarse.fine.operators[member].inputs
        ]
        return matrix(
            tensor_bytes(tensor),
            memories.made_on_host(tensor.source),
            all(
                memories.wanted_on_host(reader, tensor.source)
                or memories.copied_for(reader, tensor.source)
                for reader in readers
            ),
        )

    return [times_ns(tensor) for tensor in coarse.tensors]


def tensor_bytes(tensor: CoarseTensor) -> int:
    """What a transfer of it moves: nothing for a control dependency."""
    return tensor.nbytes if tensor.source.port >= 0 else 0


def _operators(
    coarse: CoarseGraph,
    cluster: Cluster,
    costs: FusedCosts,
    memories: HostMemories,
    links: Links,
) -> tuple[placement.Operator, ...]:
    """Every fused operator with its times and its memory."""
    return tuple(
        placement.Operator(
            fused.name,
            _compute_ns(fused, cluster, costs, memories, links),
            costs.memory_bytes(i, fused),
        )
        for i, fused in enumerate(coarse.operators)
    )


def _compute_ns(
    fused: FusedOperator,
    cluster: Cluster,
    costs: FusedCosts,
    memories: HostMemories,
    links: Links,
) -> tuple[int | None, ...]:
    """Time on each device of the cluster; None where it cannot run.

    Where TensorFlow has no kernels of a device's type at all, the table alone knows.
    """
    members = costs.graph.operators
    if any(members[member].op in CLIENT_OPS for member in fused.members):
        return tuple(0 if d.name == cluster.client else None for d in cluster.devices)

    def time_ns(device: Device) -> int | None:
        if device.type not in fused.device_types and has_kernels(device.type):
            return None
        own_ns = costs.time_ns(fused, costs.table.columns[device.name])
        if own_ns is None or device.type != GPU:
            return own_ns
        host = host_of(cluster, device.name)
        copies_ns = sum(memories.copies_ns(m, device.name, host, links) for m in fused.members)
        return own_ns + copies_ns

    return tuple(time_ns(device) for device in cluster.devices)

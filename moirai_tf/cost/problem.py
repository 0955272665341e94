"""From a coarse graph, a cluster and a cost table to the placement problem: integers only."""

from __future__ import annotations

from functools import cache

from moirai_tf.cluster import Cluster
from moirai_tf.cost.fused import FusedCosts, fused_costs
from moirai_tf.cost.table import CostTable
from moirai_tf.fusion.coarse import CoarseGraph, CoarseTensor, FusedOperator
from moirai_tf.graph.graph import CLIENT_OPS
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
    of the cluster. Tensors of equal size share one matrix of transfer times.

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
    costs = fused_costs(coarse, table)
    names = [device.name for device in cluster.devices]
    known = (*cluster.links, *(measured.link for measured in table.links))
    links = {(link.source, link.target): link for link in known}

    @cache
    def matrix(nbytes: int) -> Matrix:
        return tuple(
            tuple(0 if a == b else links[a, b].transfer_ns(nbytes) for b in names) for a in names
        )

    return placement.Problem(
        name=coarse.fine.signature,
        devices=tuple(placement.Device(d.name, d.memory_bytes) for d in cluster.devices),
        operators=tuple(
            placement.Operator(
                fused.name, _compute_ns(fused, cluster, costs), costs.memory_bytes(i, fused)
            )
            for i, fused in enumerate(coarse.operators)
        ),
        tensors=tuple(
            placement.Tensor(
                tensor.producer,
                tensor.consumers,
                matrix(tensor_bytes(tensor)),
            )
            for tensor in coarse.tensors
        ),
        colocation=coarse.colocation,
        transfers=transfers,
        congestion=congestion,
        source=f"cluster {cluster.name}",
    )


def tensor_bytes(tensor: CoarseTensor) -> int:
    """What a transfer of it moves: nothing for a control dependency."""
    return tensor.nbytes if tensor.source.port >= 0 else 0


def _compute_ns(
    fused: FusedOperator, cluster: Cluster, costs: FusedCosts
) -> tuple[int | None, ...]:
    """Time on each device of the cluster; None where it cannot run."""
    members = costs.graph.operators
    if any(members[member].op in CLIENT_OPS for member in fused.members):
        return tuple(0 if d.name == cluster.client else None for d in cluster.devices)
    return tuple(
        costs.time_ns(fused, costs.table.columns[device.name])
        if device.type in fused.device_types
        else None
        for device in cluster.devices
    )

"""Coarsening: one operator for every fusion, and the way back.

Fusing what a backend's runtime fuses is the graph coarsening of Moirai (Zhang et al., 2023): it
makes the placement problem smaller and keeps the placement from tearing fusions apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.analysis import Analysis, analyse
from moirai_tf.fusion.build import build
from moirai_tf.fusion.coarse import CoarseGraph, Expansion
from moirai_tf.fusion.joins import Joins
from moirai_tf.fusion.kernels import kernels
from moirai_tf.fusion.match import Fusion, NearMiss, match
from moirai_tf.fusion.merge import DisjointSets, Merger
from moirai_tf.fusion.ops import CONTRACTIONS
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.fusion.rules import rules_for
from moirai_tf.graph.graph import CLIENT_OPS, Graph
from moirai_tf.graph.kernels import DEVICE_TYPES

COLOCATION = "colocation"


def coarsen(
    graph: Graph,
    options: FuseOptions | None = None,
    device_types: Sequence[str] | None = None,
) -> tuple[CoarseGraph, Expansion]:
    """Fuses what a backend fuses, and whatever must or may as well share a device.

    Args:
      graph: the fine graph.
      options: which rules to use, or none at all.
      device_types: device types of the cluster, which select rules; None uses all.

    Returns:
      The coarse graph, and the way back for a placement of it.

    Raises:
      MoiraiError: an unknown rule set, or a colocation group that no device type can run.
    """
    options = options or FuseOptions()
    analysis = analyse(graph)
    merger, _ = _merge(analysis, options, device_types)
    types = DEVICE_TYPES if device_types is None else device_types
    return build(graph, merger, kernels(analysis, merger, options.rules, types))


def near_misses(
    graph: Graph,
    options: FuseOptions | None = None,
    device_types: Sequence[str] | None = None,
) -> tuple[NearMiss, ...]:
    """Operators that look like a rule's pattern, are not in one fused operator, and why.

    Raises:
      MoiraiError: as `coarsen`.
    """
    merger, missed = _merge(analyse(graph), options or FuseOptions(), device_types)
    return tuple(m for m in missed if len({merger.find(i) for i in m.members}) > 1)


def _merge(
    analysis: Analysis, options: FuseOptions, device_types: Sequence[str] | None
) -> tuple[Merger, list[NearMiss]]:
    graph, rules = analysis.graph, rules_for(options.rules, device_types)
    feeds = [a or b for a, b in zip(analysis.fixed, analysis.shape, strict=True)]
    merger = Merger(graph, feeds)
    _colocate(graph, merger)
    if not options.coarsen:
        Joins(analysis, merger, fused=()).weights()
        return merger, []
    fusions, missed = match(analysis, rules)
    refused = [_fuse(analysis, merger, fusion) for fusion in fusions]
    joins = Joins(analysis, merger, fused={i for f in fusions for i in f.members})
    joins.forwarders()
    joins.operands()
    joins.concatenations()
    joins.reductions()
    joins.views()
    joins.expressions()
    joins.operands()
    joins.weights()
    _merge_colocated(graph, merger)
    return merger, [*missed, *(miss for miss in refused if miss is not None)]


def _fuse(analysis: Analysis, merger: Merger, fusion: Fusion) -> NearMiss | None:
    """Makes a fusion, or says why it cannot be made in this graph."""
    kinds = analysis.graph.operators
    main = [m for m in fusion.members if kinds[m].op in CONTRACTIONS] or fusion.members
    reason = merger.merge(fusion.members, fusion.rule, keep=main)
    return None if reason is None else NearMiss(fusion.rule, fusion.members, reason)


def _colocate(graph: Graph, merger: Merger) -> None:
    for group in graph.colocation:
        if merger.colocate(group.members):
            continue
        shown = ", ".join(
            f"{graph.operators[m].name} ({', '.join(graph.operators[m].device_types)})"
            for m in group.members
        )
        raise MoiraiError(
            f"no device type runs all of a colocation group: {shown}",
            why=f"they must share a device ({group.reason}), so the model runs nowhere",
            fix="export the model again without that constraint",
        )


def _merge_colocated(graph: Graph, merger: Merger) -> None:
    """Merges what shares a device and depends on one another, where no cycle forbids it.

    Parallel readers of one weight stay apart: merged, one would have to wait for the other's input.
    """
    for group in merger.colocated():
        clusters = [c for c in group if graph.operators[c].op not in CLIENT_OPS]
        for connected in _connected(merger, clusters):
            merger.merge(connected, COLOCATION)


def _connected(merger: Merger, clusters: Sequence[int]) -> list[list[int]]:
    """Sets of clusters that pass data among themselves, of two clusters or more."""
    number = {cluster: k for k, cluster in enumerate(clusters)}
    sets = DisjointSets(len(clusters))
    for cluster in clusters:
        for source in merger.predecessors(cluster):
            if source in number and not merger.only_feeds(source):
                sets.union((number[source], number[cluster]))
    roots = sorted({sets.find(k) for k in range(len(clusters))})
    members = [[clusters[k] for k in sets.members(root)] for root in roots]
    return [connected for connected in members if len(connected) > 1]

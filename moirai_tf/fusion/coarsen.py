"""Coarsening: one operator for every fusion, and the way back.

Fusing what a backend's runtime fuses is the graph coarsening of Moirai (Zhang et al., 2023): it
makes the placement problem smaller and keeps the placement from tearing fusions apart.

Operators are merged where any device of a cluster fuses them, and for other reasons besides. What a
device then saves is only what its own runtime fuses: a convolution, its batch norm and its ReLU are
one kernel on a CPU and three on a GPU, wherever they are placed together.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

from moirai_tf.cluster import DEVICE_TYPES
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion import ops
from moirai_tf.fusion.analysis import Analysis, analyse
from moirai_tf.fusion.coarse import CoarseGraph, CoarseTensor, Expansion, FusedOperator, Kernel
from moirai_tf.fusion.joins import Joins
from moirai_tf.fusion.merge import DisjointSets, Merger
from moirai_tf.fusion.ops import CONTRACTIONS
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.fusion.pattern import Fusion, NearMiss, match
from moirai_tf.fusion.rules import RULE_SETS, rules_for
from moirai_tf.graph.graph import CLIENT_OPS, Graph, TensorRef

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
    rules, every = (rules_for(sets, device_types) for sets in (options.rules, tuple(RULE_SETS)))
    found = match(analysis, rules)
    merger, _ = _merge(analysis, found if options.coarsen else None)
    types = DEVICE_TYPES if device_types is None else device_types
    possible, _ = found if rules == every else match(analysis, every)
    return build(
        graph,
        merger,
        kernels(analysis, merger, options.rules, types),
        [fusion.members for fusion in possible],
    )


def near_misses(
    graph: Graph,
    options: FuseOptions | None = None,
    device_types: Sequence[str] | None = None,
) -> tuple[NearMiss, ...]:
    """Operators that look like a rule's pattern, are not in one fused operator, and why.

    Raises:
      MoiraiError: as `coarsen`.
    """
    options, analysis = options or FuseOptions(), analyse(graph)
    found = match(analysis, rules_for(options.rules, device_types))
    merger, missed = _merge(analysis, found if options.coarsen else None)
    return tuple(m for m in missed if len({merger.find(i) for i in m.members}) > 1)


def _merge(
    analysis: Analysis, found: tuple[tuple[Fusion, ...], tuple[NearMiss, ...]] | None
) -> tuple[Merger, list[NearMiss]]:
    """Clusters by what `match` found, or of none but weights if operators are not to be fused."""
    graph = analysis.graph
    feeds = [a or b for a, b in zip(analysis.fixed, analysis.shape, strict=True)]
    merger = Merger(graph, feeds)
    _colocate(graph, merger)
    if found is None:
        Joins(analysis, merger, fused=()).weights()
        return merger, []
    fusions, missed = found
    refused = [_fuse(analysis, merger, fusion) for fusion in fusions]
    joins = Joins(analysis, merger, fused={i for f in fusions for i in f.members})
    joins.forwarders()
    joins.operands()
    joins.concatenations()
    joins.reductions()
    joins.rewritten()
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


def build(
    graph: Graph,
    merger: Merger,
    kernels: Mapping[int, Sequence[Kernel]],
    runtime_fusions: Sequence[tuple[int, ...]],
) -> tuple[CoarseGraph, Expansion]:
    """The coarse graph of a merger's clusters, in topological order, and the way back."""
    clusters = merger.clusters()
    index = {cluster: k for k, cluster in enumerate(clusters)}
    owner = [index[merger.find(i)] for i in range(len(graph))]
    operators = tuple(
        _fused(graph, merger, cluster, kernels.get(cluster, ())) for cluster in clusters
    )
    coarse = CoarseGraph(
        fine=graph,
        operators=operators,
        tensors=(*_data(graph, owner), *_control(graph, owner)),
        colocation=tuple(
            sorted(tuple(sorted(index[c] for c in group)) for group in merger.colocated())
        ),
        runtime_fusions=tuple(runtime_fusions),
    )
    names = [operator.name for operator in operators]
    return coarse, Expansion(owner, names, [operator.name for operator in graph.operators])


def _fused(graph: Graph, merger: Merger, cluster: int, kernels: Sequence[Kernel]) -> FusedOperator:
    members = tuple(sorted(merger.members(cluster)))
    types = set(graph.operators[members[0]].device_types)
    types.intersection_update(*(graph.operators[m].device_types for m in members))
    main = min(members, key=lambda m: _main_work(merger, graph, m))
    return FusedOperator(
        name=graph.operators[main].name,
        members=members,
        rule=merger.rule(cluster),
        device_types=tuple(t for t in graph.operators[main].device_types if t in types),
        kernels=tuple(kernel for kernel in kernels if kernel.device_type in types),
    )


def _main_work(merger: Merger, graph: Graph, i: int) -> tuple[int, int]:
    """Sorts members by how much of the work they do; an expression is named by its result."""
    op = graph.operators[i].op
    if merger.feeds[i]:
        return 4, -i
    if op in ops.CONTRACTIONS:
        return 0, i
    if op in ops.IDENTITIES or op in ops.VIEWS or op in ops.SHAPE_SOURCES:
        return 3, i
    return (2, -i) if op in ops.ELEMENT_WISE else (1, i)


def _data(graph: Graph, owner: Sequence[int]) -> Iterator[CoarseTensor]:
    readers: dict[TensorRef, set[int]] = {}
    for i, operator in enumerate(graph.operators):
        for ref in operator.inputs:
            if owner[ref.producer] != owner[i]:
                readers.setdefault(ref, set()).add(owner[i])
    for ref in sorted(readers):
        consumers = tuple(sorted(readers[ref]))
        yield CoarseTensor(ref, owner[ref.producer], consumers, graph.spec(ref).nbytes)


def _control(graph: Graph, owner: Sequence[int]) -> Iterator[CoarseTensor]:
    """Dependencies without data between fused operators that no tensor connects."""
    connected = {
        (owner[ref.producer], owner[i])
        for i, operator in enumerate(graph.operators)
        for ref in operator.inputs
    }
    waiting: dict[int, set[int]] = {}
    for i, operator in enumerate(graph.operators):
        for control in operator.controls:
            if owner[control] != owner[i] and (owner[control], owner[i]) not in connected:
                waiting.setdefault(control, set()).add(owner[i])
    for producer in sorted(waiting):
        consumers = tuple(sorted(waiting[producer]))
        yield CoarseTensor(TensorRef(producer, -1), owner[producer], consumers, 0)


_COMPOSED_TYPES = ("float32", "float64")


def kernels(
    analysis: Analysis, merger: Merger, rules: Sequence[str], device_types: Sequence[str]
) -> dict[int, list[Kernel]]:
    """Cluster -> its kernels of two operators or more; no operator is in two of one device type.

    Args:
      analysis: facts about the graph.
      merger: its clusters.
      rules: names of rule sets.
      device_types: those of the cluster's devices.
    """
    found: dict[int, list[Kernel]] = {}
    for device_type in device_types:
        fusions, _ = match(analysis, rules_for(rules, [device_type]))
        groups = [fusion.members for fusion in fusions]
        fused = {member for members in groups for member in members}
        groups += _compositions(analysis, fused) if device_type == "CPU" else ()
        for members in groups:
            clusters = {merger.find(member) for member in members}
            if len(clusters) == 1:
                found.setdefault(clusters.pop(), []).append(Kernel(device_type, members))
    return found


def _compositions(analysis: Analysis, fused: Container[int]) -> Iterator[tuple[int, ...]]:
    """Chains of operators of one operand, which Grappler makes one of on a CPU.

    The longest are meant (`arithmetic_optimizer.cc`, UnaryOpsComposition).
    """
    chains: dict[int, list[int]] = {}
    for i, operator in enumerate(analysis.graph.operators):
        if i in fused or not _is_composable(analysis, i):
            continue
        source = analysis.source(operator.inputs[0]).producer
        chain = chains.pop(source, []) if analysis.data_readers(source) == (i,) else []
        chains[i] = [*chain, i]
    yield from (tuple(chain) for chain in chains.values() if len(chain) > 1)


def _is_composable(analysis: Analysis, i: int) -> bool:
    operator = analysis.graph.operators[i]
    if operator.op not in ops.COMPOSABLE or analysis.fixed[i]:
        return False
    return operator.outputs[0].dtype in _COMPOSED_TYPES

"""Writes the clusters of a merger as a coarse graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from moirai_tf.fusion import ops
from moirai_tf.fusion.coarse import CoarseGraph, CoarseTensor, Expansion, FusedOperator, Kernel
from moirai_tf.fusion.merge import Merger
from moirai_tf.graph.graph import Graph, TensorRef


def build(
    graph: Graph, merger: Merger, kernels: Mapping[int, Sequence[Kernel]]
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

"""From a schedule of the coarse graph to the plan that is written beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moirai_tf.cluster import Cluster
from moirai_tf.fusion.coarse import Expansion
from moirai_tf.graph.graph import Graph
from moirai_tf.placement import Problem, Schedule
from moirai_tf.rewrite.plan import Plan, PlanDevice, PlanTransfer


def make_plan(
    graph: Graph,
    expansion: Expansion,
    cluster: Cluster,
    problem: Problem,
    schedule: Schedule,
    summary: Mapping[str, Any],
) -> Plan:
    """The plan that a schedule of the coarse problem means for the operators of the model."""
    names = [device.name for device in problem.devices]
    chosen = {
        operator.name: names[placed.device]
        for operator, placed in zip(problem.operators, schedule.placed, strict=True)
    }
    placement = expansion.expand(chosen)
    return plan_of(graph, cluster, placement, summary)


def plan_of(
    graph: Graph,
    cluster: Cluster,
    placement: Mapping[str, str],
    summary: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a placement of every operator."""
    return Plan(
        signature=graph.signature,
        tags=graph.tags,
        devices=tuple(PlanDevice(d.name, d.type, d.memory_bytes, d.model) for d in cluster.devices),
        client=cluster.client,
        placement=placement,
        transfers=transfers_of(graph, placement),
        summary=summary or {},
    )


def transfers_of(graph: Graph, placement: Mapping[str, str]) -> tuple[PlanTransfer, ...]:
    """Every tensor that a placement moves: once per device that reads it, as TensorFlow does."""
    found = set()
    for operator in graph.operators:
        target = placement[operator.name]
        for ref in operator.inputs:
            producer = graph.operators[ref.producer]
            source = placement[producer.name]
            if source != target:
                nbytes = graph.spec(ref).nbytes
                found.add(PlanTransfer(producer.name, ref.port, source, target, nbytes))
    return tuple(sorted(found))

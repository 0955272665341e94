"""Plans of schedules and of any placements, and the latter written without more ado, to be run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from moirai_tf.cluster import Cluster
from moirai_tf.fusion.coarse import Expansion
from moirai_tf.graph.graph import Graph
from moirai_tf.model.output import discard, publish
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.placement import Problem, Schedule
from moirai_tf.rewrite.directory import stage_placed
from moirai_tf.rewrite.kept_order import Order
from moirai_tf.rewrite.plan import Plan, PlanDevice, PlanSummary, PlanTransfer


def make_plan(
    graph: Graph,
    expansion: Expansion,
    cluster: Cluster,
    problem: Problem,
    schedule: Schedule,
    summary: PlanSummary,
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
    summary: PlanSummary | None = None,
) -> Plan:
    """The plan of a placement of every operator."""
    return replace(
        plan_of_nothing(graph, cluster),
        placement=placement,
        transfers=transfers_of(graph, placement),
        summary=summary,
    )


def plan_of_nothing(graph: Graph, cluster: Cluster) -> Plan:
    """The plan that leaves every operator to TensorFlow, as where there is one device."""
    return Plan(
        signature=graph.signature,
        tags=graph.tags,
        devices=tuple(PlanDevice(d.name, d.type, d.memory_bytes, d.model) for d in cluster.devices),
        client=cluster.client,
        placement={},
        transfers=(),
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


def write_placed(
    model: SavedModel,
    graph: Graph,
    cluster: Cluster,
    placement: Mapping[str, str],
    output: Path,
    order: Order | None = None,
) -> Plan:
    """Writes a copy of a model with a given placement; returns its plan.

    Args:
      model: the model without a placement.
      graph: its flat graph.
      cluster: the devices.
      placement: operator -> device, for every operator.
      output: the directory to make.
      order: control edges that keep an order; None leaves it to TensorFlow.

    Raises:
      MoiraiError: the output exists, or the placement cannot be written.
    """
    plan = plan_of(graph, cluster, placement)
    staged, plan = stage_placed(model, graph, plan, output, overwrite=False, order=order)
    try:
        publish(staged)
    except BaseException:
        discard(staged)
        raise
    return plan

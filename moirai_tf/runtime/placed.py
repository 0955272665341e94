"""Writes placements that no solver made, such as everything on one device, to run them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moirai_tf.cluster import Cluster
from moirai_tf.graph.graph import Graph
from moirai_tf.model.output import discard, publish
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.rewrite.directory import stage_placed
from moirai_tf.rewrite.make_plan import plan_of
from moirai_tf.rewrite.order import Order
from moirai_tf.rewrite.plan import Plan


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

"""Placements of flat graphs that no solver made, for tests of the rewrite alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from moirai_tf.graph.graph import CLIENT_OPS, Graph
from moirai_tf.graph.importer import import_graph
from moirai_tf.graph.options import ImportOptions
from moirai_tf.graph.prune import prune
from moirai_tf.model.output import discard, publish
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.rewrite.directory import stage_placed, unplaced
from moirai_tf.rewrite.make_plan import transfers_of
from moirai_tf.rewrite.plan import Plan, PlanDevice

CPUS = ("/device:CPU:0", "/device:CPU:1")


def scattered(graph: Graph, devices: Sequence[str] = CPUS, seed: int = 0) -> dict[str, str]:
    """Every colocation group on a device by lot; what holds a client operator on the first."""
    leader = list(range(len(graph)))
    for group in graph.colocation:
        for member in group.members:
            leader[member] = group.members[0]
    clients = {leader[i] for i, o in enumerate(graph.operators) if o.op in CLIENT_OPS}
    lots = random.Random(seed)
    chosen = {i: devices[0] if i in clients else lots.choice(devices) for i in sorted(set(leader))}
    return {o.name: chosen[leader[i]] for i, o in enumerate(graph.operators)}


def plan_of(graph: Graph, placement: Mapping[str, str], devices: Sequence[str] = CPUS) -> Plan:
    """A plan with that placement; the first device is the client's."""
    return Plan(
        signature=graph.signature,
        tags=graph.tags,
        devices=tuple(PlanDevice(name, name.split(":")[-2], None) for name in devices),
        client=devices[0],
        placement=placement,
        transfers=transfers_of(graph, placement),
    )


def place(
    source: Path,
    output: Path,
    *,
    placement: Mapping[str, str] | None = None,
    seed: int = 0,
    devices: Sequence[str] = CPUS,
    overwrite: bool = False,
    **options: object,
) -> Plan:
    """Writes a placed model, by default with a scattered placement; returns its plan.

    A given placement names only operators that are not on the first device.
    """
    model = unplaced(read_saved_model(source))
    graph = prune(import_graph(model, ImportOptions(**options)))
    if placement is None:
        full = scattered(graph, devices, seed)
    else:
        full = {o.name: placement.get(o.name, devices[0]) for o in graph.operators}
        assert placement.keys() <= full.keys()
    staged, plan = stage_placed(
        model, graph, plan_of(graph, full, devices), output, overwrite=overwrite
    )
    try:
        publish(staged)
    finally:
        discard(staged)
    return plan

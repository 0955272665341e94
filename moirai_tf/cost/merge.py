"""Puts cost tables of one graph together: other devices, or newer figures of some."""

from __future__ import annotations

from collections.abc import Sequence

from moirai_tf.cost.table import CostTable, OperatorCost, StepCost
from moirai_tf.errors import MoiraiError


def merged(tables: Sequence[CostTable]) -> CostTable:
    """One table of all devices; where several know a device or a link, the last one wins.

    Args:
      tables: one or more, of the same graph and versions.

    Raises:
      MoiraiError: they are of different models, shapes or versions of TensorFlow.
    """
    last = tables[-1]
    for table in tables:
        _require_alike(table, last)
    sources = {p.device.name: table for table in tables for p in table.devices}
    links = {(m.link.source, m.link.target): m for table in tables for m in table.links}
    return CostTable(
        signature=last.signature,
        inputs=last.inputs,
        fingerprint=last.fingerprint,
        versions=last.versions,
        machine=last.machine,
        devices=tuple(table.devices[table.columns[name]] for name, table in sources.items()),
        operators={
            name: OperatorCost(
                tuple(t.operators[name].time_ns[t.columns[d]] for d, t in sources.items()),
                tuple(t.operators[name].traffic_ns[t.columns[d]] for d, t in sources.items()),
            )
            for name in last.operators
        },
        links=tuple(links.values()),
        step=_merged_step(tables),
        handling={name: h for table in tables for name, h in table.handling.items()},
        slowdown={name: f for table in tables for name, f in table.slowdown.items()},
        options=last.options,
    )


def _merged_step(tables: Sequence[CostTable]) -> StepCost:
    measured = [table.step for table in tables if table.step != StepCost()]
    if not measured:
        return StepCost()
    devices = {name: ns for step in measured for name, ns in step.device_ns.items()}
    return StepCost(measured[-1].client_ns, devices)


def _require_alike(table: CostTable, other: CostTable) -> None:
    for what in ("fingerprint", "inputs", "versions"):
        if getattr(table, what) != getattr(other, what):
            raise MoiraiError(
                f"the cost tables differ in their {what}",
                why="costs of different models, shapes or versions do not compare",
                fix="merge tables of one model at one batch size, or profile again",
            )

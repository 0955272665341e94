"""The cost table: what every operator costs on every device, and how that was found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from moirai_tf.cluster import Cluster, Device, Link
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph

MEASURE, ANALYTICAL = "measure", "analytical"


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One fine operator on each device of the table, in the table's order."""

    time_ns: tuple[int | None, ...]
    """None where the device cannot run it; 0 if it does not exist at run time (folded, fused)."""
    traffic_ns: tuple[int, ...]
    """The part of `time_ns` that moves operands to and from memory, which fusion can save; 0 for
    measured times, which are those of operators as they ran after fusion."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a profile of one device says of itself. Times are medians over the repeats."""

    repeats: int
    latency_ns: int
    """One inference without the profiler, feeds and fetches included."""
    step_ns: int
    """One inference under the profiler."""
    attributed_ns: int
    """Part of `step_ns` spent in kernels that belong to a known operator."""
    unknown_ns: int
    """Part spent in kernels whose name leads to no operator."""
    spread: float
    """Interquartile range of the steps over their median."""

    @property
    def attributed(self) -> float:
        """Fraction of a step that is attributed; the rest is scheduling, feeds and fetches."""
        return self.attributed_ns / self.step_ns if self.step_ns else 0.0


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A column of the table."""

    device: Device
    source: str
    """`measure` or `analytical`."""
    measurement: Measurement | None = None
    """Of the hardware itself, before the declared speed; None for computed costs."""


@dataclass(frozen=True)
class CostTable:
    """Costs of one signature at one set of input shapes; profile once, plan often."""

    signature: str
    inputs: Mapping[str, str]
    """Input -> type and shape, which hold the batch size."""
    fingerprint: str
    """Of the operator graph: names, ops, types and shapes; weights do not matter."""
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    devices: tuple[DeviceProfile, ...]
    operators: Mapping[str, OperatorCost]
    links: tuple[Link, ...] = field(default=())
    """Measured links; they win over those of the cluster file."""

    @cached_property
    def columns(self) -> Mapping[str, int]:
        """Device name -> column."""
        return {profile.device.name: i for i, profile in enumerate(self.devices)}

    def require_fit(self, graph: Graph, cluster: Cluster) -> None:
        """Checks that the table is one of this graph on this cluster.

        Raises:
          MoiraiError: it is stale: another graph or other shapes, a device that is missing or was
            described differently, an operator that is missing.
        """
        if self.fingerprint != fingerprint(graph):
            made_for = ", ".join(f"{name}: {spec}" for name, spec in self.inputs.items())
            raise _stale(
                f"it was made for signature {self.signature!r} of another model or other shapes "
                f"({made_for})"
            )
        for device in cluster.devices:
            if device.name not in self.columns:
                raise _stale(f"it knows no device {device.name!r}")
            known = self.devices[self.columns[device.name]].device
            if _speed_of(known) != _speed_of(device):
                raise _stale(f"device {device.name!r} was described differently")
        missing = [o.name for o in graph.operators if o.name not in self.operators]
        if missing:
            raise _stale(f"it lacks {len(missing)} operators, the first is {missing[0]!r}")


def fingerprint(graph: Graph) -> str:
    """SHA-256 of what costs depend on: operators, their types, shapes and wiring."""
    digest = hashlib.sha256(graph.signature.encode())
    for operator in graph.operators:
        specs = ",".join(map(str, operator.outputs))
        digest.update(f"{operator.name}|{operator.op}|{operator.inputs}|{specs}\n".encode())
    return digest.hexdigest()


def described_inputs(graph: Graph) -> dict[str, str]:
    """Signature input -> its type and shape."""
    return {name: str(graph.operators[i].outputs[0]) for name, i in graph.inputs.items()}


def by_operator(
    graph: Graph, columns: Sequence[Sequence[tuple[int | None, int]]]
) -> dict[str, OperatorCost]:
    """Rows of a table from its columns.

    Args:
      graph: the fine graph.
      columns: for each device, (time, traffic) of each operator of the graph, in nanoseconds.
    """
    return {
        operator.name: OperatorCost(
            tuple(column[i][0] for column in columns), tuple(column[i][1] for column in columns)
        )
        for i, operator in enumerate(graph.operators)
    }


def _speed_of(device: Device) -> Device:
    """The device without what has no influence on times."""
    return replace(device, memory_bytes=None, address="")


def _stale(what: str) -> MoiraiError:
    return MoiraiError(
        f"the cost table does not fit: {what}",
        why="times of other operators or devices would give a wrong plan",
        fix="profile again, or give the table that was made for this model and this cluster",
    )

"""The cost table: what every operator costs on every device, and how that was found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import tensorflow as tf

from moirai_tf.cluster import Cluster, Device, Link
from moirai_tf.cluster.cluster import task_of
from moirai_tf.cost.options import ANALYTICAL
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph
from moirai_tf.records import Natural, Positive

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One fine operator on each device of the table, in the table's order."""

    time_ns: tuple[Natural | None, ...]
    """None where the device cannot run it; 0 if it does not exist at run time (folded, fused)."""
    traffic_ns: tuple[Natural, ...]
    """The part of `time_ns` that moves operands to and from memory, which fusion can save; 0 for
    measured times, which are those of operators as they ran after fusion."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a profile of one device says of itself. Times are medians over the repeats."""

    repeats: Positive
    latency_ns: Natural
    """One inference without the profiler, feeds and fetches included."""
    step_ns: Natural
    """One inference under the profiler."""
    attributed_ns: Natural
    """Part of `step_ns` spent in kernels that belong to a known operator."""
    unknown_ns: Natural
    """Part spent in kernels whose name leads to no operator."""
    spread: float
    """Interquartile range of the steps over their median."""
    fixed_ns: Natural = 0
    """Part of `latency_ns` that is not blamed on operators: Session, feeds, fetches."""
    moved_ns: Natural = 0
    """Part of `latency_ns` that is transfers of feeds and results, by the measured links."""
    dispatch_ns: Natural = 0
    """What passes between kernels: the executor's work for each, a GPU's wait for the next; in the
    operators' times."""
    scale: float = 1.0
    """Factor on the traced times, below 1 where tracing slowed them down."""
    pieces: Positive = 1
    """How many parts of the model were run one after the other because it does not fit."""
    peak_bytes: Natural = 0
    """The most that the device's allocator held during a step; 0 if it was not looked at."""
    scratch_bytes: Natural = 0
    """The most that one kernel took and gave back before it was done."""
    stream_ns: Natural = 0
    """What kernels ran on a GPU's streams, unknown ones included; 0 for a CPU."""
    copied_ns: Natural = 0
    """Copies from and to a GPU in one step, feeds and results included; 0 for a CPU."""

    @property
    def attributed(self) -> float:
        """Fraction of a step that is attributed; the rest is scheduling, feeds and fetches."""
        return self.attributed_ns / self.step_ns if self.step_ns else 0.0


@dataclass(frozen=True, slots=True)
class MeasuredLink:
    """A link as it was measured."""

    source: str
    target: str
    latency_ns: Natural
    bandwidth_bytes_per_s: Positive
    error: float
    """Median of |fit - measured| / measured over the sizes."""
    times_ns: tuple[tuple[Natural, Natural], ...]
    """(bytes, nanoseconds) of every size, medians."""

    @property
    def link(self) -> Link:
        """The link alone."""
        return Link(self.source, self.target, self.latency_ns, self.bandwidth_bytes_per_s)


def links_of(cluster: Cluster, measured: Iterable[MeasuredLink]) -> Mapping[tuple[str, str], Link]:
    """(source, target) -> link; a measured one wins over that of the cluster file."""
    known = (*cluster.links, *(found.link for found in measured))
    return {(link.source, link.target): link for link in known}


@dataclass(frozen=True)
class StepCost:
    """Fixed cost of one step of a signature, at its input shapes."""

    client_ns: Natural = 0
    """On the client's device alone."""
    device_ns: Mapping[str, Natural] = field(default_factory=dict)
    """Device -> what its taking part adds; 0 for CPUs of the client's task."""

    def total_ns(self, client: str, used: Iterable[str]) -> int:
        """Fixed cost of a step in which so many devices run operators.

        Devices of one server start and answer at the same time, so the dearest of them counts.
        """
        by_task: dict[str, int] = {}
        for name in set(used) - {client}:
            task = task_of(name)
            by_task[task] = max(by_task.get(task, 0), self.device_ns.get(name, 0))
        return self.client_ns + sum(by_task.values())


@dataclass(frozen=True, slots=True)
class Handling:
    """How long a device cannot compute because it packs or unpacks a tensor."""

    send_ns: Natural
    """For a small tensor."""
    send_ns_per_mib: Natural
    receive_ns: Natural
    receive_ns_per_mib: Natural

    def sending_ns(self, nbytes: int) -> int:
        """To send so many bytes."""
        return self.send_ns + self.send_ns_per_mib * nbytes // _MIB

    def receiving_ns(self, nbytes: int) -> int:
        """To receive so many bytes."""
        return self.receive_ns + self.receive_ns_per_mib * nbytes // _MIB


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A column of the table."""

    device: Device
    source: Literal["measure", "analytical"]
    measurement: Measurement | None = None
    """Of the hardware itself, before the declared speed; None for computed costs."""
    machine: Mapping[str, str] = field(default_factory=dict)
    """What the server that was measured said of its machine."""


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
    links: tuple[MeasuredLink, ...] = ()
    """Measured links; they win over those of the cluster file."""
    step: StepCost = field(default_factory=StepCost)
    """What a step costs beyond operators and transfers; zero where nothing was measured."""
    handling: Mapping[str, Handling] = field(default_factory=dict)
    """Device -> what moving tensors costs its operators; empty where nothing was measured."""
    slowdown: Mapping[str, float] = field(default_factory=dict)
    """Device -> factor on its times while all others compute too; 1 where nothing was measured."""
    options: Mapping[str, str] = field(default_factory=dict)
    """How it was profiled."""

    @cached_property
    def columns(self) -> Mapping[str, int]:
        """Device name -> column."""
        return {profile.device.name: i for i, profile in enumerate(self.devices)}

    @property
    def computed(self) -> tuple[str, ...]:
        """Devices whose costs were computed, not measured."""
        return tuple(p.device.name for p in self.devices if p.source == ANALYTICAL)

    @property
    def gpus(self) -> frozenset[str]:
        """Devices whose host launches ahead of what they run."""
        return frozenset(p.device.name for p in self.devices if p.device.type == "GPU")

    @property
    def moving_interferes(self) -> bool:
        """Whether moving a tensor is known to keep a device from computing."""
        return bool(self.handling or self.gpus)

    def require_fit(self, graph: Graph, cluster: Cluster) -> None:
        """Checks that the table is one of this graph on this cluster.

        Raises:
          MoiraiError: it is stale: another graph or other shapes, another TensorFlow, a device that
            is missing or was described differently, an operator that is missing.
        """
        self.require_graph(graph)
        changed = self.changed_devices(cluster)
        if changed:
            raise _stale(next(iter(changed.values())))

    def require_graph(self, graph: Graph) -> None:
        """Checks all but the devices; raises as `require_fit`."""
        if self.fingerprint != fingerprint(graph):
            made_for = ", ".join(f"{name}: {spec}" for name, spec in self.inputs.items())
            raise _stale(
                f"it was made for signature {self.signature!r} of another model or other shapes "
                f"({made_for})"
            )
        missing = [o.name for o in graph.operators if o.name not in self.operators]
        if missing:
            raise _stale(f"it lacks {len(missing)} operators, the first is {missing[0]!r}")
        before = self.versions.get("tensorflow", tf.__version__)
        if before != tf.__version__:
            raise _stale(f"TensorFlow was {before} and is {tf.__version__}, with other kernels")

    def changed_devices(self, cluster: Cluster) -> dict[str, str]:
        """Device -> why its costs are not known, or not any more."""
        changed: dict[str, str] = {}
        for device in cluster.devices:
            if device.name not in self.columns:
                changed[device.name] = f"it knows no device {device.name!r}"
                continue
            known = self.devices[self.columns[device.name]].device
            if _speed_of(known) != _speed_of(device):
                changed[device.name] = f"device {device.name!r} was described differently"
        return changed


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
        fix="profile again (--refresh=changed for devices alone), or give the table that was made "
        "for this model and this cluster",
    )

"""Which placements to run so that every operator is timed once on every device that it can use.

A device with room for the whole model runs it alone. One that has less is given the operators piece
by piece, in topological order, while the others hold the rest. What is larger than a device is not
timed there: no plan can put it there either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moirai_tf.cluster import Cluster
from moirai_tf.cost.step_stats import Allocated
from moirai_tf.cost.xplane import UNKNOWN
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.graph.graph import CLIENT_OPS, Graph


@dataclass(frozen=True)
class Layout:
    """One placement that is run to time operators on one device."""

    device: str
    """The device that is looked at."""
    placement: Mapping[str, str]
    """Operator -> device."""
    whole: bool
    """Whether the device runs everything but what only the client can."""


def layouts(coarse: CoarseGraph, cluster: Cluster, device: str) -> list[Layout]:
    """The placements that show every operator on one device that it fits.

    Raises:
      MoiraiError: nothing fits the device, or the others cannot hold the rest.
    """
    graph = coarse.fine
    capacity = cluster.device(device).memory_bytes
    whole = alone(graph, cluster, device)
    need = sum(o.resident_bytes for o in graph.operators if whole[o.name] == device)
    if capacity is None or need <= capacity:
        return [Layout(device, whole, whole=True)]
    units = _units(graph, cluster, _fused_groups(coarse))
    able = [unit for unit in units if device in unit.devices]
    free = [unit for unit in able if unit.nbytes <= capacity]
    if able and not free:
        raise MoiraiError(
            f"every operator needs more than the {capacity} bytes of {device!r}",
            why="a device is timed with operators that fit it",
            fix="give the device more memory in the cluster file, or leave it out",
        )
    return [
        Layout(device, _placed(graph, units, piece, device, _rest(cluster, units, piece, device)),
               whole=False)
        for piece in _pieces(graph, free, capacity)
    ]  # fmt: skip


def alone(graph: Graph, cluster: Cluster, device: str) -> dict[str, str]:
    """Operator -> that device; the client's for feeds, fetches and what it cannot run."""
    units = _units(graph, cluster, [group.members for group in graph.colocation])
    free = [unit for unit in units if device in unit.devices]
    return _placed(graph, units, free, device, {})


@dataclass(frozen=True)
class _Unit:
    """Operators that share a device."""

    members: tuple[int, ...]
    nbytes: int
    devices: tuple[str, ...]
    """Those that can run it, the client first."""


def _fused_groups(coarse: CoarseGraph) -> list[tuple[int, ...]]:
    """What stays together in pieces, so that weights are where they are read."""
    grouped = {fused for group in coarse.colocation for fused in group}
    groups = [*coarse.colocation, *((i,) for i in range(len(coarse)) if i not in grouped)]
    return [
        tuple(sorted(m for fused in group for m in coarse.operators[fused].members))
        for group in groups
    ]


def _units(graph: Graph, cluster: Cluster, groups: Sequence[tuple[int, ...]]) -> list[_Unit]:
    """Units in topological order of their last members, with single operators for the rest."""
    grouped = {member for members in groups for member in members}
    every = [*groups, *((i,) for i in range(len(graph)) if i not in grouped)]
    return [
        _unit(graph, cluster, members) for members in sorted(every, key=lambda group: group[-1])
    ]


def _unit(graph: Graph, cluster: Cluster, members: tuple[int, ...]) -> _Unit:
    operators = [graph.operators[member] for member in members]
    order = sorted(cluster.devices, key=lambda device: device.name != cluster.client)
    able = tuple(
        device.name
        for device in order
        if all(device.type in operator.device_types for operator in operators)
    )
    client = any(operator.op in CLIENT_OPS for operator in operators)
    return _Unit(
        members,
        sum(operator.resident_bytes for operator in operators),
        (cluster.client,) if client or not able else able,
    )


def _pieces(graph: Graph, units: Sequence[_Unit], capacity: int) -> list[list[_Unit]]:
    """Cuts units, in order, into pieces that take up to half of a device, three quarters with what
    they read.

    TensorFlow's allocator keeps what it once had, so pieces of earlier runs still count.
    """
    pieces: list[list[_Unit]] = [[]]
    used, arrived, inside = 0, 0, set[int]()
    for unit in units:
        arriving = _arriving_bytes(graph, unit, inside)
        own = used + unit.nbytes
        if used and (own > capacity // 2 or own + arrived + arriving > capacity * 3 // 4):
            pieces.append([])
            used, arrived, inside = 0, 0, set()
            arriving = _arriving_bytes(graph, unit, inside)
        pieces[-1].append(unit)
        used, arrived = used + unit.nbytes, arrived + arriving
        inside.update(unit.members)
    return pieces


def _arriving_bytes(graph: Graph, unit: _Unit, inside: set[int]) -> int:
    """Tensors that come from another device, if the operators inside are on the unit's."""
    own = inside.union(unit.members)
    read = {ref for member in unit.members for ref in graph.operators[member].inputs}
    return sum(graph.spec(ref).nbytes for ref in read if ref.producer not in own)


def _rest(
    cluster: Cluster, units: Sequence[_Unit], piece: Sequence[_Unit], device: str
) -> dict[int, str]:
    """Unit (its first member) -> device, for what is not in the piece: the first that has room."""
    left = {d.name: d.memory_bytes for d in cluster.devices}
    own = left[device]
    assert own is not None
    left[device] = own - sum(unit.nbytes for unit in piece)
    inside = {unit.members[0] for unit in piece}
    chosen: dict[int, str] = {}
    for unit in units:
        if unit.members[0] in inside:
            continue
        for name in (*(n for n in unit.devices if n != device), device):
            room = left.get(name)
            if name in unit.devices and (room is None or room >= unit.nbytes):
                chosen[unit.members[0]] = name
                left[name] = None if room is None else room - unit.nbytes
                break
        else:
            raise MoiraiError(
                f"cluster {cluster.name!r} has no room for the model beside the piece that "
                f"{device!r} is timed on",
                why="a model that does not fit a device is timed there piece by piece, while the "
                "other devices hold the rest",
                fix="give devices more memory, or use --source=analytical",
            )
    return chosen


def _placed(
    graph: Graph,
    units: Sequence[_Unit],
    piece: Sequence[_Unit],
    device: str,
    rest: Mapping[int, str],
) -> dict[str, str]:
    inside = {unit.members[0] for unit in piece}
    result: dict[str, str] = {}
    for unit in units:
        first = unit.members[0]
        place = device if first in inside else rest.get(first, unit.devices[0])
        result.update((graph.operators[member].name, place) for member in unit.members)
    return result


@dataclass(frozen=True)
class TracedLayout:
    """Times in nanoseconds; by operator (or `UNKNOWN`) where they are of operators."""

    kernel_ns: Mapping[int, float]
    kernels: Mapping[int, float]
    """How many kernels ran."""
    wait_ns: Mapping[int, float]
    """How long a GPU had nothing to do before an operator's kernels; empty for a CPU."""
    latency_ns: float
    """Of an untraced step, as its client sees it."""
    step_ns: float
    """Of a traced one."""
    spread: float
    """Of the untraced steps: between the quartiles, relative to the median."""
    memory: Allocated
    repeats: int
    stream_ns: float
    """All kernels on a GPU's stream."""
    copied_ns: float
    """All copies from and to a GPU."""
    step: Callable[[], object] | None = None
    """Runs it untraced again; None if its Session was closed."""


def own_ns(
    graph: Graph, shown: Sequence[Layout], found: Sequence[Mapping[int, float]]
) -> npt.NDArray[Any]:
    """By operator, what the layouts found of those that were on the device looked at."""
    total = np.zeros(len(graph))
    for layout, by_operator in zip(shown, found, strict=True):
        for owner, value in by_operator.items():
            if owner != UNKNOWN and layout.placement[graph.operators[owner].name] == layout.device:
                total[owner] = value
    return total

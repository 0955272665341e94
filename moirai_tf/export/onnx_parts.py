"""Cuts an ONNX graph into parts of one device each.

A part takes all its inputs before it starts and gives its outputs when it ends. So a device's
nodes, in the order of the schedule, are cut after what another device waits for, and before what
waits for another device. Where nothing could overlap, neighbours are one part again.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moirai_tf.export.onnx_graph import Flow


@dataclass(frozen=True)
class Part:
    """Nodes that one device runs in one go."""

    device: str
    nodes: tuple[int, ...]
    """Positions in the graph, in the order in which they run."""
    inputs: tuple[str, ...]
    """Tensors of other parts, and inputs of the model."""
    outputs: tuple[str, ...]
    """Tensors that other parts read, and outputs of the model."""


class _Flow(Flow):
    """The same, and where nodes run."""

    def __init__(self, graph: Any, devices: Sequence[str]) -> None:
        super().__init__(graph)
        self.devices = devices

    def sends(self, i: int) -> bool:
        """Whether another device reads what a node makes."""
        return any(self.devices[c] != self.devices[i] for c in self.consumers[i])

    def received(self, i: int) -> set[str]:
        """Tensors of other devices that a node reads."""
        return {
            t
            for t in self.reads[i]
            if t in self.maker and self.devices[self.maker[t]] != self.devices[i]
        }


def parts_of(
    graph: Any,
    devices: Sequence[str],
    operators: Sequence[str],
    starts_ns: Mapping[str, int],
    *,
    coarse: bool = False,
) -> tuple[Part, ...]:
    """The parts, each after those whose outputs it reads.

    Args:
      graph: the main graph, sorted.
      devices: the device of every node.
      operators: the operator of the plan that a node is called after, or nothing.
      starts_ns: fused operator -> when the schedule starts it.
      coarse: whether to cut by the number of devices passed before, not by the schedule.
    """
    flow = _Flow(graph, devices)
    order = _order(flow, operators, starts_ns)
    groups = _levels(flow, order) if coarse else _merged(flow, _cut(flow, order))
    return tuple(_part(graph, flow, nodes) for nodes in _sorted(flow, groups))


def _order(flow: _Flow, operators: Sequence[str], starts_ns: Mapping[str, int]) -> list[int]:
    """All nodes, each after what it reads, as the schedule starts them."""
    ready_ns = [starts_ns.get(name, 0) for name in operators]
    missing = [len(found) for found in flow.producers]
    heap = [(ready_ns[i], i) for i, count in enumerate(missing) if not count]
    heapq.heapify(heap)
    order = []
    while heap:
        time_ns, i = heapq.heappop(heap)
        order.append(i)
        for consumer in flow.consumers[i]:
            ready_ns[consumer] = max(ready_ns[consumer], time_ns)
            missing[consumer] -= 1
            if not missing[consumer]:
                heapq.heappush(heap, (ready_ns[consumer], consumer))
    return order


def _cut(flow: _Flow, order: Sequence[int]) -> list[list[int]]:
    """Device by device: a new part before a node that receives, and after one that sends."""
    parts: list[list[int]] = []
    there: dict[str, set[str]] = {device: set() for device in flow.devices}
    latest: dict[str, list[int]] = {}
    for i in order:
        device = flow.devices[i]
        new = flow.received(i) - there[device]
        there[device] |= new
        part = latest.get(device)
        if part is None or new or flow.sends(part[-1]):
            part = latest[device] = []
            parts.append(part)
        part.append(i)
    return parts


def _levels(flow: _Flow, order: Sequence[int]) -> list[list[int]]:
    """One part for every device and number of crossings on the way to a node."""
    level = [0] * len(flow)
    found: dict[tuple[int, str], list[int]] = {}
    for i in order:
        before = (level[p] + (flow.devices[p] != flow.devices[i]) for p in flow.producers[i])
        level[i] = max(before, default=0)
        found.setdefault((level[i], flow.devices[i]), []).append(i)
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def _merged(flow: _Flow, parts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Neighbours of a device become one where no part elsewhere could run beside either.

    Two may be one if every other device that reads the first waits for the second anyway, and all
    that the second waits for elsewhere ends before the first can start: then nothing is delayed.
    """
    owner = {node: k for k, part in enumerate(parts) for node in part}
    device = [flow.devices[part[0]] for part in parts]
    readers: list[set[int]] = [set() for _ in parts]
    sources: list[set[int]] = [set() for _ in parts]
    for i, found in enumerate(flow.producers):
        for producer in found:
            one, two = owner[producer], owner[i]
            if device[one] != device[two]:
                readers[one].add(two)
                sources[two].add(one)
    before = _ancestors(parts, device, sources)
    groups: list[list[int]] = []
    latest: dict[str, list[int]] = {}
    for k, where in enumerate(device):
        group = latest.get(where)
        if (
            group is not None
            and all(before[q] >> k & 1 for member in group for q in readers[member])
            and all(before[group[0]] >> source & 1 for source in sources[k])
        ):
            group.append(k)
        else:
            latest[where] = [k]
            groups.append(latest[where])
    return [[node for k in group for node in parts[k]] for group in groups]


def _ancestors(
    parts: Sequence[Sequence[int]], device: Sequence[str], sources: Sequence[set[int]]
) -> list[int]:
    """For every part, a bit for each that ends before it starts: by data, or on its device."""
    before: list[int] = []
    latest: dict[str, int] = {}
    for k in range(len(parts)):
        earlier = {*sources[k], *([latest[device[k]]] if device[k] in latest else [])}
        bits = 0
        for j in earlier:
            bits |= before[j] | 1 << j
        before.append(bits)
        latest[device[k]] = k
    return before


def _sorted(flow: _Flow, groups: Sequence[list[int]]) -> list[list[int]]:
    """The parts so that each comes after what it reads, those of a device as they are."""
    owner = {node: k for k, group in enumerate(groups) for node in group}
    needs = [
        {owner[p] for i in group for p in flow.producers[i]} - {k} for k, group in enumerate(groups)
    ]
    latest: dict[str, int] = {}
    for k, group in enumerate(groups):
        device = flow.devices[group[0]]
        needs[k] |= {latest[device]} if device in latest else set()
        latest[device] = k
    done: set[int] = set()
    result = []
    pending = list(range(len(groups)))
    while pending:
        k = next(k for k in pending if needs[k] <= done)
        pending.remove(k)
        done.add(k)
        result.append(groups[k])
    return result


def _part(graph: Any, flow: _Flow, nodes: Sequence[int]) -> Part:
    own, wanted = set(nodes), {value.name for value in graph.output}
    given = {value.name for value in graph.input}
    inputs = dict.fromkeys(
        t
        for i in nodes
        for t in flow.reads[i]
        if t in given or (t in flow.maker and flow.maker[t] not in own)
    )
    outside = {t for i in range(len(flow)) if i not in own for t in flow.reads[i]}
    outputs = [
        t for i in nodes for t in graph.node[i].output if t and (t in wanted or t in outside)
    ]
    return Part(flow.devices[nodes[0]], tuple(nodes), tuple(inputs), tuple(outputs))

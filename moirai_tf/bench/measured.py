"""The timeline of a step that really ran, from TensorFlow's step statistics.

Kernels come with nanoseconds; those of GPUs are taken from the records of their streams, since the
executor's are of launches. A tensor between two servers is a `RecvTensor` record of the
receiving worker, in whole microseconds: it starts when the sender has the tensor and ends when it
has arrived. Between devices of one process nothing is recorded, so only arrows are known.

Workers stamp their records with their own clocks. On one machine these are the same; on several a
tensor may seem to arrive before it was made. Each task's clock is then moved forward, as little as
possible, until no transfer ends before the kernel that made the tensor. What is left of the error
of a clock is at most the time of the fastest transfer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moirai_tf.bench.timeline import Span, TensorMove, Timeline, in_order
from moirai_tf.cluster.cluster import task_of
from moirai_tf.model.validate import input_node
from moirai_tf.runtime.gpu_records import gpu_kernels

_TRANSFERS = frozenset({"_Send", "_Recv", "_HostSend", "_HostRecv"})
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
"""Nodes that last as long as what they run, which has records of its own."""
_RECEIVED = "RecvTensor"
_LABEL = re.compile(r".*?\] (?P<tensor>edge_\d+_.+) from (?P<source>\S+) to (?P<target>\S+)")
_KERNEL = re.compile(r" = (?P<op>\w+)\(")
_NS_PER_US = 1000

_Key = tuple[str, str, str]
"""Tensor name, sending and receiving device of a `_Send`/`_Recv` pair."""


@dataclass(frozen=True)
class MeasuredStep:
    """One traced step."""

    timeline: Timeline
    clock_shifts_ns: Mapping[str, int]
    """Task -> by how much its clock was moved forward; only those that were."""


@dataclass(frozen=True)
class _Edge:
    """One `_Send`/`_Recv` pair of the partition graphs."""

    producer: str
    """Node whose output is sent."""
    readers: tuple[str, ...]
    """Nodes that read what is received."""


@dataclass(frozen=True)
class _Arrival:
    """One record of a received tensor."""

    key: _Key
    start_ns: int
    finish_ns: int
    nbytes: int


def measured_step(
    metadata: Any, devices: Mapping[str, str], owner: Callable[[str], str | None]
) -> MeasuredStep:
    """What one traced step did, from its first record on.

    Args:
      metadata: `RunMetadata` with step statistics and partition graphs.
      devices: TensorFlow's full device name -> the cluster's name; other devices are left out.
      owner: fused operator of a kernel's name, or None.
    """
    edges = _edges(metadata.partition_graphs, devices)
    kernels = list(_kernels(metadata, devices, owner))
    arrivals = [arrival for arrival in _arrivals(metadata, devices) if arrival.key in edges]
    shifts = _clock_shifts(_executions(kernels), arrivals, edges)
    starts = [span.start_ns + shifts.get(task_of(span.device), 0) for span in kernels]
    zero_ns = min(starts, default=0)
    kernels = [_moved(span, shifts.get(task_of(span.device), 0) - zero_ns) for span in kernels]
    arrivals = [_arrived(a, shifts.get(task_of(a.key[2]), 0) - zero_ns) for a in arrivals]
    moves = _moves(edges, arrivals, _executions(kernels))
    return MeasuredStep(Timeline(in_order(kernels), tuple(moves)), shifts)


def _kernels(
    metadata: Any, devices: Mapping[str, str], owner: Callable[[str], str | None]
) -> Iterator[Span]:
    ops = {node.name: node.op for graph in metadata.partition_graphs for node in graph.node}
    for stats in metadata.step_stats.dev_stats:
        streams = _streams(metadata.step_stats, stats.device)
        for node in stats.node_stats if stats.device in devices else ():
            name = node.node_name.partition(":")[0]
            op, known = ops.get(name, ""), owner(name)
            if name == _RECEIVED or op in _TRANSFERS or (op in _CALLS and known is None):
                continue
            if not op and known is None:  # the executor's own, such as _SOURCE
                continue
            kernel = _KERNEL.search(node.timeline_label)
            launched_ns = (
                node.all_start_nanos + node.op_start_rel_nanos,
                node.all_start_nanos + max(node.op_start_rel_nanos, node.op_end_rel_nanos),
            )
            times_ns = streams.get(name, [launched_ns])
            if name in streams:
                streams[name] = []  # a loop launches a node many times, but has its kernels once
            for start_ns, finish_ns in times_ns:
                yield Span(
                    known or name,
                    devices[stats.device],
                    start_ns,
                    finish_ns,
                    {"node": name, "kernel": kernel["op"] if kernel else op},
                )


def _streams(step_stats: Any, device: str) -> dict[str, list[tuple[int, int]]]:
    """Node -> when its kernels ran on a GPU's stream; a CPU has none."""
    found: dict[str, list[tuple[int, int]]] = {}
    for record in gpu_kernels(step_stats, device):
        end_ns = record.start_ns + record.time_ns
        found.setdefault(record.operator, []).append((record.start_ns, end_ns))
    return found


def _arrivals(metadata: Any, devices: Mapping[str, str]) -> Iterator[_Arrival]:
    for stats in metadata.step_stats.dev_stats:
        for node in stats.node_stats:
            label = _LABEL.fullmatch(node.timeline_label) if node.node_name == _RECEIVED else None
            if label is None or not {label["source"], label["target"]} <= devices.keys():
                continue
            start_us = node.all_start_micros + node.op_start_rel_micros
            finish_us = node.all_start_micros + node.op_end_rel_micros
            yield _Arrival(
                (label["tensor"], devices[label["source"]], devices[label["target"]]),
                start_us * _NS_PER_US,
                finish_us * _NS_PER_US,
                sum(o.tensor_description.allocation_description.requested_bytes
                    for o in node.output),
            )  # fmt: skip


def _edges(partitions: Iterable[Any], devices: Mapping[str, str]) -> dict[_Key, _Edge]:
    """Every `_Send`/`_Recv` pair."""
    nodes = [node for graph in partitions for node in graph.node]
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for text in node.input:
            readers.setdefault(input_node(text), []).append(node.name)
    keys = {node.name: _key(node, devices) for node in nodes if node.op in _TRANSFERS}
    received = {
        keys[node.name]: tuple(dict.fromkeys(readers.get(node.name, ())))
        for node in nodes
        if node.op in _TRANSFERS and not node.input
    }
    return {
        key: _Edge(input_node(node.input[0]), received[key])
        for node in nodes
        if node.op in _TRANSFERS
        and node.input
        and (key := keys[node.name]) is not None
        and key in received
    }


def _key(node: Any, devices: Mapping[str, str]) -> _Key | None:
    """None where a device is none of the cluster's."""
    source, target = (node.attr[name].s.decode() for name in ("send_device", "recv_device"))
    if not {source, target} <= devices.keys():
        return None
    return node.attr["tensor_name"].s.decode(), devices[source], devices[target]


_Executions = Mapping[tuple[str, str], Sequence[Span]]
"""(Node, device) -> its executions in order; more than one in a loop."""


def _executions(kernels: Iterable[Span]) -> _Executions:
    found: dict[tuple[str, str], list[Span]] = {}
    for span in in_order(list(kernels)):
        found.setdefault((str(span.detail["node"]), span.device), []).append(span)
    return found


def _clock_shifts(
    executions: _Executions, arrivals: Iterable[_Arrival], edges: Mapping[_Key, _Edge]
) -> dict[str, int]:
    """How far each task's clock is moved forward, so that nothing arrives before it was made."""
    # Sender and receiver -> how much further than the sender's the receiver's clock must be moved.
    late: dict[tuple[str, str], int] = {}
    for arrival in arrivals:
        _, source, target = arrival.key
        made = executions.get((edges[arrival.key].producer, source), ())
        pair = task_of(source), task_of(target)
        if made and pair[0] != pair[1]:
            early_ns = made[0].finish_ns - (arrival.finish_ns + _NS_PER_US)
            late[pair] = max(late.get(pair, early_ns), early_ns)
    shifts = {task: 0 for pair in late for task in pair}
    for _ in shifts:
        for (source, target), ns in late.items():
            shifts[target] = max(shifts[target], shifts[source] + ns)
    return {task: ns for task, ns in shifts.items() if ns > 0}


def _moves(
    edges: Mapping[_Key, _Edge], arrivals: Iterable[_Arrival], executions: _Executions
) -> Iterator[TensorMove]:
    by_key: dict[_Key, list[_Arrival | None]] = {}
    for arrival in arrivals:
        by_key.setdefault(arrival.key, []).append(arrival)
    for key, edge in edges.items():
        for one in by_key.get(key, [None]):
            yield _move(key, edge, one, executions)


def _move(key: _Key, edge: _Edge, arrival: _Arrival | None, executions: _Executions) -> TensorMove:
    """The last execution that can have made the tensor, and the first ones that can read it."""
    _, source, target = key
    made = executions.get((edge.producer, source), ())
    if arrival is None:
        producer = made[0] if made else None
    else:
        limit_ns = arrival.finish_ns + _NS_PER_US
        producer = next((s for s in reversed(made) if s.finish_ns <= limit_ns), None)
    span = None if arrival is None else _in_transit(edge, arrival, producer)
    ready = span or producer
    readers = [
        next((s for s in executions.get((reader, target), ()) if s.start_ns >= ready_ns), None)
        for reader in edge.readers
        for ready_ns in ([ready.finish_ns] if ready is not None else [])
    ]
    return TensorMove(source, target, span, producer, tuple(s for s in readers if s is not None))


def _in_transit(edge: _Edge, arrival: _Arrival, producer: Span | None) -> Span:
    """From when it was sent; the record's start is rounded down, and partly the sender's clock."""
    made_ns = arrival.start_ns if producer is None else producer.finish_ns
    start_ns = max(arrival.start_ns, made_ns)
    return Span(
        edge.producer if producer is None else producer.name,
        arrival.key[2],
        start_ns,
        max(start_ns, arrival.finish_ns),
        {"bytes": arrival.nbytes, "tensor": arrival.key[0]},
    )


def _moved(span: Span, ns: int) -> Span:
    return replace(span, start_ns=span.start_ns + ns, finish_ns=span.finish_ns + ns)


def _arrived(arrival: _Arrival, ns: int) -> _Arrival:
    return replace(arrival, start_ns=arrival.start_ns + ns, finish_ns=arrival.finish_ns + ns)

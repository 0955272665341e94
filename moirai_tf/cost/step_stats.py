"""Reads TensorFlow's step statistics: how long every kernel ran on every device of a step.

Statistics are kept by the executor of each worker, so they know the device, miss no kernel however
cheap, and belong to exactly one step. A remote profile (`tf.profiler.experimental.client`) covers a
window of time on one worker, knows no steps, and loses kernels that the executor takes for cheap.
So statistics are what times of operators on servers are taken from.

A GPU's executor only launches kernels, which then run on a stream: its statistics are times of
launches, and those of the kernels are records of their own (`runtime/gpu_records.py`).

Grappler and oneDNN rewrite the graph before it runs, so a kernel's name has to lead back to an
operator. A fused kernel keeps the name of one member, an optimizer puts its own name into the path
and a prefix before the last part, and a lowered loop or branch puts its body under the name of its
operator.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moirai_tf.cost.xplane import UNKNOWN
from moirai_tf.graph.graph import Graph
from moirai_tf.runtime.gpu_records import GpuRecord, gpu_copies, gpu_index, gpu_kernels, is_record

_NO_KERNELS = frozenset({"_Send", "_Recv", "_HostSend", "_HostRecv"})
"""Nodes that wait or hand over: transfers, which are measured by themselves."""
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
"""Nodes that last as long as what they run, which has entries of its own."""


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """What one device did in one step."""

    kernel_ns: dict[int, int]
    """Operator (or `UNKNOWN`) -> time in its kernels."""
    kernels: dict[int, int]
    """Operator (or `UNKNOWN`) -> how many of its kernels ran."""
    wait_ns: dict[int, int] = field(default_factory=dict)
    """Operator -> how long a GPU had nothing to do before its kernels, or took to run on the host;
    empty for a CPU."""
    copied_ns: int = 0
    """Time of all copies from and to a GPU; 0 for a CPU."""

    @property
    def stream_ns(self) -> int:
        """Time of all kernels on a GPU's stream; 0 for a CPU, and if nothing was recorded."""
        return self.total_ns if self.wait_ns else 0

    @property
    def total_ns(self) -> int:
        """Time in all kernels."""
        return sum(self.kernel_ns.values())


def ops_of(metadata: Any) -> dict[str, str]:
    """Node -> op, from the partition graphs of a step."""
    return {node.name: node.op for graph in metadata.partition_graphs for node in graph.node}


def device_steps(
    metadata: Any, owner: Callable[[str], int | None], ops: Mapping[str, str] | None = None
) -> dict[str, DeviceStep]:
    """Device -> what it did, from the `RunMetadata` of one traced step.

    A worker has a thread more than it computes with, since the same threads answer other workers,
    so two kernels may run at once. They share the device, and each is given its share of the time.

    Args:
      metadata: with step statistics.
      owner: operator of a kernel's name, or None.
      ops: of a step with partition graphs (see `ops_of`); None if this is one.
    """
    ops = ops_of(metadata) if ops is None else ops
    found: dict[str, DeviceStep] = {}
    for stats in metadata.step_stats.dev_stats:
        if is_record(stats.device):
            continue
        spans: list[tuple[int, int, int]] = []
        for node in stats.node_stats:
            name = node.node_name.partition(":")[0]
            op = ops.get(name)
            known = owner(name)
            if op in _NO_KERNELS or (op in _CALLS and known is None) or name.startswith("_"):
                continue
            start_ns = node.all_start_nanos + node.op_start_rel_nanos
            end_ns = node.all_start_nanos + node.op_end_rel_nanos
            key = UNKNOWN if known is None or op is None else known
            spans.append((start_ns, max(start_ns, end_ns), key))
        step = found.setdefault(stats.device, DeviceStep({}, {}))
        for (_, _, key), share_ns in zip(spans, shared_ns(spans), strict=True):
            step.kernel_ns[key] = step.kernel_ns.get(key, 0) + round(share_ns)
            step.kernels[key] = step.kernels.get(key, 0) + 1
    return {
        device: _with_streams(device, step, metadata.step_stats, owner)
        for device, step in found.items()
    }


def _with_streams(
    device: str, launched: DeviceStep, step_stats: Any, owner: Callable[[str], int | None]
) -> DeviceStep:
    """What a GPU did, from what its executor launched and what ran on its streams."""
    if gpu_index(device) is None:
        return launched
    ran = [(record, _owner_of(record, owner)) for record in gpu_kernels(step_stats, device)]
    kernel_ns: dict[int, int] = {}
    kernels: dict[int, int] = {}
    on_stream = {key for _, key in ran}
    wait_ns = {key: ns for key, ns in launched.kernel_ns.items() if key not in on_stream}
    idle_ns = 0
    for record, key in sorted(ran, key=lambda known: known[0].start_ns):
        kernel_ns[key] = kernel_ns.get(key, 0) + record.time_ns
        kernels[key] = kernels.get(key, 0) + 1
        wait_ns[key] = wait_ns.get(key, 0) + (max(0, record.start_ns - idle_ns) if idle_ns else 0)
        idle_ns = max(idle_ns, record.start_ns + record.time_ns)
    copied_ns = sum(record.time_ns for record in gpu_copies(step_stats, device))
    return DeviceStep(kernel_ns, kernels, wait_ns, copied_ns)


def _owner_of(record: GpuRecord, owner: Callable[[str], int | None]) -> int:
    known = owner(record.operator)
    return UNKNOWN if known is None else known


def shared_ns(spans: Sequence[tuple[int, int, int]]) -> list[float]:
    """What each span has of a device that is shared equally by the spans of every moment.

    Args:
      spans: (start, end, anything), in nanoseconds.
    """
    moments = sorted({moment for start, end, _ in spans for moment in (start, end)})
    number = {moment: i for i, moment in enumerate(moments)}
    change = [0] * (len(moments) + 1)
    for start, end, _ in spans:
        change[number[start]] += 1
        change[number[end]] -= 1
    portions = [0.0]
    active = 0
    for i, (moment, later) in enumerate(itertools.pairwise(moments)):
        active += change[i]
        portions.append(portions[-1] + (later - moment) / max(1, active))
    return [portions[number[end]] - portions[number[start]] for start, end, _ in spans]


@dataclass(frozen=True, slots=True)
class Allocated:
    """Bytes that a device's allocator gave out in one step."""

    peak_bytes: int
    """The most at one time: weights, tensors and scratch space."""
    scratch_bytes: int
    """The most that one kernel took and gave back before it was done."""


def allocated(metadata: Any, device: str) -> Allocated:
    """What the runtime allocated on a device in a traced step; zeros if it kept no record."""
    found = [
        (memory.allocator_bytes_in_use, memory.peak_bytes - memory.live_bytes)
        for stats in metadata.step_stats.dev_stats
        if stats.device == device
        for node in stats.node_stats
        for memory in node.memory
    ]
    return Allocated(
        max((in_use for in_use, _ in found), default=0),
        max((scratch for _, scratch in found), default=0),
    )


_OPTIMIZERS = re.compile(
    r"(?:^|(?<=/))(?:ArithmeticOptimizer|ConstantFolding|ConstantFoldingCtrl|DebugStripper|"
    r"LoopOptimizer|PinToHostOptimizer|RemapperOptimizer|CommonSubgraphElimination)/"
)
_BOUNDARY = "Func/"
"""What TensorFlow puts before the names of a function's inputs and outputs that it inlines."""
_LAYOUT_SUFFIX = re.compile(r"-\d+-[^/]*$|-folded[^/]*$")


class KernelNames:
    """Finds the operator that a kernel's name leads to."""

    def __init__(self, graph: Graph) -> None:
        self._index: Mapping[str, int] = graph.index

    def owner(self, kernel: str) -> int | None:
        """Index of the operator, or None if the name leads to none.

        The name itself wins, then the name without the optimizers' marks, then the longest path
        above it: `call/while/body/_17/while/MatMul` belongs to the operator `call/while`.
        """
        kernel = kernel.removeprefix(_BOUNDARY)
        for name in _spellings(kernel):
            if name in self._index:
                return self._index[name]
        path = _OPTIMIZERS.sub("", kernel)
        while path:
            path = path.rpartition("/")[0]
            if path in self._index:
                return self._index[path]
        return None


def _spellings(kernel: str) -> Iterator[str]:
    """The name, without optimizers in its path, and then with ever less before its last part.

    `a/ArithmeticOptimizer/AddOpsRewrite_Leaf_1_add_2` may be about `a/Leaf_1_add_2`, `a/1_add_2`,
    `a/add_2` or `a/2`, the longest first.
    """
    yield kernel
    plain = _LAYOUT_SUFFIX.sub("", _OPTIMIZERS.sub("", kernel))
    if plain == kernel:
        return
    yield plain
    scope, slash, last = plain.rpartition("/")
    while "_" in last:
        last = last.partition("_")[2]
        yield f"{scope}{slash}{last}"

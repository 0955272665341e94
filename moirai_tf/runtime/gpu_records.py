"""What step statistics say of a GPU's streams: the one place that knows how CUPTI's records look.

A step that is traced (`RunOptions.FULL_TRACE`) carries, beside the executor's own statistics of
every device, records of what ran on the streams of each GPU, under names that are no devices:

    /device:GPU:0/stream:all    every kernel, once
    /device:GPU:0/stream:7      the kernels of one stream, again
    /device:GPU:0/memcpy        every copy, once
    /device:GPU:0/sync          host threads that waited

Their `node_name` is the TensorFlow operator as `name:op`, or a kernel's own name if nothing told
which operator launched it; only the `*_micros` fields are set. A copy's label begins with its kind
(`MemcpyH2D`, `MemcpyD2H`, `MemcpyD2D`, `MemcpyP2P`). The number is that of the GPU in its process;
the process is not named, but every process puts its records right before its devices.

Source: TensorFlow's tensorflow/core/profiler/convert/xplane_to_step_stats.cc, and for their place
distributed_runtime/worker.cc (`CollectData`, then `Finalize`). So far this was seen with emulated
GPUs only; `python -m benchmarks.gpu_check` compares it with real ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moirai_tf.cluster.cluster import task_of

_RECORD = re.compile(r"/device:GPU:(?P<index>\d+)/(?P<kind>stream:all|stream:.*|memcpy|sync)")
_GPU = re.compile(r".*/device:GPU:(?P<index>\d+)")
_KERNELS, _COPIES = "stream:all", "memcpy"
_NS_PER_US = 1000


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """A kernel or a copy that ran on a stream of a GPU."""

    operator: str
    """Name of the TensorFlow operator that launched it, as far as the record knows."""
    kind: str
    """`MemcpyH2D` and the like for a copy, empty for a kernel."""
    start_ns: int
    """On the clock of the machine's statistics; a multiple of a microsecond."""
    time_ns: int
    """How long it took. The record is cut to whole microseconds; half of one is added again."""


def gpu_index(device: str) -> int | None:
    """The number of a GPU in its process; None for any other device, and for records."""
    found = _GPU.fullmatch(device)
    return None if found is None else int(found["index"])


def is_record(device: str) -> bool:
    """Whether the name in step statistics is that of a GPU's records, not of a device."""
    return _RECORD.search(device) is not None


def gpu_kernels(step_stats: Any, device: str) -> list[GpuRecord]:
    """Every kernel of a GPU, which is named as in the statistics; none of another device."""
    return list(_records(step_stats, device, _KERNELS))


def gpu_copies(step_stats: Any, device: str) -> list[GpuRecord]:
    """Every copy from, to or within a GPU."""
    return list(_records(step_stats, device, _COPIES))


def _records(step_stats: Any, device: str, wanted: str) -> Iterator[GpuRecord]:
    index, task, next_device = gpu_index(device), task_of(device), device
    for stats in reversed(step_stats.dev_stats):
        found = _RECORD.search(stats.device)
        if found is None:
            next_device = stats.device
            continue
        if int(found["index"]) != index or found["kind"] != wanted:
            continue
        if task_of(next_device) != task:
            continue
        for node in stats.node_stats:
            yield GpuRecord(
                operator=node.node_name.partition(":")[0],
                kind=node.timeline_label.partition(" ")[0] if wanted == _COPIES else "",
                start_ns=node.all_start_micros * _NS_PER_US,
                time_ns=node.all_end_rel_micros * _NS_PER_US + _NS_PER_US // 2,
            )

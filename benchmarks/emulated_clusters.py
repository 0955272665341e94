"""The hosts full of emulated GPUs that benchmarks measure on."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

from moirai_tf.cluster import Cluster, read_cluster

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_FILES = {
    "gpu": "emulated_cpu_gpu.yaml",
    "gpus": "emulated_four_gpus.yaml",
    "servers": "emulated_two_servers.yaml",
}


_MEMORY_BYTES = 4_000_000_000
"""Of every GPU unless a model is to fit on none: room for all outputs of a step at once."""


def emulated_cluster(kind: str, gpu_memory_bytes: int | None = None) -> Cluster:
    """A host or two with emulated GPUs.

    Args:
      kind: `gpu` (one), `gpus` (four unequal ones), `servers` (two servers with two each), or
        `equal_gpus` (two alike).
      gpu_memory_bytes: capacity of every GPU; None for plenty.
    """
    cluster = _equal() if kind == "equal_gpus" else read_cluster(_CONFIGS / _FILES[kind])
    capacity = _MEMORY_BYTES if gpu_memory_bytes is None else gpu_memory_bytes
    devices = (
        replace(device, memory_bytes=capacity) if device.type == "GPU" else device
        for device in cluster.devices
    )
    return replace(cluster, devices=tuple(devices))


def _equal() -> Cluster:
    """The first GPU of four, twice, as far apart as it is from the second one."""
    four = read_cluster(_CONFIGS / _FILES["gpus"])
    host, gpu, other = four.devices[:3]
    devices = (host, gpu, replace(gpu, name=other.name))
    names = [device.name for device in devices]
    links = tuple(link for link in four.links if (link.source, link.target) in
                  set(permutations(names, 2)))  # fmt: skip
    return Cluster("two equal emulated GPUs", devices, links)

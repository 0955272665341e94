"""What a process needs in its environment to have the GPUs of a cluster's task."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from laboratory.emulated_gpu.plugin import built_plugin
from moirai_tf.cluster import Cluster, Device
from moirai_tf.errors import MoiraiError

LAUNCH_NS = 5_000
"""Of a GPU that does not say its own: what CUDA takes for a kernel that does nothing."""
HOST = -1
"""Number of the host in the plugin's description, where GPUs have theirs."""
MAX_GPUS = 64
_THREADS = 16

_LANES: Mapping[str, int] = {
    "6.0": 64, "6.1": 128, "6.2": 128, "7.0": 64, "7.2": 64, "7.5": 64, "8.0": 64, "8.6": 128,
    "8.7": 128, "8.9": 128, "9.0": 128, "10.0": 128, "12.0": 128,
}  # fmt: skip
"""Float operations per cycle of a multiprocessor, by compute capability: CUDA C++ Programming
Guide, "Throughput of Native Arithmetic Instructions"."""


def environment(
    cluster: Cluster, task: str = "", *, cuda_properties: bool = False
) -> dict[str, str]:
    """Variables under which a new process with TensorFlow has the GPUs of a task of the cluster.

    The plugin is compiled if it is not there yet. A process that has TensorFlow is too late.

    Args:
      cluster: what is emulated: models, memory, speeds and links of its GPUs. Kernels take the
        launch overhead + the larger of floating-point operations / peak and bytes / bandwidth.
      task: as in the names of its devices (`/job:worker/replica:0/task:1`); empty for this machine.
      cuda_properties: whether Grappler can ask CUDA what the GPUs are, as where they are real. It
        then optimizes layouts for them (NCHW); otherwise it takes them for unknown devices.

    Raises:
      MoiraiError: the task has no GPU or no CPU, a GPU lacks a property that its times follow from,
        or the plugin cannot be compiled.
    """
    plugin = built_plugin()
    libraries = [str(plugin.parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        **({"LD_LIBRARY_PATH": ":".join(libraries)} if cuda_properties else {}),
        "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": str(plugin),
        "CUDA_VISIBLE_DEVICES": "-1",  # a real GPU would be there beside them
        # At the end of a step a thread waits for each GPU. By default there are as many threads as
        # cores, which hosts with several GPUs have more of than whoever emulates them.
        "TF_NUM_INTEROP_THREADS": str(_THREADS),
        "MOIRAI_EMULATED_GPUS": describe(cluster, task),
    }


def describe(cluster: Cluster, task: str = "") -> str:
    """The text that the plugin reads: one line for every GPU, one for every directed link."""
    gpus = [device for device in cluster.devices if device.type == "GPU" and device.task == task]
    cpus = [device for device in cluster.devices if device.type == "CPU" and device.task == task]
    if not gpus or not cpus:
        where = f"task {task}" if task else "this machine"
        raise _fault(f"{where} has no {'GPU' if not gpus else 'CPU'} in cluster {cluster.name!r}")
    gpus.sort(key=_number)
    if [_number(gpu) for gpu in gpus] != list(range(len(gpus))) or len(gpus) > MAX_GPUS:
        raise _fault(f"the GPUs of {task or 'this machine'} are not numbered from 0 to at most 63")
    lines = [f"gpu {number} {_properties(gpu)}" for number, gpu in enumerate(gpus)]
    return "\n".join([*lines, *_links(cluster, [cpus[0], *gpus])])


def peak_flops_per_s(device: Device) -> int:
    """2 operations x lanes of a multiprocessor x multiprocessors x frequency.

    Raises:
      MoiraiError: the device does not say one of them, or has an unknown architecture.
    """
    lanes = _LANES.get(device.architecture)
    if lanes is None or device.num_cores is None or device.frequency_mhz is None:
        raise _fault(
            f"{device.name} needs num_cores, frequency_mhz and an architecture of "
            f"{', '.join(_LANES)}"
        )
    return 2 * lanes * device.num_cores * device.frequency_mhz * 10**6


def _properties(gpu: Device) -> str:
    if gpu.memory_bytes is None or gpu.memory_bytes_per_s is None:
        raise _fault(f"{gpu.name} needs memory and memory_bandwidth")
    launch_ns = LAUNCH_NS if gpu.launch_ns is None else gpu.launch_ns
    model = re.sub(r"\s+", " ", gpu.model).strip() or "Emulated GPU"
    return (
        f"{gpu.memory_bytes} {gpu.num_cores} {gpu.frequency_mhz} {peak_flops_per_s(gpu)} "
        f"{gpu.memory_bytes_per_s} {launch_ns} {gpu.speed!r} {gpu.architecture} {model}"
    )


def _links(cluster: Cluster, devices: list[Device]) -> Iterator[str]:
    numbers = {device.name: number for number, device in enumerate(devices, start=HOST)}
    for link in cluster.links:
        if link.source in numbers and link.target in numbers:
            yield (
                f"link {numbers[link.source]} {numbers[link.target]} {link.latency_ns} "
                f"{link.bandwidth_bytes_per_s}"
            )


def _number(device: Device) -> int:
    return int(device.name.rpartition(":")[2])


def _fault(what: str) -> MoiraiError:
    return MoiraiError(
        f"the GPUs cannot be emulated: {what}",
        why="what is emulated is what the cluster file describes, and nothing else",
        fix="complete the cluster file; configs/emulated_four_gpus.yaml is an example",
    )

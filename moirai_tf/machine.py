"""Describes this machine as a cluster: CPU, GPUs with all that planning needs, and links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations

from tensorflow.core.protobuf import device_properties_pb2
from tensorflow.python.framework.errors_impl import OpError
from tensorflow.python.grappler import cluster as grappler_cluster

from moirai_tf.cluster import Cluster, Device, Link
from moirai_tf.cost.link_times import measured_links
from moirai_tf.runtime.child import Child
from moirai_tf.runtime.devices import FoundDevice, local_devices

_PCIE_LATENCY_NS = 20_000
_PCIE_BYTES_PER_S = 12_000_000_000
"""What links are taken for until they are measured."""

_CHILD = Child(
    "describing this machine",
    timeout_s=600.0,
    longer="look whether another process uses its GPUs; or write a cluster file by hand",
)


def this_machine(*, links: bool = False) -> Cluster:
    """The devices of this machine as TensorFlow finds them, as a cluster.

    GPUs are started in a process of its own, which leaves their memory to this one. It sees what
    the environment shows (`CUDA_VISIBLE_DEVICES`).

    Args:
      links: whether to measure the links too; by default they are like PCIe's, to be measured when
        a model is profiled.

    Raises:
      MoiraiError: the GPUs cannot be started, or `tf.config` hides or divides one.
    """
    if any(device.type == "GPU" for device in local_devices()):
        return _CHILD.call(_described, links)
    return _described(links)


def _described(links: bool) -> Cluster:
    found = local_devices()
    if any(device.type == "GPU" for device in found):
        found = local_devices(memory=True)
    properties = _properties() if any(device.type == "GPU" for device in found) else {}
    devices = tuple(_device(device, properties) for device in found)
    cluster = Cluster(
        "this machine",
        devices,
        tuple(
            Link(one.name, two.name, _PCIE_LATENCY_NS, _PCIE_BYTES_PER_S)
            for one, two in permutations(devices, 2)
        ),
    )
    if not links:
        return cluster
    return replace(cluster, links=tuple(measured.link for measured in measured_links(cluster)))


def _device(
    found: FoundDevice, properties: Mapping[str, device_properties_pb2.DeviceProperties]
) -> Device:
    known = properties.get(found.name, device_properties_pb2.DeviceProperties())
    return Device(
        name=found.name,
        type=found.type,
        memory_bytes=found.memory_bytes,
        frequency_mhz=known.frequency or None,
        num_cores=known.num_cores or None,
        memory_bytes_per_s=1000 * known.bandwidth or None,
        architecture=found.architecture,
        model=found.model,
    )


def _properties() -> dict[str, device_properties_pb2.DeviceProperties]:
    """GPU -> what Grappler finds out about it; nothing where it does not know the vendor."""
    try:
        cluster = grappler_cluster.Cluster()
    except OpError:
        return {}
    try:
        devices = cluster.ListDevices()
    finally:
        cluster.Shutdown()
    return {
        device.name.removeprefix("/job:localhost/replica:0/task:0"): device.properties
        for device in devices
        if device.properties.type == "GPU"
    }

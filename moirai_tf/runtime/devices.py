"""Which devices there are, and whether they are those that a plan was made for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import tensorflow as tf
from tensorflow.core.framework import device_attributes_pb2
from tensorflow.python.client import device_lib

from moirai_tf.cluster import DEVICE_TYPES, Cluster, Device
from moirai_tf.errors import MoiraiError
from moirai_tf.model.load import logical_cpus
from moirai_tf.rewrite.plan import Plan, PlanDevice

_GET_STATUS = "/tensorflow.WorkerService/GetStatus"
_DESCRIPTION = re.compile(
    r"\bname: (?P<model>.*?), pci bus id: .*?(?:, compute capability: (?P<architecture>\S+))?$"
)
"""`physical_device_desc` of a GPU."""


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """A device that TensorFlow has, in this process or in a server."""

    name: str
    """TensorFlow's name; `/device:GPU:0` in this process."""
    type: str
    model: str = ""
    """A GPU's name, as its driver tells it; empty of CPUs."""
    architecture: str = ""
    """A GPU's compute capability, such as `7.5`; empty if it has none."""
    memory_bytes: int | None = None
    """What TensorFlow may take of a GPU's memory; None if it was not asked, and of CPUs."""
    incarnation: int = 0
    """Random number that a server gave the device when it started; 0 if it was not asked."""


def has_whole_gpus() -> bool:
    """Whether `tf.config` neither hides nor divides a GPU of this process.

    Sessions, and other processes, do not know what it does to GPUs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    visible = tf.config.get_visible_devices("GPU")
    return gpus == visible and not any(map(tf.config.get_logical_device_configuration, gpus))


def local_devices(*, memory: bool = False) -> tuple[FoundDevice, ...]:
    """The logical devices of this process, CPUs first.

    Args:
      memory: whether to read how much memory TensorFlow leaves of every GPU. That starts the GPUs
        and takes their memory, so it is for processes that end soon. Without it TensorFlow is not
        started, and logical devices can still be configured.
    """
    if memory:
        return tuple(_described(device) for device in device_lib.list_local_devices())
    return tuple(device for kind in DEVICE_TYPES for device in _configured(kind))


def server_devices(address: str, timeout_s: float) -> tuple[FoundDevice, ...]:
    """The devices of the TensorFlow server at an address, which no other server is asked for.

    Raises:
      grpc.RpcError: there is none, or it does not answer in time.
    """
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        answer = channel.unary_unary(_GET_STATUS)(b"", timeout=timeout_s)
    # TensorFlow does not ship the message's Python class. Its only field is a list of messages, and
    # that is encoded as a list of bytes.
    devices = tf.train.BytesList.FromString(answer).value
    parse = device_attributes_pb2.DeviceAttributes.FromString
    return tuple(_described(parse(device)) for device in devices)


def check_plan_devices(plan: Plan, found: Sequence[FoundDevice], where: str) -> None:
    """Refuses to run a plan without the devices that it uses, or on GPUs of other models.

    Args:
      plan: the plan.
      found: the devices that there are.
      where: whose they are, such as `this process`.

    Raises:
      MoiraiError: naming the device.
    """
    there = {full_name(device.name) for device in found}
    for device in plan.used:
        if full_name(device.name) not in there:
            raise MoiraiError(
                f"{where} has no device {device.name!r}, where the plan has operators; it has "
                f"{', '.join(d.name for d in found) or 'none'}",
                why="TensorFlow runs an operator on a missing device elsewhere, without an error",
                fix=_way_out(plan, device),
            )
    check_models(plan, found, where)


def check_models(plan: Plan, found: Sequence[FoundDevice], where: str) -> None:
    """Refuses GPUs of other models alone; devices that are missing or say nothing pass."""
    models = {full_name(device.name): device.model for device in found}
    for device in plan.used:
        model = models.get(full_name(device.name), "")
        if device.model and model and device.model != model:
            raise MoiraiError(
                f"{device.name!r} of {where} is {model!r}, but the plan was made for "
                f"{device.model!r}",
                why="another GPU has other times and another memory, so another plan may be best "
                "or the only one that fits",
                fix="optimise the model for this GPU, or run it where the plan's GPU is",
            )


def check_plan_here(plan: Plan) -> None:
    """The same for the devices of this process; raises as `check_plan_devices`."""
    found = list(local_devices())
    if any(_elsewhere(device.name) for device in plan.used):
        # It may be connected to a cluster. Listing starts TensorFlow, as loading does.
        logical = tf.config.list_logical_devices()
        found += [FoundDevice(d.name, d.device_type) for d in logical if _elsewhere(d.name)]
    check_plan_devices(plan, found, "this process")


def full_name(name: str) -> str:
    """TensorFlow's full name of a device; one without a job is in this process."""
    spec = tf.DeviceSpec.from_string(name)
    if spec.job is None:
        spec = spec.replace(job="localhost", replica=0, task=0)
    return str(spec.to_string())


def _elsewhere(name: str) -> bool:
    return not full_name(name).startswith("/job:localhost/")


def _way_out(plan: Plan, device: PlanDevice) -> str:
    if _elsewhere(device.name):
        return "run it on its cluster: moirai_tf.connect(placed, cluster)"
    if device.type == "CPU":
        count = logical_cpus(used.name for used in plan.used)
        return f"call moirai_tf.configure_logical_cpus({count}) before TensorFlow is used"
    return (
        "run it where that GPU is and visible (CUDA_VISIBLE_DEVICES), rename the plan's device "
        "(moirai_remap), or optimise the model for this machine"
    )


def _configured(kind: str) -> Iterator[FoundDevice]:
    """Logical devices, in the order in which TensorFlow numbers them."""
    index = 0
    visible = tf.config.get_visible_devices(kind)
    for physical in tf.config.list_physical_devices(kind):
        if physical not in visible:
            continue
        details = tf.config.experimental.get_device_details(physical) if kind == "GPU" else {}
        capability = details.get("compute_capability", ())
        for _ in tf.config.get_logical_device_configuration(physical) or [None]:
            yield FoundDevice(
                f"/device:{kind}:{index}",
                kind,
                model=details.get("device_name", ""),
                architecture=".".join(map(str, capability)),
            )
            index += 1


def _described(device: Any) -> FoundDevice:
    """From TensorFlow's `DeviceAttributes`."""
    gpu = device.device_type == "GPU"
    said = _DESCRIPTION.search(device.physical_device_desc) if gpu else None
    return FoundDevice(
        device.name,
        device.device_type,
        model=said["model"] if said else "",
        architecture=(said["architecture"] or "") if said else "",
        memory_bytes=device.memory_limit if gpu else None,
        incarnation=device.incarnation,
    )


def has_gpus_here(cluster: Cluster) -> bool:
    """Whether a cluster has GPUs without a server, and all of them are in this process."""
    wanted = {d.name: d.model for d in cluster.devices if d.type == "GPU" and not d.task}
    here = {d.name: d.model for d in local_devices() if d.type == "GPU"}
    return bool(wanted) and all(
        name in here and model in ("", here[name]) for name, model in wanted.items()
    )


def gpu_models(cluster: Cluster, found: Sequence[FoundDevice]) -> dict[str, str]:
    """GPU of a cluster -> its model, as it says itself.

    Args:
      cluster: the devices.
      found: those that its servers have; none if it is this process, whose GPUs are then started.

    Raises:
      MoiraiError: one is another model, or has less memory, than the cluster says.
    """
    gpus = [device for device in cluster.devices if device.type == "GPU"]
    if not gpus:
        return {}
    by_name = {full_name(d.name): d for d in found or local_devices(memory=True)}
    models = {}
    for device in gpus:
        there = by_name.get(full_name(device.name))
        if there is not None:
            _check_described(device, there)
        models[device.name] = device.model if there is None else there.model
    return models


def _check_described(device: Device, there: FoundDevice) -> None:
    if device.model and there.model and device.model != there.model:
        raise MoiraiError(
            f"the cluster says that {device.name!r} is {device.model!r}, but it is {there.model!r}",
            why="operators take another time on another GPU",
            fix="correct the cluster file; moirai_cluster --describe writes one for this machine",
        )
    if (device.memory_bytes or 0) > (there.memory_bytes or math.inf):
        raise MoiraiError(
            f"the cluster says that {device.name!r} has {device.memory_bytes} bytes, but "
            f"TensorFlow may use {there.memory_bytes} of it",
            why="a placement that fills a GPU beyond that fails when it is loaded or run",
            fix="give it that memory in the cluster file, or end what else uses the GPU",
        )

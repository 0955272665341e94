"""What servers say of their machines, and whether they are those that their master talks to.

The master resolves names of tasks by its own list of addresses, which it got when it was started. A
cluster file that says something else is not noticed: operators run, but on other machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import grpc
import tensorflow as tf

from moirai_tf.cluster import Cluster
from moirai_tf.errors import MoiraiError
from moirai_tf.runtime.devices import FoundDevice, gpu_models, server_devices
from moirai_tf.runtime.session import PROBE_S, ClusterSession, missing_worker, open_session


def check_identity(opened: ClusterSession) -> tuple[FoundDevice, ...]:
    """Compares what every server says of itself with what the master says of it.

    The runtime gives every device of a server a random number, its incarnation, when it starts.

    Returns:
      The devices of all servers; none if the cluster is this process.

    Raises:
      MoiraiError: a server is another task than the cluster says, or not the one that the master
        knows under that name; or it does not answer.
    """
    with opened.named_failures():
        seen = {d.name: d.incarnation % 2**64 for d in opened.session.list_devices()}
    devices = worker_devices(opened.cluster)
    for task, address in opened.cluster.addresses.items():
        found = devices[task]
        if not all(device.name.startswith(f"{task}/") for device in found):
            names = ", ".join(device.name for device in found)
            raise _another(task, address, f"says that it has {names}")
        if any(seen.get(device.name) != device.incarnation for device in found):
            master = opened.cluster.device(opened.cluster.client).task
            raise _another(task, address, f"is not the server that {master} knows as {task}")
    return tuple(device for found in devices.values() for device in found)


def worker_devices(cluster: Cluster) -> dict[str, tuple[FoundDevice, ...]]:
    """Task -> devices of the server at its address; all are asked at the same time.

    Raises:
      MoiraiError: a server does not answer within `PROBE_S` seconds; naming it.
    """
    with ThreadPoolExecutor(max_workers=max(1, len(cluster.addresses))) as pool:
        answers = dict(zip(cluster.addresses, pool.map(_asked, cluster.addresses.values()),
                           strict=True))  # fmt: skip
    silent = {task: cluster.addresses[task] for task, found in answers.items() if found is None}
    if silent:
        why = "nobody can tell whether it is the right one, so nothing may run on it"
        raise missing_worker(silent, why)
    return {task: found for task, found in answers.items() if found is not None}


def _asked(address: str) -> tuple[FoundDevice, ...] | None:
    """The devices of the server at an address; None if it does not answer."""
    try:
        return server_devices(address, PROBE_S)
    except grpc.RpcError:
        return None


def _another(task: str, address: str, what: str) -> MoiraiError:
    return MoiraiError(
        f"worker {task} at {address} is another one: the server there {what}",
        why="operators would run on other machines than the plan was made for, without an error",
        fix="correct the addresses in the cluster file: every server must have been started with "
        "the same ones, in the same order",
    )


_MAX_LINES = 4096


def worker_facts(cluster: Cluster) -> dict[str, dict[str, str]]:
    """Device -> model of its processor, the cores it may use, and memory of its machine.

    Of a GPU also its model. What cannot be read (another system than Linux) is left out.

    Raises:
      MoiraiError: a worker is missing or dies, or is another one than the cluster says, or a GPU
        is another one or has less memory.
    """
    with open_session(cluster) as opened:
        models = gpu_models(cluster, check_identity(opened))
        gpus = {name: {"gpu": model} for name, model in models.items() if model}
        by_task = {
            task: _facts(opened, task) for task in dict.fromkeys(d.task for d in cluster.devices)
        }
    return {d.name: {**by_task[d.task], **gpus.get(d.name, {})} for d in cluster.devices}


def _facts(opened: ClusterSession, task: str) -> dict[str, str]:
    processor = _fields(opened, task, "/proc/cpuinfo")
    status = _fields(opened, task, "/proc/self/status")
    memory = _fields(opened, task, "/proc/meminfo")
    wanted = {
        "processor": processor.get("model name"),
        "cores": status.get("Cpus_allowed_list"),
        "memory": memory.get("MemTotal"),
    }
    return {name: value for name, value in wanted.items() if value}


def _fields(opened: ClusterSession, task: str, path: str) -> Mapping[str, str]:
    """`key: value` lines of a file of the worker's machine, the first of each key."""
    found: dict[str, str] = {}
    for line in _lines(opened, task, path):
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _lines(opened: ClusterSession, task: str, path: str) -> list[str]:
    """Lines of a file; a line reader is used since files of /proc have no size."""
    with tf.device(f"{task}/device:CPU:0"):
        files = tf.raw_ops.FIFOQueueV2(component_types=[tf.string], capacity=1)
        fill = tf.raw_ops.QueueEnqueueV2(handle=files, components=[tf.constant(path)])
        reader = tf.raw_ops.TextLineReaderV2()
        read = tf.raw_ops.ReaderReadUpToV2(
            reader_handle=reader, queue_handle=files, num_records=_MAX_LINES
        )
    try:
        opened.run(fill.name)
        values, _ = opened.run(read.values)
    except tf.errors.NotFoundError:
        return []
    return [value.decode(errors="replace") for value in values]

"""What a TensorFlow server says of the machine it runs on, read by its own operators."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from moirai_tf.cluster import Cluster
from moirai_tf.runtime.devices import gpu_models
from moirai_tf.runtime.identity import check_identity
from moirai_tf.runtime.session import ClusterSession, open_session

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

"""TensorFlow servers on this machine whose GPUs are emulated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from laboratory.emulated_gpu.environment import environment
from moirai_tf.bench.local_cluster import guarded, reserved_port, start_workers
from moirai_tf.cluster import Cluster
from moirai_tf.errors import MoiraiError

_THREADS = 2
_JOB = "/job:worker/replica:0/task:"


@contextlib.contextmanager
def servers(
    cluster: Cluster, *, cuda_properties: bool = False, startup_timeout_s: float = 120.0
) -> Iterator[Cluster]:
    """Starts one server for every task of a cluster; gives the cluster with their addresses.

    Servers are processes of this machine, whose cores they share; their GPUs are those of the
    cluster's file. They are gone after the block, or when this process dies, by whatever signal.

    Args:
      cluster: its tasks are those of the job `worker`, numbered from 0; addresses do not matter.
      cuda_properties: as of `environment`.
      startup_timeout_s: time for all servers to get ready.

    Raises:
      MoiraiError: the tasks are others, a task cannot be emulated, or a server does not start.
    """
    tasks = sorted({device.task for device in cluster.devices})
    if tasks != sorted(f"{_JOB}{number}" for number in range(len(tasks))):
        raise MoiraiError(
            f"the tasks of cluster {cluster.name!r} are {', '.join(tasks) or 'none'}",
            why=f"emulated servers are {_JOB}0, {_JOB}1 and so on",
            fix="name the devices so; configs/emulated_two_servers.yaml is an example",
        )
    numbers = range(len(tasks))
    with contextlib.ExitStack() as stack:
        addresses = [f"localhost:{stack.enter_context(reserved_port())}" for _ in numbers]
        guard = stack.enter_context(guarded(()))
        specs = [
            {
                "addresses": addresses,
                "task": number,
                "core": None,
                "cgroups": [],
                "threads": _THREADS,
                "environment": environment(
                    cluster, f"{_JOB}{number}", cuda_properties=cuda_properties
                ),
            }
            for number in numbers
        ]
        start_workers(guard, specs, startup_timeout_s, stack)
        where = {f"{_JOB}{number}": addresses[number] for number in numbers}
        devices = [replace(device, address=where[device.task]) for device in cluster.devices]
        yield replace(cluster, devices=tuple(devices))

"""Whether the servers at the addresses of a cluster are those that its master talks to.

The master resolves names of tasks by its own list of addresses, which it got when it was started. A
cluster file that says something else is not noticed: operators run, but on other machines.
"""

from __future__ import annotations

import grpc

from moirai_tf.cluster import Cluster
from moirai_tf.errors import MoiraiError
from moirai_tf.runtime.devices import FoundDevice, server_devices
from moirai_tf.runtime.session import PROBE_S, ClusterSession, missing_worker


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
    """Task -> devices of the server at its address.

    Raises:
      MoiraiError: a server does not answer within `PROBE_S` seconds; naming it.
    """
    found = {}
    for task, address in cluster.addresses.items():
        try:
            found[task] = server_devices(address, PROBE_S)
        except grpc.RpcError as error:
            why = "nobody can tell whether it is the right one, so nothing may run on it"
            raise missing_worker({task: address}, why) from error
    return found


def _another(task: str, address: str, what: str) -> MoiraiError:
    return MoiraiError(
        f"worker {task} at {address} is another one: the server there {what}",
        why="operators would run on other machines than the plan was made for, without an error",
        fix="correct the addresses in the cluster file: every server must have been started with "
        "the same ones, in the same order",
    )

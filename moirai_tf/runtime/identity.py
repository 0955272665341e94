"""Whether the servers at the addresses of a cluster are those that its master talks to.

The master resolves names of tasks by its own list of addresses, which it got when it was started. A
cluster file that says something else is not noticed: operators run, but on other machines.
"""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from moirai_tf.errors import MoiraiError
from moirai_tf.runtime.session import ClusterSession

_TIMEOUT_MS = 10_000


def check_identity(opened: ClusterSession) -> None:
    """Compares what every server says of itself with what the master says of it.

    The runtime gives every device of a server a random number, its incarnation, when it starts.

    Raises:
      MoiraiError: a server is another task than the cluster says, or not the one that the master
        knows under that name; or it does not answer.
    """
    with opened.named_failures():
        seen = {d.name: d.incarnation for d in opened.session.list_devices()}
        for task, address in opened.cluster.addresses.items():
            found = dict(_own_devices(task, address))
            names = [name for name in found if name.startswith(f"{task}/")]
            if not names:
                raise _another(task, address, f"says that it has {', '.join(found)}")
            if any(seen.get(name) != found[name] for name in names):
                master = opened.cluster.device(opened.cluster.client).task
                raise _another(task, address, f"is not the server that {master} knows as {task}")


def _own_devices(task: str, address: str) -> Iterator[tuple[str, int]]:
    """Device -> incarnation of the server at an address, without asking other servers."""
    config = config_pb2.ConfigProto(
        device_filters=[task], isolate_session_state=True, operation_timeout_in_ms=_TIMEOUT_MS
    )
    with (
        tf.Graph().as_default(),
        tf.compat.v1.Session(f"grpc://{address}", config=config) as session,
    ):
        devices = session.list_devices()
    # Its own devices come first.
    own = devices[0].name.rpartition("/device:")[0]
    return ((d.name, d.incarnation) for d in devices if d.name.startswith(f"{own}/"))


def _another(task: str, address: str, what: str) -> MoiraiError:
    return MoiraiError(
        f"worker {task} at {address} is another one: the server there {what}",
        why="operators would run on other machines than the plan was made for, without an error",
        fix="correct the addresses in the cluster file: every server must have been started with "
        "the same ones, in the same order",
    )

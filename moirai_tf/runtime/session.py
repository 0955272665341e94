"""Sessions on a cluster of TensorFlow servers, with every wait bounded and every failure named.

TensorFlow's distributed runtime waits for ever for a worker that is not there, and its errors speak
of sockets. Here a worker is asked whether it answers before it is used and after something failed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import grpc
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from moirai_tf.cluster import Cluster
from moirai_tf.errors import MoiraiError
from moirai_tf.model.load import session_config

T = TypeVar("T")
Array = Any

PROBE_S = 5.0
"""How long a worker may take to say that it is there."""
CLOSE_S = 3.0
"""How long letting go of servers may take."""
_NO_PROXY = "no_grpc_proxy"
"""Environment variable; gRPC knows it in lower case only."""


class ClusterSession:
    """A Session whose master is the task that owns the cluster's client device.

    Attributes:
      cluster: the devices.
      session: TensorFlow's own object; `graph` is its graph.
    """

    def __init__(self, cluster: Cluster, session: tf.compat.v1.Session, timeout_s: float) -> None:
        self.cluster = cluster
        self.session = session
        self._timeout_s = timeout_s

    @property
    def graph(self) -> tf.Graph:
        """The graph that the Session runs."""
        return self.session.graph

    def run(
        self,
        fetches: Any,
        feeds: Mapping[Any, Array] | None = None,
        *,
        trace: bool = False,
        graphs: bool = True,
    ) -> tuple[Any, Any]:
        """Runs one step.

        Args:
          fetches: what a Session's `run` takes.
          feeds: tensor or its name -> array.
          trace: whether to keep step statistics and partition graphs.
          graphs: whether the latter, which are the same at every step and take as long as a step.

        Returns:
          The fetched values and the `RunMetadata`, which is empty without a trace.

        Raises:
          MoiraiError: a worker died or does not answer, or the step took too long.
          tf.errors.OpError: the step itself failed.
        """
        options = self.run_options(trace=trace, graphs=graphs)
        metadata = config_pb2.RunMetadata()
        with self.named_failures():
            values = self.session.run(fetches, feeds, options=options, run_metadata=metadata)
        return values, metadata

    def callable(self, fetches: Sequence[Any], feeds: Sequence[Any]) -> Callable[..., Any]:
        """The step as a function of its feeds; the cheapest way to run it many times."""
        step = self.session.make_callable(fetches, feeds, accept_options=True)
        options = self.run_options()

        def call(*values: Array) -> Any:
            with self.named_failures():
                return step(*values, options=options)

        return call

    def with_timeout(self, timeout_s: float) -> ClusterSession:
        """The same Session with another time limit of a step."""
        return ClusterSession(self.cluster, self.session, timeout_s)

    def close(self) -> None:
        """Ends the Session, within seconds even if a worker is gone."""
        _close(self.session)

    def run_options(self, *, trace: bool = False, graphs: bool = True) -> Any:
        """`RunOptions` with the time limit of a step."""
        options = config_pb2.RunOptions(timeout_in_ms=_milliseconds(self._timeout_s))
        if trace:
            options.trace_level = config_pb2.RunOptions.FULL_TRACE
            options.output_partition_graphs = graphs
        return options

    @contextmanager
    def named_failures(self) -> Iterator[None]:
        """Turns what TensorFlow raises when a worker is gone into an error that names it."""
        try:
            yield
        except tf.errors.OpError as error:
            raise _named(self.cluster, error, self._timeout_s) from error


@contextmanager
def open_session(
    cluster: Cluster, *, config: Any = None, timeout_s: float = 120.0
) -> Iterator[ClusterSession]:
    """`start_session`, with the Session and its graph as TensorFlow's default ones in the block."""
    opened = start_session(cluster, config=config, timeout_s=timeout_s)
    try:
        with opened.graph.as_default(), opened.session.as_default():
            yield opened
    finally:
        opened.close()


def start_session(
    cluster: Cluster, *, config: Any = None, timeout_s: float = 120.0
) -> ClusterSession:
    """A Session that has all devices of a cluster, in a graph of its own.

    With addresses the task of the client device is its master, so feeds and fetches are there, and
    resources are not shared with other Sessions. Without addresses it runs in this process.

    Args:
      cluster: the devices.
      config: a `ConfigProto` to start from.
      timeout_s: the longest that one step, or making the Session, may take.

    Raises:
      MoiraiError: a worker is missing, lacks a device, dies or does not answer in time; naming it.
    """
    check_workers(cluster)
    _reach_directly(cluster.addresses.values())
    target, config = _target_and_config(cluster, config, timeout_s)
    session = tf.compat.v1.Session(target, graph=tf.Graph(), config=config)
    opened = ClusterSession(cluster, session, timeout_s)
    try:
        with opened.named_failures():
            _check_devices(cluster, session)
    except BaseException:
        opened.close()
        raise
    return opened


def check_workers(cluster: Cluster) -> None:
    """Asks every server of a cluster whether it is there.

    Raises:
      MoiraiError: naming the first that does not answer within a few seconds.
    """
    silent = silent_workers(cluster)
    if silent:
        raise missing_worker(silent, "no plan can run, or be measured, without it")


def silent_workers(cluster: Cluster) -> dict[str, str]:
    """Task -> address of the servers that do not answer within `PROBE_S` seconds."""
    channels = {
        task: grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        for task, address in cluster.addresses.items()
    }
    waits = {task: grpc.channel_ready_future(channel) for task, channel in channels.items()}
    deadline = time.monotonic() + PROBE_S  # one for all, which are asked at the same time
    silent = {}
    for task, wait in waits.items():
        try:
            wait.result(timeout=max(0.0, deadline - time.monotonic()))
        except grpc.FutureTimeoutError:
            silent[task] = cluster.addresses[task]
        finally:
            wait.cancel()
            channels[task].close()
    return silent


def _target_and_config(cluster: Cluster, config: Any, timeout_s: float) -> tuple[str, Any]:
    own = config_pb2.ConfigProto()
    own.CopyFrom(config or config_pb2.ConfigProto())
    own.allow_soft_placement = True
    if not cluster.remote:
        own.MergeFrom(session_config(device.name for device in cluster.devices))
        return "", own
    own.isolate_session_state = True
    own.operation_timeout_in_ms = _milliseconds(timeout_s)
    own.device_filters.extend(cluster.addresses)  # or it waits for workers that take no part
    return f"grpc://{cluster.device(cluster.client).address}", own


def _milliseconds(seconds: float) -> int:
    """To TensorFlow 0 is no limit."""
    return max(1, round(seconds * 1000))


def _reach_directly(addresses: Iterable[str]) -> None:
    """Keeps gRPC from asking an HTTP proxy for workers, for which it would wait for ever."""
    hosts = {address.rpartition(":")[0] for address in addresses}
    known = set(filter(None, os.environ.get(_NO_PROXY, "").split(",")))
    if not hosts <= known:
        os.environ[_NO_PROXY] = ",".join(sorted(hosts | known))


def _check_devices(cluster: Cluster, session: tf.compat.v1.Session) -> None:
    """Refuses devices that the servers do not have: TensorFlow would run them elsewhere."""
    if not cluster.remote:
        return
    found = [device.name for device in session.list_devices()]
    for device in cluster.devices:
        if device.name not in found:
            there = [name for name in found if name.startswith(f"{device.task}/")]
            raise MoiraiError(
                f"the server at {device.address} has no device {device.name!r}; it has "
                f"{', '.join(there) or 'another task'}",
                why="TensorFlow runs an operator on a missing device elsewhere, without an error",
                fix="correct names and addresses in the cluster file, or start the servers so",
            )


def _named(cluster: Cluster, error: Exception, timeout_s: float) -> Exception:
    """The error to raise instead: one that names the worker if one is gone, else the same."""
    lost = tf.errors.UnavailableError | tf.errors.DeadlineExceededError | tf.errors.AbortedError
    if not cluster.remote or not isinstance(error, lost | tf.errors.CancelledError):
        return error
    silent = silent_workers(cluster)
    if silent:
        return missing_worker(silent, "it answered before: it died, hangs, or the network broke")
    if isinstance(error, tf.errors.DeadlineExceededError):
        return MoiraiError(
            f"a step on cluster {cluster.name!r} took longer than {timeout_s:g} s",
            why="all workers answer, so it is slow, or an operator waits for ever",
            fix="allow more time, or use smaller inputs",
        )
    restarted = [task for task in cluster.addresses if task in str(error)]
    return MoiraiError(
        f"a worker was restarted{f' ({restarted[0]})' if restarted else ''}: "
        f"{str(error).splitlines()[0]}",
        why="its variables are gone, and steps that were under way are lost",
        fix="run again; if it died of too little memory, give it less (memory in the cluster file)",
    )


def missing_worker(silent: Mapping[str, str], why: str) -> MoiraiError:
    """The error that names the first worker (task -> address) of those that do not answer."""
    task, address = next(iter(silent.items()))
    more = f" (and {len(silent) - 1} more)" if len(silent) > 1 else ""
    return MoiraiError(
        f"worker {task} at {address}{more} does not answer",
        why=why,
        fix="start its TensorFlow server, or correct the address; a worker that was killed may "
        "have had too little memory",
    )


def _close(session: tf.compat.v1.Session) -> None:
    """Closes a Session, but does not wait for ever for a worker that is gone."""
    closing = threading.Thread(target=_quietly, args=(session.close,), daemon=True)
    closing.start()
    closing.join(CLOSE_S)
    if closing.is_alive():
        session._session = None  # or its destructor waits too; the Session itself is lost


def _quietly(call: Callable[[], object]) -> None:
    with suppress(tf.errors.OpError):
        call()

"""Measures what it takes to move a tensor from one device of a cluster to another.

For a directed pair, a tensor crosses to the other device, whose arrival lets the next one go: a
chain of one-way trips with an empty answer. The same chain on one device is subtracted, and half a
round trip of empty tensors too, since the answer is one way of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from moirai_tf.cluster import Cluster, Device, Link
from moirai_tf.cost.table import MeasuredLink
from moirai_tf.runtime.devices import has_gpus_here
from moirai_tf.runtime.session import ClusterSession, open_session
from moirai_tf.runtime.timing import medians_ns

SIZES = (1 << 8, 1 << 14, 1 << 17, 1 << 19, 1 << 20, 1 << 22)
"""Bytes of the tensors that are sent."""
_TRIPS = 6
_REPEATS = 9
_WARMUP = 3
_FASTEST_BYTES_PER_S = 10**12
"""Where the time does not grow with the size: the receiver shares the sender's buffer."""


def measured_links(cluster: Cluster) -> tuple[MeasuredLink, ...]:
    """A link for every ordered pair of devices that can be reached, latency and bandwidth measured.

    Logical CPUs of this process are one hardware, so one pair is measured for all of them. Latency
    and bandwidth are the line of Theil (1950) and Sen (1968) through the medians: the median of all
    slopes, then of all intercepts.

    Raises:
      MoiraiError: a worker is missing or dies.
    """
    here = has_gpus_here(cluster)
    known = [d for d in cluster.devices if cluster.remote or here or d.local]
    if len(known) < 2:
        return ()
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    measured: dict[tuple[str, str], list[float]] = {}
    links = []
    for a, b in itertools.permutations(known, 2):
        pair = ("", "") if a.local and b.local else (a.name, b.name)
        if pair not in measured:
            # A Session of its own, whose tensors leave the devices with it.
            with open_session(cluster, config=config) as opened:
                measured[pair] = _one_way_ns(opened, a, b)
        links.append(_fitted(a.name, b.name, measured[pair]))
    return tuple(links)


def fit(sizes: Sequence[int], times_ns: Sequence[float]) -> tuple[int, int]:
    """(latency in ns, bandwidth in bytes/s) of times that grow linearly with sizes."""
    slopes = [
        (times_ns[j] - times_ns[i]) / (sizes[j] - sizes[i])
        for i, j in itertools.combinations(range(len(sizes)), 2)
    ]
    ns_per_byte = max(float(np.median(slopes)), 1e9 / _FASTEST_BYTES_PER_S)
    intercepts = np.subtract(times_ns, np.multiply(ns_per_byte, sizes))
    return max(0, round(float(np.median(intercepts)))), round(1e9 / ns_per_byte)


def _fitted(source: str, target: str, times_ns: Sequence[float]) -> MeasuredLink:
    link = Link(source, target, *fit(SIZES, times_ns))
    errors = [
        abs(link.transfer_ns(nbytes) - ns) / max(ns, 1.0)
        for nbytes, ns in zip(SIZES, times_ns, strict=True)
    ]
    return MeasuredLink(
        source,
        target,
        link.latency_ns,
        link.bandwidth_bytes_per_s,
        round(float(np.median(errors)), 4),
        tuple((nbytes, round(ns)) for nbytes, ns in zip(SIZES, times_ns, strict=True)),
    )


def _one_way_ns(opened: ClusterSession, source: Device, target: Device) -> list[float]:
    """Time of one transfer of every size."""
    ways = [_chain(opened, nbytes, source.name, target.name) for nbytes in (0, *SIZES)]
    here = [_chain(opened, nbytes, source.name, source.name) for nbytes in (0, *SIZES)]
    medians = np.array(medians_ns([*ways, *here], repeats=_REPEATS, warmup=_WARMUP))
    trips = (medians[: len(ways)] - medians[len(ways) :]) / _TRIPS
    return [max(0.0, float(ns)) for ns in trips[1:] - trips[0] / 2]


def _chain(opened: ClusterSession, nbytes: int, source: str, target: str) -> Callable[[], object]:
    """Sends so many bytes several times, each time when the time before has arrived."""
    with tf.device(source):
        data = tf.zeros([nbytes // tf.float32.size])
        data = tf.identity(data)
        sent = data
    for _ in range(_TRIPS):
        with tf.device(target):
            arrived = tf.identity(sent)
        with tf.device(source), tf.control_dependencies([arrived]):
            sent = tf.identity(data)
    return opened.callable([sent.op], [])

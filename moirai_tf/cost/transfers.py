"""Measures what it takes to move a tensor between logical CPU devices of this process."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from moirai_tf.cluster import Cluster, Link

_SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22)
"""Bytes of the tensors that are sent."""
_ROUND_TRIPS = 20
_REPEATS = 15
_FASTEST_BYTES_PER_S = 10**12
"""Where the time does not grow with the size: the receiver shares the sender's buffer."""


def measured_links(cluster: Cluster) -> tuple[Link, ...]:
    """A link for every ordered pair of local CPUs of a cluster, latency and bandwidth measured.

    They are one process and one hardware, so one pair is measured for all.

    A tensor of each of several sizes travels back and forth between two devices; the same chain of
    operators on one device is subtracted. Latency and bandwidth are the line of Theil
    (1950) and Sen (1968) through the medians: the median of all slopes, then of all intercepts.
    """
    local = [device.name for device in cluster.devices if device.local]
    if len(local) < 2:
        return ()
    latency, bandwidth = fit(_SIZES, [_one_way_ns(nbytes) for nbytes in _SIZES])
    return tuple(Link(a, b, latency, bandwidth) for a, b in itertools.permutations(local, 2))


def fit(sizes: Sequence[int], times_ns: Sequence[float]) -> tuple[int, int]:
    """(latency in ns, bandwidth in bytes/s) of times that grow linearly with sizes."""
    slopes = [
        (times_ns[j] - times_ns[i]) / (sizes[j] - sizes[i])
        for i, j in itertools.combinations(range(len(sizes)), 2)
    ]
    ns_per_byte = max(float(np.median(slopes)), 1e9 / _FASTEST_BYTES_PER_S)
    intercepts = np.subtract(times_ns, np.multiply(ns_per_byte, sizes))
    return max(0, round(float(np.median(intercepts)))), round(1e9 / ns_per_byte)


def _one_way_ns(nbytes: int) -> float:
    """Time of one transfer, in a Session that has two CPU devices of its own."""
    config = config_pb2.ConfigProto(device_count={"CPU": 2, "GPU": 0})
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        data = tf.constant(0, tf.uint8, [nbytes])
        apart = session.make_callable(_chain(data, "/device:CPU:1").op)
        together = session.make_callable(_chain(data, "/device:CPU:0").op)
        trips = [(_ns(apart), _ns(together)) for _ in range(_REPEATS)]
    apart_ns, together_ns = np.median(trips, axis=0)
    return max(0.0, float(apart_ns - together_ns) / (2 * _ROUND_TRIPS))


def _chain(tensor: tf.Tensor, device: str) -> tf.Tensor:
    for _ in range(_ROUND_TRIPS):
        for place in (device, "/device:CPU:0"):
            with tf.device(place):
                tensor = tf.identity(tensor)
    return tensor


def _ns(call: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start

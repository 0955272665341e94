"""Measures how long a device cannot compute because it packs or unpacks a tensor.

A device computes for a while; then it does so again while tensors leave it, or come to it. What the
second run takes longer is the price. Each device has one other as its partner. A GPU goes on
computing: engines of its own copy what it sends and receives.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from moirai_tf.cluster import Cluster
from moirai_tf.cost.table import Handling
from moirai_tf.runtime.gpu_records import gpu_index
from moirai_tf.runtime.session import ClusterSession, open_session
from moirai_tf.runtime.timing import medians_ns

_SMALL_BYTES, _LARGE_BYTES = 1 << 12, 1 << 20
_TENSORS = 6
_PRODUCTS = 8
"""They take longer than the tensors are on their way, on any processor."""
_SIZE = 512
_REPEATS = 7
_WARMUP = 2


def measured_handling(cluster: Cluster) -> dict[str, Handling]:
    """Device -> what sending and receiving costs it; empty unless the cluster has addresses.

    Raises:
      MoiraiError: a worker is missing or dies.
    """
    names = [device.name for device in cluster.devices]
    if not cluster.remote or len(names) < 2:
        return {}
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    with open_session(cluster, config=config) as opened:
        return {
            name: Handling(0, 0, 0, 0)
            if gpu_index(name) is not None
            else _of_device(opened, name, names[0] if name != names[0] else names[1])
            for name in names
        }


def _of_device(opened: ClusterSession, device: str, partner: str) -> Handling:
    with tf.device(device):
        work = tf.ones([_SIZE, _SIZE])
        for _ in range(_PRODUCTS):
            work = tf.matmul(work, work)
    with tf.device(partner):
        visit = tf.raw_ops.NoOp()
    ways = [opened.callable([work.op, visit], [])]
    for source, target in ((device, partner), (partner, device)):
        for nbytes in (_SMALL_BYTES, _LARGE_BYTES):
            arrived = _sent(source, target, nbytes)
            ways.append(opened.callable([work.op, visit, *arrived], []))
    medians = medians_ns(ways, repeats=_REPEATS, warmup=_WARMUP)
    send, receive, send_large, receive_large = (
        max(0.0, medians[way] - medians[0]) / _TENSORS for way in (1, 3, 2, 4)
    )
    return Handling(
        send_ns=round(send),
        send_ns_per_mib=round(max(0.0, send_large - send)),
        receive_ns=round(receive),
        receive_ns_per_mib=round(max(0.0, receive_large - receive)),
    )


def _sent(source: str, target: str, nbytes: int) -> list[tf.Operation]:
    """Several tensors that go from one device to another at once."""
    with tf.device(source):
        tensors = [tf.zeros([nbytes], tf.uint8) for _ in range(_TENSORS)]
    with tf.device(target):
        return [tf.identity(tensor).op for tensor in tensors]

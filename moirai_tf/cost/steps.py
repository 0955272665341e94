"""What a step costs whatever the model computes: the Session, its feeds and fetches, every worker.

A graph with the model's feeds and fetches, but no work, runs on the client's device alone; then
with one more operator on another device, which makes its worker take part in the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import tensorflow as tf

from moirai_tf.cluster import Cluster
from moirai_tf.cost.inputs import Array
from moirai_tf.cost.table import StepCost
from moirai_tf.graph.graph import Graph, TensorSpec
from moirai_tf.graph.shapes import enum_of
from moirai_tf.runtime.session import ClusterSession, open_session
from moirai_tf.runtime.timing import medians_ns

_REPEATS = 25
_WARMUP = 5


def measured_step_cost(graph: Graph, cluster: Cluster, inputs: Mapping[str, Array]) -> StepCost:
    """Measures it; medians of interleaved runs.

    Args:
      graph: the flat graph of the signature, for its outputs.
      cluster: the devices.
      inputs: one array per signature input.

    Raises:
      MoiraiError: a worker is missing or dies.
    """
    others = [d.name for d in cluster.devices if d.name != cluster.client]
    with open_session(cluster) as opened:
        feeds = [_fed(cluster.client, value) for value in inputs.values()]
        fetches = [
            _fetched(cluster.client, graph.spec(graph.operators[index].inputs[0]), feeds)
            for index in graph.outputs.values()
        ]
        ways = [opened.callable(fetches, feeds)]
        ways += [_with_one_more(opened, fetches, feeds, name) for name in others]
        steps = [partial(way, *inputs.values()) for way in ways]
        client_ns, *more_ns = medians_ns(steps, repeats=_REPEATS, warmup=_WARMUP)
    own = cluster.device(cluster.client).task
    free = {d.name for d in cluster.devices if d.task == own and d.type == "CPU"}
    return StepCost(
        round(client_ns),
        {
            name: 0 if name in free else max(0, round(ns - client_ns))
            for name, ns in zip(others, more_ns, strict=True)
        },
    )


def _fed(client: str, value: Array) -> tf.Tensor:
    with tf.device(client):
        return tf.compat.v1.placeholder(tf.as_dtype(value.dtype if value.dtype != object else "S"),
                                        value.shape)  # fmt: skip


def _fetched(client: str, spec: TensorSpec, feeds: list[tf.Tensor]) -> tf.Tensor:
    """A tensor like an output of the model, ready when all feeds are there."""
    shape = [abs(size) for size in spec.shape or ()]
    with tf.device(client), tf.control_dependencies(feeds):
        return tf.zeros(shape, tf.as_dtype(enum_of(spec.dtype)))


def _with_one_more(
    opened: ClusterSession, fetches: list[tf.Tensor], feeds: list[tf.Tensor], device: str
) -> Callable[..., Any]:
    with tf.device(device):
        visit = tf.raw_ops.NoOp()
    return opened.callable([*fetches, visit], feeds)

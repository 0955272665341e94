"""What a step costs whatever the model computes: the Session, its feeds and fetches, every worker.

A graph with the model's feeds and fetches, but no work, runs on the client's device alone; then
with one more operator on another device, which makes its worker take part in the step.

Workers on one machine also share its memory, caches and power, and a CPU launches the kernels of
its GPUs. How much slower a CPU is while the other devices compute is measured with the model on
every device by itself, each with its own client, first one device after the other and then on all
at the same time.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from moirai_tf.cluster import Cluster
from moirai_tf.cost.inputs import Array
from moirai_tf.cost.layouts import layouts
from moirai_tf.cost.measure import loaded, runs_of
from moirai_tf.cost.table import StepCost
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.graph.graph import Graph, TensorSpec
from moirai_tf.graph.shapes import enum_of
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.rewrite.make_plan import write_placed
from moirai_tf.runtime.session import ClusterSession, open_session
from moirai_tf.runtime.timing import elapsed_ns, enough, medians_ns

_REPEATS = 25
_WARMUP = 5
_FIRST_STEPS = 2
"""Steps of a new Session that do not count."""
_LEAST = 3
"""Steps that count of a model that takes long."""


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


def measured_slowdown(
    model: SavedModel,
    coarse: CoarseGraph,
    cluster: Cluster,
    inputs: Mapping[str, Array],
    ready: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
) -> dict[str, float]:
    """CPU -> latency while all other devices compute / latency alone, at least 1.

    A GPU computes as fast as ever beside others; a CPU launches the kernels of its GPUs. Devices
    that cannot hold the whole model take no part.

    Args:
      model: the SavedModel that the graph was imported from.
      coarse: its fused operators.
      cluster: the devices.
      inputs: one array per signature input.
      ready: device -> a step of the whole model there, of which there is one already. A CPU's
        client has to be itself.
      repeats: steps that count, of each device alone and of all together.

    Raises:
      MoiraiError: a worker is missing or dies.
    """
    graph = coarse.fine
    clients = {
        device.name: replace(cluster, client=device.name) if device.type == "CPU" else cluster
        for device in cluster.devices
    }
    shown = {
        name: layouts(coarse, own, name)[0] for name, own in clients.items() if name not in ready
    }
    names = [name for name in clients if name in ready or shown[name].whole]
    if len(names) < 2 or not any(cluster.device(name).type == "CPU" for name in names):
        return {}
    with tempfile.TemporaryDirectory(prefix="moirai_profile_") as work, ExitStack() as stack:
        steps: list[Callable[[], object]] = []
        for number, name in enumerate(names):
            if name in ready:
                steps.append(ready[name])
                continue
            placed = Path(work) / str(number)
            write_placed(model, graph, clients[name], shown[name].placement, placed)
            opened = stack.enter_context(loaded(clients[name], placed, graph))
            feeds, fetches = runs_of(model, graph, inputs)
            steps.append(partial(opened.callable(fetches, feeds), *inputs.values()))
        for step in steps:  # the workers are warm: their operators have been timed
            for _ in range(_FIRST_STEPS):
                step()
        alone = [_median_ns([elapsed_ns(step) for _ in enough(repeats, _LEAST)]) for step in steps]
        together = _together(steps, repeats)
    return {
        name: round(max(1.0, shared_ns / own_ns), 4)
        for name, own_ns, shared_ns in zip(names, alone, together, strict=True)
        if cluster.device(name).type == "CPU"
    }


def _together(steps: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median latency of every step while all the others go on."""
    samples: list[list[int]] = [[] for _ in steps]
    failures: list[BaseException] = []
    done = [False] * len(steps)

    def work(number: int) -> None:
        try:
            for _ in enough(repeats, _LEAST):
                samples[number].append(elapsed_ns(steps[number]))
            done[number] = True
            while not failures and not all(done):  # the others are not alone yet
                steps[number]()
        except BaseException as error:  # raised again in the caller's thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [_median_ns(found) for found in samples]


def _median_ns(samples: Sequence[int]) -> float:
    return float(np.median(samples))

"""Measures how much slower a device is while the others compute too.

Workers on one machine share its memory, caches and power. The model runs on every device by itself,
each with its own client, first one device after the other and then on all at the same time.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from moirai_tf.cluster import Cluster
from moirai_tf.cost.inputs import Array
from moirai_tf.cost.layouts import layouts
from moirai_tf.cost.measure import loaded, runs_of
from moirai_tf.graph.graph import Graph
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.runtime.placed import write_placed
from moirai_tf.runtime.timing import elapsed_ns, warm_up


def measured_slowdown(
    model: SavedModel,
    graph: Graph,
    cluster: Cluster,
    inputs: Mapping[str, Array],
    *,
    repeats: int,
    warmup: int,
) -> dict[str, float]:
    """Device -> latency while all others compute / latency alone, at least 1.

    Empty unless every device is a CPU of a server and can hold the whole model.

    Raises:
      MoiraiError: a worker is missing or dies.
    """
    names = [device.name for device in cluster.devices if device.type == "CPU"]
    alone = {name: replace(cluster, client=name) for name in names}
    shown = {name: layouts(graph, alone[name], name) for name in names}
    if len(names) < max(2, len(cluster.devices)) or not all(s[0].whole for s in shown.values()):
        return {}
    with tempfile.TemporaryDirectory(prefix="moirai_profile_") as work, ExitStack() as stack:
        steps = []
        for number, name in enumerate(names):
            placed = Path(work) / str(number)
            write_placed(model, graph, alone[name], shown[name][0].placement, placed)
            opened = stack.enter_context(loaded(alone[name], placed, graph))
            feeds, fetches = runs_of(model, graph, inputs)
            steps.append(partial(opened.callable(fetches, feeds), *inputs.values()))
        for step in steps:
            warm_up(step, warmup)
        before = [_median_ns([elapsed_ns(step) for _ in range(repeats)]) for step in steps]
        during = _together(steps, repeats)
        after = [_median_ns([elapsed_ns(step) for _ in range(repeats)]) for step in steps]
    return {
        name: round(max(1.0, 2 * d / (b + a)), 4)
        for name, b, d, a in zip(names, before, during, after, strict=True)
    }


def _together(steps: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median latency of every step while all the others go on."""
    samples: list[list[int]] = [[] for _ in steps]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while not failures and min(map(len, samples)) < repeats:
                samples[number].append(elapsed_ns(steps[number]))
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

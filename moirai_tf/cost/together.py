"""Measures how much slower a device is while the others compute too.

Workers on one machine share its memory, caches and power. The model runs on every device by itself,
each with its own client, first one device after the other and then on all at the same time.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from moirai_tf.cluster import Cluster
from moirai_tf.cost.inputs import Array
from moirai_tf.cost.layouts import layouts
from moirai_tf.cost.measure import fill_variables, runs_of
from moirai_tf.graph.graph import Graph
from moirai_tf.model.load import load_in_session
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.runtime.placed import write_placed
from moirai_tf.runtime.session import open_session


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
            opened = stack.enter_context(open_session(alone[name]))
            with opened.named_failures():
                load_in_session(placed, opened.session, graph.tags)
                fill_variables(opened.session, graph)
            feeds, fetches = runs_of(model, graph, inputs)
            steps.append(_bound(opened.callable(fetches, feeds), inputs))
        for step in steps:
            for _ in range(warmup):
                step()
        before = [_median_ns([_ns(step) for _ in range(repeats)]) for step in steps]
        during = _together(steps, repeats)
        after = [_median_ns([_ns(step) for _ in range(repeats)]) for step in steps]
    return {
        name: round(max(1.0, 2 * d / (b + a)), 4)
        for name, b, d, a in zip(names, before, during, after, strict=True)
    }


def _bound(call: Callable[..., object], inputs: Mapping[str, Array]) -> Callable[[], object]:
    return lambda: call(*inputs.values())


def _together(steps: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median latency of every step while all the others go on."""
    samples: list[list[int]] = [[] for _ in steps]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while not failures and min(map(len, samples)) < repeats:
                samples[number].append(_ns(steps[number]))
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


def _ns(step: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    step()
    return time.perf_counter_ns() - start

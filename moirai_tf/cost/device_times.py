"""Times operators in Sessions: each device runs the model, or pieces of it.

Untraced steps, in TensorFlow's own order, tell how long a step takes. Traced ones, in which control
edges let one operator run at a time, tell how the time is shared among them. What a step takes
beyond its fixed cost (see `steps`) and its kernels is the executor's work for every kernel, and is
shared evenly among them; if kernels add up to more than the step, all are scaled down.

A GPU runs one kernel at a time anyway, so there the same steps are traced; see `gpu_steps`.

Loading a model and its first step take longer than the steps that count. So a Session in which a
device runs all of it is left open where `steps` measures the same one again, beside the others.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from moirai_tf.cluster import Cluster
from moirai_tf.cluster.names import short_devices
from moirai_tf.cost.gpu_steps import gpu_times
from moirai_tf.cost.host_memory import HostMemories, Links, host_of
from moirai_tf.cost.inputs import Array
from moirai_tf.cost.layouts import Layout, TracedLayout, layouts, own_ns
from moirai_tf.cost.measure import loaded, runs_of
from moirai_tf.cost.step_stats import (
    Allocated,
    DeviceStep,
    KernelNames,
    allocated,
    device_steps,
    ops_of,
)
from moirai_tf.cost.table import MeasuredLink, Measurement, StepCost, links_of
from moirai_tf.cost.xplane import UNKNOWN
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.graph.graph import Graph, TensorRef
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.progress import stage
from moirai_tf.rewrite.kept_order import Order, plan_order
from moirai_tf.rewrite.make_plan import transfers_of, write_placed
from moirai_tf.runtime.devices import full_name
from moirai_tf.runtime.gpu_records import gpu_index
from moirai_tf.runtime.session import ClusterSession
from moirai_tf.runtime.timing import LEAST_STEPS, elapsed_ns, enough, warm_up

_LEAST_WARMUP = 2
"""Traced steps that do not count, of a model that takes long: one that is slow all the same is not
in the middle half."""
_LEAST_TRACED = 5
"""Traced steps that count, of a model that takes long."""
_LOGGER = logging.getLogger(__name__)
_KEPT = 0.5
"""Part of the traced steps that counts: those whose kernels' total is nearest the median."""


@dataclass(frozen=True)
class TimedDevice:
    """What was measured on one device."""

    times_ns: Sequence[int | None]
    """Of each operator of the graph, None where it was not timed."""
    measurement: Measurement
    step: Callable[[], object] | None
    """Runs the whole model there, for the cluster's client; None if its Session was closed."""


def measure_devices(
    model: SavedModel,
    coarse: CoarseGraph,
    cluster: Cluster,
    devices: Sequence[str],
    inputs: Mapping[str, Array],
    step_cost: StepCost,
    links: Sequence[MeasuredLink],
    sessions: ExitStack,
    *,
    repeats: int,
    warmup: int,
) -> dict[str, TimedDevice]:
    """Times every operator on devices that Sessions reach, one device after the other.

    Those that are shown pieces come first: the others' room is theirs until Sessions stay open.

    Times are means over the middle half of the traced steps, not medians of each operator: on a
    device under a CPU quota most runs of a short kernel are undisturbed and a few wait for the next
    period, so that medians would add up to less than a step.

    Args:
      model: the SavedModel that the graph was imported from.
      coarse: its fused operators.
      cluster: the devices.
      devices: names of those that are timed.
      inputs: one array per signature input.
      step_cost: what a step takes whatever it computes.
      links: what transfers take.
      sessions: closes those that are left open.
      repeats: untraced steps that count, and traced ones.
      warmup: steps before them.

    Raises:
      MoiraiError: a worker is missing or dies, the model cannot run there, or a GPU does not tell
        what its kernels took.
    """
    subject = _TimedModel(model, coarse, cluster, inputs, repeats, warmup, sessions)
    by_pair = links_of(cluster, links)
    wanted = [layouts(coarse, cluster, device) for device in devices]
    wanted.sort(key=lambda shown: shown[0].whole)
    client = cluster.client
    return {
        shown[0].device: _measured(
            subject, shown, step_cost.total_ns(client, [shown[0].device]), by_pair
        )
        for shown in wanted
    }


def _measured(
    subject: _TimedModel, wanted: Sequence[Layout], fixed_ns: int, links: Links
) -> TimedDevice:
    """`measure_devices` for the device of some layouts, where so much of a step is fixed."""
    graph, cluster, device = subject.graph, subject.cluster, wanted[0].device
    short = short_devices(d.name for d in cluster.devices)
    with stage(f"time the operators on {short[device]}"):
        shown, traced = _shown(subject, wanted)
    host = host_of(cluster, device)
    measurement = _measurement(traced, fixed_ns, _moved_ns(graph, shown[0], host, links))
    times, measurement = (
        gpu_times(graph, shown, traced, measurement, host, links)
        if gpu_index(device) is not None
        else _calibrated(graph, shown, traced, measurement)
    )
    timed = {name for layout in shown for name, d in layout.placement.items() if d == device}
    named = zip(graph.operators, times, strict=True)
    times_ns = [ns if o.name in timed else None for o, ns in named]
    return TimedDevice(times_ns, measurement, traced[0].step)


def _shown(
    subject: _TimedModel, wanted: Sequence[Layout]
) -> tuple[list[Layout], list[TracedLayout]]:
    """Runs every layout; a piece that has no room beside what it reads is left out.

    Its operators have no cost on the device then, so no plan puts them there.

    Raises:
      MoiraiError: a layout cannot be run for another reason, or none has room.
    """
    shown: list[Layout] = []
    traced: list[TracedLayout] = []
    for layout in wanted:
        try:
            traced.append(subject.show(layout))
        except MoiraiError as error:
            if layout.whole or not _lacks_room(error) or (layout is wanted[-1] and not shown):
                raise
            _LOGGER.warning(
                "%s has no room for a piece of the model: %s", layout.device, error.rule
            )
        else:
            shown.append(layout)
    return shown, traced


def _lacks_room(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, tf.errors.ResourceExhaustedError):
        error = error.__cause__
    return error is not None


@dataclass(frozen=True)
class _TimedModel:
    """What is run on which devices."""

    model: SavedModel
    coarse: CoarseGraph
    cluster: Cluster
    inputs: Mapping[str, Array]
    repeats: int
    warmup: int
    sessions: ExitStack

    @property
    def graph(self) -> Graph:
        return self.coarse.fine

    def show(self, layout: Layout) -> TracedLayout:
        """Runs one layout traced, one kernel at a time, and untraced, as TensorFlow orders it.

        A CPU needs a model of its own for each: the traced one is gone when the other is loaded,
        so that no device has to hold the weights twice.
        """
        with tempfile.TemporaryDirectory(prefix="moirai_profile_") as work, ExitStack() as briefly:
            on_gpu = gpu_index(layout.device) is not None
            traced = None
            if not on_gpu:
                with self._loaded(layout, Path(work) / "ordered", ordered=True) as opened:
                    traced = self._traced(opened, layout.device)
            stays = layout.whole and (on_gpu or layout.device == self.cluster.client)
            opened = (self.sessions if stays else briefly).enter_context(
                self._loaded(layout, Path(work) / "free", ordered=False)
            )
            step = self._step(opened)
            latencies = self._latencies(step)
            traced = traced or self._traced(opened, layout.device)
            return _seen(traced, latencies, step if stays else None)

    @contextmanager
    def _loaded(self, layout: Layout, placed: Path, *, ordered: bool) -> Iterator[ClusterSession]:
        with stage("write the model"):
            order = self._one_by_one(layout) if ordered else None
            write_placed(self.model, self.graph, self.cluster, layout.placement, placed, order)
        with loaded(self.cluster, placed, self.graph) as opened:
            yield opened

    def _one_by_one(self, layout: Layout) -> Order:
        """The fused operators of the device that is looked at, in topological order."""
        fine = self.graph.operators
        in_turn = [
            i
            for i, fused in enumerate(self.coarse.operators)
            if all(layout.placement[fine[m].name] == layout.device for m in fused.members)
        ]
        return plan_order(self.model, self.coarse, [in_turn], layout.placement)

    def _step(self, opened: ClusterSession) -> Callable[[], object]:
        feeds, fetches = runs_of(self.model, self.graph, self.inputs)
        return partial(opened.callable(fetches, feeds), *self.inputs.values())

    def _latencies(self, step: Callable[[], object]) -> list[int]:
        with stage("warm up"):
            warm = warm_up(step, self.warmup)[: self.repeats]
        more, least = self.repeats - len(warm), LEAST_STEPS - len(warm)
        with stage("run", more) as steps:
            return warm + [steps.counted(elapsed_ns(step)) for _ in enough(more, least)]

    def _traced(self, opened: ClusterSession, device: str) -> _Traced:
        feeds, fetches = runs_of(self.model, self.graph, self.inputs)
        fed = dict(zip(feeds, self.inputs.values(), strict=True))
        owner = KernelNames(self.graph).owner
        device = full_name(device)
        _, metadata = opened.run(fetches, fed, trace=True)
        ops = ops_of(metadata)
        run = partial(opened.run, fetches, fed, trace=True, graphs=False)
        with stage("warm up"):
            for _ in enough(self.warmup, _LEAST_WARMUP):
                run()
        steps, memory, durations = [], [], []
        with stage("run traced", self.repeats) as counted:
            for _ in enough(self.repeats, _LEAST_TRACED):
                start = time.perf_counter_ns()
                _, metadata = run()
                durations.append(time.perf_counter_ns() - start)
                steps.append(device_steps(metadata, owner, ops).get(device, DeviceStep({}, {})))
                memory.append(allocated(metadata, device))
                counted.advance()
        return _Traced(steps, durations, _most(memory))


@dataclass(frozen=True)
class _Traced:
    """Traced steps that count."""

    steps: Sequence[DeviceStep]
    durations_ns: Sequence[int]
    memory: Allocated


def _seen(
    traced: _Traced, latencies: Sequence[int], step: Callable[[], object] | None
) -> TracedLayout:
    kept = _middle_half(traced.steps)
    low, middle, high = np.percentile(latencies, (25, 50, 75))
    return TracedLayout(
        kernel_ns=_means([step.kernel_ns for step in kept]),
        kernels=_means([step.kernels for step in kept]),
        wait_ns=_means([step.wait_ns for step in kept]),
        latency_ns=float(middle),
        step_ns=float(np.median(traced.durations_ns)),
        spread=float((high - low) / middle),
        memory=traced.memory,
        repeats=len(latencies),
        stream_ns=float(np.mean([step.stream_ns for step in kept])),
        copied_ns=float(np.mean([step.copied_ns for step in kept])),
        step=step,
    )


def _most(found: Sequence[Allocated]) -> Allocated:
    return Allocated(
        max(memory.peak_bytes for memory in found), max(memory.scratch_bytes for memory in found)
    )


def _middle_half(steps: Sequence[DeviceStep]) -> list[DeviceStep]:
    totals = np.array([step.total_ns for step in steps])
    order = np.argsort(np.abs(totals - np.median(totals)), kind="stable")
    return [steps[i] for i in order[: math.ceil(_KEPT * len(steps))]]


def _means(rows: Sequence[Mapping[int, int]]) -> dict[int, float]:
    sums: dict[int, float] = {}
    for row in rows:
        for key, value in row.items():
            sums[key] = sums.get(key, 0.0) + value / len(rows)
    return sums


def _moved_ns(graph: Graph, layout: Layout, host: str, links: Links) -> int:
    """Time in transfers, one after the other: feeds on their way to the device, results back.

    On a GPU also tensors that change between its memory and the host's, but none that is, or is
    wanted, in host memory anyway.
    """
    transfers = transfers_of(graph, layout.placement)
    if gpu_index(layout.device) is None:
        return sum(links[t.source, t.target].transfer_ns(t.nbytes) for t in transfers)
    memories = HostMemories(graph)
    crossing = (
        links[t.source, t.target].transfer_ns(t.nbytes)
        for t in transfers
        if host not in (t.source, t.target)
        or not memories.stays_on_host(TensorRef(graph.index[t.producer], t.port), t.source == host)
    )
    within = (
        memories.copies_ns(i, layout.device, host, links)
        for i, operator in enumerate(graph.operators)
        if layout.placement[operator.name] == layout.device
    )
    return sum(crossing) + sum(within)


def _measurement(traced: Sequence[TracedLayout], fixed_ns: int, moved_ns: int) -> Measurement:
    """What the layouts of one device say together."""
    memory = _most([found.memory for found in traced])
    return Measurement(
        repeats=traced[0].repeats,
        latency_ns=round(sum(found.latency_ns for found in traced)),
        step_ns=round(sum(found.step_ns for found in traced)),
        attributed_ns=0,
        unknown_ns=round(sum(found.kernel_ns.get(UNKNOWN, 0.0) for found in traced)),
        spread=round(max(found.spread for found in traced), 4),
        fixed_ns=fixed_ns,
        moved_ns=moved_ns,
        pieces=len(traced),
        peak_bytes=memory.peak_bytes,
        scratch_bytes=memory.scratch_bytes,
        stream_ns=round(sum(found.stream_ns for found in traced)),
        copied_ns=round(sum(found.copied_ns for found in traced)),
    )


def _calibrated(
    graph: Graph,
    shown: Sequence[Layout],
    traced: Sequence[TracedLayout],
    measurement: Measurement,
) -> tuple[list[int], Measurement]:
    """Times that add up to the untraced step, where the device ran everything."""
    times = own_ns(graph, shown, [found.kernel_ns for found in traced])
    kernels = own_ns(graph, shown, [found.kernels for found in traced])
    attributed_ns = float(times.sum())
    scale, dispatch_ns = 1.0, 0.0
    if shown[0].whole and attributed_ns:
        busy_ns = measurement.latency_ns - measurement.fixed_ns - measurement.moved_ns
        left_ns = busy_ns - attributed_ns
        if left_ns >= 0:
            dispatch_ns = left_ns / float(kernels.sum())
        else:
            scale = max(0.5, 1 + left_ns / attributed_ns)
    final = times * scale + kernels * dispatch_ns
    return [round(float(ns)) for ns in final], replace(
        measurement,
        attributed_ns=round(attributed_ns),
        dispatch_ns=round(dispatch_ns),
        scale=round(scale, 4),
    )

"""Measures placed models, side by side on their cluster, against what their plans promise."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moirai_tf.bench.latencies import (
    BenchReport,
    BenchRow,
    Latencies,
    check_count,
    measure_latencies,
)
from moirai_tf.bench.models import (
    Loaded,
    PlacedModel,
    Signature,
    check_devices,
    fused,
    logical_cpus,
    opened,
    planned_graph,
    read_placed,
    read_signature,
)
from moirai_tf.bench.timeline import Timeline, predicted_timeline
from moirai_tf.bench.trace import Trace, trace_of, write_trace
from moirai_tf.cluster import Cluster
from moirai_tf.cost.inputs import Array, chosen_inputs
from moirai_tf.cost.layouts import alone
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.model.options import INPUTS_HELP
from moirai_tf.options import check_options, check_seconds, option
from moirai_tf.progress import stage
from moirai_tf.rewrite.make_plan import write_placed
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.plan_file import read_planned_schedule
from moirai_tf.runtime.devices import full_name
from moirai_tf.runtime.failures import explained

SHARED_THREADS = (
    "the devices are logical CPUs of one process and share its threads: measured times show what "
    "the placement costs there, not what separate devices would gain"
)


@dataclass(frozen=True)
class BenchOptions:
    """How placed models are measured."""

    repeats: int = option(30, "measured rounds; every model runs once per round")
    warmup: int = option(5, "least calls of every model before the measured rounds")
    single_device: bool = option(True, "also run everything on the best single device")
    inputs: str = option("", INPUTS_HELP)
    seed: int = option(0, "seed of generated inputs and of the order of runs")
    trace: str = option("", "trace file (JSON) to write, of the first placed model; empty: none")
    trace_steps: int = option(9, "traced steps; the one of median length is shown")
    timeout_s: float = option(120.0, "longest time in seconds that one step may take")


def bench(
    original_dir: str | Path,
    placed_dirs: Sequence[str | Path],
    cluster: Cluster | None = None,
    options: BenchOptions | None = None,
) -> BenchReport:
    """Runs placed models in turns on the cluster they were placed for.

    Each has a Session of its own with TensorFlow's defaults, Grappler included. A latency is what
    a caller waits: feeds go to the cluster's client device, results come from there.

    Args:
      original_dir: the model that was placed; only read.
      placed_dirs: outputs of `optimize` for one signature and the same input shapes; only read.
      cluster: their devices, with addresses; without them, or None, they are logical CPUs of this
        process.
      options: how often, and on what inputs.

    Raises:
      MoiraiError: a plan does not fit the original, the other plans or the cluster; a worker is
        missing or dies.
    """
    options = options or BenchOptions()
    check_options(options)
    check_seconds("timeout_s", options.timeout_s)
    for name, least in (("repeats", 1), ("warmup", 0), ("trace_steps", 1)):
        check_count(name, getattr(options, name), least)
    placed = read_placed(placed_dirs)
    cluster = cluster or logical_cpus(placed[0].plan)
    check_devices(cluster, placed)
    signature = read_signature(original_dir, placed)
    predicted = _predicted(signature, placed[0]) if options.trace else None
    singles = _singles(placed) if options.single_device else {}
    measured, steps = _measured(placed, singles, signature, cluster, options)
    report = _report(cluster, placed, singles, measured)
    if predicted is None:
        return report
    trace = _trace(cluster, report.row(placed[0].name), predicted, steps)
    write_trace(trace, options.trace)
    return replace(report, trace=trace)


def _measured(
    placed: Sequence[PlacedModel],
    singles: Iterable[str],
    signature: Signature,
    cluster: Cluster,
    options: BenchOptions,
) -> tuple[dict[str, Latencies], list[Any]]:
    """Latencies by name, and traced steps of the first placed model if a trace is asked for."""
    inputs = chosen_inputs(signature.graph, options.inputs, options.seed)
    with (
        explained("the signature cannot be run", "a latency is that of the signature, run whole"),
        ExitStack() as stack,
    ):
        with stage("load the models"):
            loaded = _loaded(placed, singles, signature, inputs, cluster, options, stack)
        measured = measure_latencies(
            {name: model.step() for name, model in loaded.items()},
            repeats=options.repeats,
            warmup=options.warmup,
            seed=options.seed,
        )
        traced = options.trace_steps if options.trace else 0
        with stage("trace", traced) as steps:
            traces = [steps.counted(loaded[placed[0].name].trace()) for _ in range(traced)]
        return measured, traces


def predicted_ns(plan: Plan) -> int | None:
    """The latency that a plan promises; None if it promises none."""
    return None if plan.summary is None else plan.summary.predicted_ns


def _predicted(signature: Signature, placed: PlacedModel) -> tuple[CoarseGraph, Timeline]:
    coarse = fused(planned_graph(placed, signature.graph), placed.plan)
    return coarse, predicted_timeline(read_planned_schedule(placed.directory), coarse)


def _trace(
    cluster: Cluster, row: BenchRow, predicted: tuple[CoarseGraph, Timeline], steps: Sequence[Any]
) -> Trace:
    devices = {full_name(device.name): device.name for device in cluster.devices}
    return replace(
        trace_of(row.name, devices, *predicted, steps),
        predicted_ns=row.predicted_ns,
        measured_ns=row.measured.median_ns,
    )


def _singles(placed: Sequence[PlacedModel]) -> dict[str, int | None]:
    """Best single device of the plans -> latency that is promised of it."""
    found: dict[str, int | None] = {}
    for one in placed:
        summary = one.plan.summary
        if summary is not None and summary.single_device is not None:
            found.setdefault(summary.single_device, summary.single_device_predicted_ns)
    return found


def _loaded(
    placed: Sequence[PlacedModel],
    singles: Iterable[str],
    signature: Signature,
    inputs: Mapping[str, Array],
    cluster: Cluster,
    options: BenchOptions,
    stack: ExitStack,
) -> dict[str, Loaded]:
    """Everything that runs, by name; temporary copies and Sessions end with the stack."""
    directories = {one.name: one.directory for one in placed}
    for device in singles:
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve() / "model"
        placement = alone(signature.graph, cluster, device)
        write_placed(signature.model, signature.graph, cluster, placement, copy)
        directories[_single_name(device)] = copy
    return {
        name: stack.enter_context(opened(path, signature, inputs, cluster, options.timeout_s))
        for name, path in directories.items()
    }


def _report(
    cluster: Cluster,
    placed: Sequence[PlacedModel],
    singles: Mapping[str, int | None],
    measured: Mapping[str, Latencies],
) -> BenchReport:
    rows = [BenchRow(_single_name(d), ns, measured[_single_name(d)]) for d, ns in singles.items()]
    for one in placed:
        device = None if one.plan.summary is None else one.plan.summary.single_device
        baseline = _single_name(device) if device is not None and device in singles else None
        rows.append(BenchRow(one.name, predicted_ns(one.plan), measured[one.name], baseline))
    shared = sum(device.local for device in cluster.devices) > 1
    return BenchReport(cluster.name, tuple(rows), (SHARED_THREADS,) if shared else ())


def _single_name(device: str) -> str:
    return f"all on {device}"

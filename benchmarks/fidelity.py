"""Predicted against measured latency, and the speed-up, on unequal workers and emulated GPUs.

Every model is profiled and placed on every cluster, and three plans are measured in turns: the best
single device, moirai_tf's plan, and a deliberately bad one (runs of operators dealt out in turn).
Plans of several devices carry their order; the same placements without it are measured too.

Workers are processes with a share of a core. GPUs are emulated: their time is a clock, so that a
whole host of them can be measured on two cores.

    python -m benchmarks.fidelity [--models=bert,two_tower] [--clusters=equal,half,four]
        [--repeats=15] [--output=rows.json]
    python -m benchmarks.fidelity --clusters=gpus --methods=m-etf,m-sct,getf,placeto
    python -m benchmarks.fidelity --clusters=gpu,gpus,equal_gpus,servers \
        --models=bert,gpt2,inception_v3,two_tower,ensemble,dlrm
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from absl import app, flags, logging

from benchmarks.cluster_models import MODELS
from benchmarks.emulated_clusters import emulated_cluster
from benchmarks.measured_plans import BAD, BEST, FREE, SINGLE, Row, Settings, rows
from laboratory import emulated_gpu
from moirai_tf.bench.local_cluster import local_cluster
from moirai_tf.runtime.child import Child

_WORKERS = {"equal": (1.0, 1.0), "half": (1.0, 0.5), "four": (0.8, 0.6, 0.4, 0.2)}
_MODELS = flags.DEFINE_list("models", list(MODELS), "models to run")
_WANTED = flags.DEFINE_list("clusters", list(_WORKERS), "clusters to run on")
_REPEATS = flags.DEFINE_integer("repeats", 15, "measured rounds")
_PROFILE_REPEATS = flags.DEFINE_integer("profile_repeats", 8, "measured runs of a profile")
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", 15.0, "seconds for the solver")
_VERIFY = flags.DEFINE_bool("verify", False, "prove moirai_tf's plans, which takes its time")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "rows of a request; 0: the model's own")
_SPLIT = flags.DEFINE_enum("split", "auto", ["auto", "on", "off"], "whether batches are divided")
_METHODS = flags.DEFINE_list("methods", [], "published methods to measure, too, such as m-sct")
_WORK = flags.DEFINE_string("work", "", "directory that keeps the models between runs")
_OUTPUT = flags.DEFINE_string("output", "", "file that keeps the rows (JSON)")

_CLEAR = 0.05
"""Predictions that differ by more must be ranked as the measurements are."""


def ranking(found: Sequence[Row]) -> tuple[int, int]:
    """(pairs of plans ranked as predicted, pairs whose predictions clearly differ)."""
    agree = total = 0
    for one in found:
        for other in found:
            same = (one.model, one.cluster) == (other.model, other.cluster)
            if same and one.predicted_ns > (1 + _CLEAR) * other.predicted_ns:
                total += 1
                agree += one.measured_ns > other.measured_ns
    return agree, total


def line(row: Row) -> str:
    """A row of the table."""
    return (
        f"| {row.model} | {row.cluster} | {row.plan} | {row.devices} | {row.status} "
        f"| {row.predicted_ns / 1e6:.1f} | {row.measured_ns / 1e6:.1f} | {100 * row.spread:.0f} % "
        f"| {100 * row.error:+.1f} % | {row.speedup:.2f} | {row.predicted_speedup:.2f} "
        f"| {row.most_speedup:.2f} | {row.verdict} |"
    )


def summary(found: Sequence[Row]) -> Iterator[str]:
    """What the table says in short."""
    rows = [row for row in found if not row.plan.endswith(FREE)]
    errors = [abs(row.error) for row in rows]
    agree, total = ranking(rows)
    best = [row for row in rows if row.plan == BEST]
    yield (
        f"{len(rows)} rows: median error {100 * np.median(errors):.1f} %, worst "
        f"{100 * max(errors):.1f} %; ranking agrees for {agree} of {total} clear pairs; lowest "
        f"speed-up {min(row.speedup for row in best):.2f}"
    )
    for plan in (SINGLE, BEST, BAD):
        own = [abs(row.error) for row in rows if row.plan == plan]
        yield f"{plan}: median error {100 * np.median(own):.1f} %, worst {100 * max(own):.1f} %"
    by_plan = {(row.model, row.cluster, row.plan): row for row in found}
    for plan in (BEST, BAD):
        gains = [
            row.measured_ns / by_plan[row.model, row.cluster, plan].measured_ns
            for row in found
            if row.plan == plan + FREE
        ]
        if gains:
            yield (
                f"{plan} without its order, {len(gains)} plans: takes {np.median(gains):.2f} x in "
                f"the median, {min(gains):.2f} x to {max(gains):.2f} x"
            )


def built(work: Path) -> Mapping[str, Path]:
    """Builds the wanted models, once."""
    paths = {name: work / name for name in _MODELS.value}
    for name, path in paths.items():
        if not path.exists():
            MODELS[name].build(path)
    return paths


def measured(models: Mapping[str, Path], kind: str, settings: Settings) -> Iterator[list[Row]]:
    """The rows of every model on one cluster."""
    if kind in _WORKERS:
        with local_cluster(_WORKERS[kind]) as workers:
            for name, model in models.items():
                yield rows(name, model, kind, workers.cluster, settings)
        return
    for name, model in models.items():
        cluster = emulated_cluster(kind, MODELS[name].gpu_memory_bytes)
        if any(device.task for device in cluster.devices):
            with emulated_gpu.servers(cluster) as running:
                yield rows(name, model, kind, running, settings)
            continue
        child = Child(
            f"measuring {name}",
            timeout_s=3600.0,
            longer="measure fewer models",
            environment=emulated_gpu.environment(cluster),
        )
        yield child.call(rows, name, model, kind, cluster, settings)


def main(_: Sequence[str]) -> None:
    """Prints the table row by row, then the summary."""
    logging.set_verbosity(logging.WARNING)
    settings = Settings(
        _REPEATS.value, _PROFILE_REPEATS.value, _TIME_LIMIT_S.value, _VERIFY.value,
        _BATCH_SIZE.value, _SPLIT.value, tuple(_METHODS.value),
    )  # fmt: skip
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as directory:
        models = built(Path(_WORK.value or directory))
        print("| model | cluster | plan | devices | status | predicted ms | measured ms | spread "
              "| error | speed-up | predicted | at most | verdict |\n"
              "|---|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
        for kind in _WANTED.value:
            for more in measured(models, kind, settings):
                found.extend(more)
                print("\n".join(map(line, more)), flush=True)
    print()
    print("\n".join(summary(found)))
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(json.dumps([asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    app.run(main)

"""The demo: a model on four unequal GPUs, predicted, proved and measured in two or three minutes.

The GPUs are emulated (docs/emulated_gpu.md): their time is a clock, so it needs no GPU, but a C
compiler. With --workers it is InceptionV3 on TensorFlow servers that are pinned to cores and
slowed, which are real and take longer. `make demo` runs this with everything it needs installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from moirai_tf.errors import MoiraiError
from moirai_tf.progress import stage
from tools import _flags

if TYPE_CHECKING:
    from moirai_tf import Cluster, Summary
    from moirai_tf.bench import BenchReport

_WORK_DIR = flags.DEFINE_string("work_dir", "build/demo", "where model and output go")
_WORKERS = flags.DEFINE_bool("workers", False, "InceptionV3 on TensorFlow servers on this CPU")
_SHARES = flags.DEFINE_multi_float(
    "shares", [1.0, 0.5], "share of a core that each worker gets, with --workers (repeatable)"
)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 299, "height and width, with --workers")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "images of one inference, with --workers")
_REPEATS = flags.DEFINE_integer("repeats", 10, "measured runs")

_GPU_BATCH_SIZE = 64
"""Kernels long enough for two cores to launch those of four GPUs in time."""
_QUICK = {"repeats": 10, "time_limit_s": 10.0, "split": "off"}
"""Whole batches: it is operators that the demo places, and one profile is sooner done than two."""
_GPUS = "an ensemble of eight convolutional nets on four unequal GPUs, which are emulated"
_NO_COMPILER = "no GPUs can be emulated here, so InceptionV3 is placed on two workers instead"
_NEXT_STEPS = """
Place your own model: moirai_optimize --saved_model_dir=model
On TensorFlow servers that are real and unequal: python -m benchmarks.demo --workers"""


def main() -> None:
    """Builds, places, verifies, measures and prints."""
    work = Path(_WORK_DIR.value)
    work.mkdir(parents=True, exist_ok=True)
    if _WORKERS.value:
        summary, report = _on_workers(work)
    else:
        try:
            summary, report = _on_gpus(work)
        except _NoCompilerError as error:
            print(f"{_NO_COMPILER}: {error}", flush=True)
            summary, report = _on_workers(work)
    facts = {"summary": summary.facts, "measured": report.facts}
    text = [summary.text(verbose=_flags.VERBOSE.value), "", *_measured(report), _NEXT_STEPS]
    _flags.tell("\n".join(text), facts)


def _measured(report: BenchReport) -> list[str]:
    """What was promised and what was measured, small enough for any terminal."""
    from moirai_tf.bench.trace import table
    from moirai_tf.cluster.units import milliseconds

    rows = [("", "predicted", "measured")]
    for row in report.rows:
        predicted = "-" if row.predicted_ns is None else milliseconds(row.predicted_ns)
        name = "this placement" if row.baseline else row.name.replace("/device:", "")
        rows.append((name, predicted, milliseconds(row.measured.median_ns)))
    placed = report.rows[-1].name
    gains = [report.predicted_speedup(placed), report.measured_speedup(placed)]
    rows.append(("speed-up", *("-" if gain is None else f"{gain:.2f}x   " for gain in gains)))
    return table(rows)


class _NoCompilerError(Exception):
    """The plugin that emulates GPUs cannot be compiled."""


def _on_gpus(work: Path) -> tuple[Summary, BenchReport]:
    """The whole way in processes that have the GPUs of the cluster file."""
    from benchmarks.demo_steps import build_ensemble, placed_and_measured
    from benchmarks.emulated_clusters import emulated_cluster
    from laboratory import emulated_gpu
    from moirai_tf.runtime.child import Child, without_gpus

    cluster = emulated_cluster("gpus")
    print(_GPUS, flush=True)
    with stage("compile the GPUs"):
        try:
            environment = emulated_gpu.environment(cluster)
        except MoiraiError as error:
            raise _NoCompilerError(error.rule) from error

    def child(purpose: str, variables: dict[str, str]) -> Child:
        return Child(
            purpose, timeout_s=1800.0, longer="use another machine", environment=variables
        )  # fmt: skip

    model, placed = work / "ensemble", work / "ensemble_placed"
    with stage("build the model"):
        child("building the model", without_gpus([])).call(build_ensemble, model)
    return child("the demo", environment).call(
        placed_and_measured, model, placed, cluster, {**_QUICK, "batch_size": _GPU_BATCH_SIZE}, 30
    )


def _on_workers(work: Path) -> tuple[Summary, BenchReport]:
    """The whole way on TensorFlow servers of this machine."""
    from benchmarks.demo_steps import fresh, placed_and_measured
    from tests.zoo import application

    model, placed = work / "inception_v3", work / "inception_v3_placed"
    with stage("build the model"):
        fresh(model, application("InceptionV3", _IMAGE_SIZE.value).build)
    with _workers() as cluster:
        options = {"batch_size": _BATCH_SIZE.value, "repeats": 10}
        return placed_and_measured(model, placed, cluster, options, _REPEATS.value)


@contextmanager
def _workers() -> Iterator[Cluster]:
    """A cluster of the wanted shares; of whole cores where the system allows no quota."""
    from moirai_tf.bench.local_cluster import local_cluster

    with ExitStack() as stack:
        try:
            workers = stack.enter_context(local_cluster(_SHARES.value))
        except MoiraiError as error:
            print(f"whole cores instead of shares of them: {error.rule}", flush=True)
            whole = min(len(_SHARES.value), len(os.sched_getaffinity(0)))
            workers = stack.enter_context(local_cluster([1.0] * whole))
        yield workers.cluster


if __name__ == "__main__":
    _flags.run(main)

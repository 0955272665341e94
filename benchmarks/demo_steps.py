"""What the demo does in processes of its own, which have other devices."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moirai_tf
from benchmarks.cluster_models import ensemble
from moirai_tf.bench import BenchOptions, BenchReport, bench
from moirai_tf.progress import stage

_NETS = 8


def build_ensemble(path: Path) -> None:
    """Writes the model of the demo on GPUs."""
    fresh(path, ensemble(_NETS))


def fresh(path: Path, build: Callable[[Path], object]) -> None:
    """Builds a model where there may be an old one."""
    if path.exists():
        shutil.rmtree(path)
    build(path)


def placed_and_measured(
    model: Path, placed: Path, cluster: moirai_tf.Cluster, options: dict[str, Any], repeats: int
) -> tuple[moirai_tf.Summary, BenchReport]:
    """Places a model, and measures it beside the best single device."""
    summary = moirai_tf.optimize(model, placed, cluster, overwrite=True, **options)
    with stage("measure"):
        return summary, bench(model, [placed], cluster, BenchOptions(repeats=repeats, warmup=3))

"""The demo: builds a real branching model, places it on real unequal workers, proves and times it.

InceptionV3 with randomised weights, on a local cluster of TensorFlow servers that are pinned to
cores and slowed; `make demo` runs this with everything it needs installed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from absl import flags

import moirai_tf
from moirai_tf.bench import BenchOptions, bench
from moirai_tf.bench.local_cluster import local_cluster
from moirai_tf.cluster import Cluster
from tests.zoo import application
from tools import _flags

_WORK_DIR = flags.DEFINE_string("work_dir", "build/demo", "where model and output go")
_SHARES = flags.DEFINE_multi_float(
    "shares", [1.0, 0.5], "share of a core that each worker gets (repeatable)"
)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 299, "height and width of the images")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "images of one inference")
_REPEATS = flags.DEFINE_integer("repeats", 10, "measured runs")

_NEXT_STEPS = """
Run it on any TensorFlow cluster whose servers have these names:
  with moirai_tf.connect("{output}", "cluster.yaml") as model:
      outputs = model({{name: array}})  # model.inputs says which

Another cluster of your own: moirai_cluster --shares=1.0 --shares=0.5 --output=cluster.yaml
A trace of prediction and measurement for ui.perfetto.dev: moirai_bench --trace=trace.json ..."""


def main() -> None:
    """Builds, places, verifies, measures and prints."""
    work = Path(_WORK_DIR.value)
    model, placed = work / "inception_v3", work / "inception_v3_placed"
    if model.exists():
        shutil.rmtree(model)
    work.mkdir(parents=True, exist_ok=True)
    print(f"building InceptionV3 with randomised weights in {model}", flush=True)
    application("InceptionV3", _IMAGE_SIZE.value).build(model)
    with _workers() as cluster:
        print("profiling, placing and verifying on the workers", flush=True)
        summary = moirai_tf.optimize(
            model, placed, cluster, batch_size=_BATCH_SIZE.value, repeats=10, overwrite=True
        )
        print(summary)
        print("measuring", flush=True)
        options = BenchOptions(repeats=_REPEATS.value, warmup=3)
        print(bench(model, [placed], cluster, options))
    print(_NEXT_STEPS.format(output=summary.output))


@contextmanager
def _workers() -> Iterator[Cluster]:
    """A cluster of the wanted shares; of whole cores where the system allows no quota."""
    with ExitStack() as stack:
        try:
            workers = stack.enter_context(local_cluster(_SHARES.value))
        except moirai_tf.MoiraiError as error:
            print(f"whole cores instead of shares of them: {error.rule}")
            whole = min(len(_SHARES.value), len(os.sched_getaffinity(0)))
            workers = stack.enter_context(local_cluster([1.0] * whole))
        yield workers.cluster


if __name__ == "__main__":
    _flags.run(main)

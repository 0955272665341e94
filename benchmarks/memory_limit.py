"""A model that fits on no worker alone, on workers that the kernel holds to their memory.

Dense layers of some hundred megabytes, profiled on workers without a limit, are placed on two
workers that are each limited to less than the model: one that took more would be killed. The table
shows, per worker, the limit, what the plan keeps there (weights and all outputs), what is alive at
one time, and what TensorFlow allocated.

    python -m benchmarks.memory_limit [--layers=24] [--width=2048] [--limit_mb=260]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
from absl import app, flags, logging

from moirai_tf import MoiraiError, MoiraiItem, default_pipeline
from moirai_tf.bench import BenchOptions, bench
from moirai_tf.bench.local_cluster import LocalCluster, local_cluster
from moirai_tf.bench.models import opened, read_placed, read_signature
from moirai_tf.cost.inputs import generate_inputs
from moirai_tf.cost.layouts import alone
from moirai_tf.cost.memory import peak_memory
from moirai_tf.cost.step_stats import allocated
from moirai_tf.cost.table_files import write_table
from moirai_tf.pipeline import need
from moirai_tf.rewrite.make_plan import write_placed
from tests.zoo import entry

_LAYERS = flags.DEFINE_integer("layers", 24, "dense layers")
_WIDTH = flags.DEFINE_integer("width", 2048, "units of each")
_LIMIT_MB = flags.DEFINE_integer("limit_mb", 260, "memory of each worker for the model")
_BATCH = 8


def build(path: Path) -> None:
    """A chain of dense layers with random weights."""
    inputs = keras.Input((_WIDTH.value,), name="features")
    tensor = inputs
    for _ in range(_LAYERS.value):
        tensor = keras.layers.Dense(_WIDTH.value, activation="relu")(tensor)
    model = keras.Model(inputs, tensor)
    entry.randomise(model.variables)
    model.export(path, format="tf_saved_model", verbose=False)


def profile_free(model: Path, work: Path) -> None:
    """Profiles on equal workers without a limit: memory does not enter the costs."""
    pipeline = default_pipeline(batch_size=_BATCH, repeats=5, warmup=2).until("profile")
    with local_cluster([1.0, 1.0]) as workers:
        item = pipeline.run(MoiraiItem(model, workers.cluster))
    write_table(need(item.costs), work / "costs.json")


def placed_row(model: Path, work: Path, workers: LocalCluster) -> None:
    """Places, verifies and runs the model; prints a row per worker and the latency."""
    pipeline = default_pipeline(
        batch_size=_BATCH, output_dir=str(work / "placed"), costs=str(work / "costs.json"),
        time_limit_s=20.0,
    )  # fmt: skip
    item = pipeline.run(MoiraiItem(model, workers.cluster))
    schedule = need(need(item.result).schedule)
    peaks = peak_memory(need(item.coarse), need(item.problem), schedule, need(item.costs))
    signature = read_signature(model, read_placed([work / "placed"]))
    inputs = generate_inputs(signature.graph)
    with opened(work / "placed", signature, inputs, workers.cluster, timeout_s=120) as loaded:
        loaded.step()()
        metadata = loaded.trace()
    print("| worker | limit MB | planned MB | alive MB | allocated MB |\n|---|---|---|---|---|")
    for number, device in enumerate(need(item.problem).devices):
        planned = need(item.plan).summary.devices[device.name].memory_bytes
        seen = allocated(metadata, device.name)
        print(
            f"| {device.name} | {_LIMIT_MB.value} | {planned / 1e6:.1f} "
            f"| {peaks[number].total_bytes / 1e6:.1f} | {seen.peak_bytes / 1e6:.1f} |"
        )
    options = BenchOptions(repeats=10, warmup=3, single_device=False)
    print(f"\n{bench(model, [work / 'placed'], workers.cluster, options)}")
    print(f"verified: {item.report}")


def alone_row(model: Path, work: Path, workers: LocalCluster) -> None:
    """Tries the whole model on one worker, which must end in a named failure."""
    signature = read_signature(model, read_placed([work / "placed"]))
    last = workers.cluster.devices[-1].name
    placement = alone(signature.graph, workers.cluster, last)
    write_placed(signature.model, signature.graph, workers.cluster, placement, work / "alone")
    inputs = generate_inputs(signature.graph)
    try:
        with opened(work / "alone", signature, inputs, workers.cluster, timeout_s=60) as loaded:
            loaded.step()()
    except MoiraiError as error:
        print(f"all on {last}: {error.rule}")
    else:
        print(f"all on {last}: it ran, so the limit did not hold")


def main(_: Sequence[str]) -> None:
    """Prints the table."""
    logging.set_verbosity(logging.WARNING)
    limit = _LIMIT_MB.value * 10**6
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        build(work / "model")
        nbytes = sum(f.stat().st_size for f in (work / "model" / "variables").iterdir())
        print(f"weights of {nbytes / 1e6:.1f} MB, workers with {_LIMIT_MB.value} MB each\n")
        profile_free(work / "model", work)
        with local_cluster([1.0, 1.0], memory_bytes=[limit, limit]) as workers:
            placed_row(work / "model", work, workers)
            alone_row(work / "model", work, workers)


if __name__ == "__main__":
    app.run(main)

"""Computed costs of GPUs against published figures: peaks, and latencies of TensorFlow: two tables.

python -m benchmarks.gpu_peaks
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import app, flags

from moirai_tf.cluster import Cluster, Device, Link
from moirai_tf.cost.coarse_problem import build_problem
from moirai_tf.cost.gpu_peaks import peak_flops
from moirai_tf.cost.options import ProfileOptions
from moirai_tf.cost.profile import profile
from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.graph.importer import import_graph
from moirai_tf.graph.options import ImportOptions
from moirai_tf.graph.prune import prune
from moirai_tf.model.saved_model import read_saved_model

_MODELS = flags.DEFINE_list("models", [], "models to compare; all if empty")

_CPU = Device("/device:CPU:0", "CPU", frequency_mhz=2500, num_cores=512,
              memory_bytes_per_s=120 * 10**9)  # fmt: skip


def _gpu(
    model: str, capability: str, multiprocessors: int, mhz: int, gb_per_s: int
) -> tuple[str, Device]:
    device = Device(
        "/device:GPU:0", "GPU", frequency_mhz=mhz, num_cores=multiprocessors, model=model,
        architecture=capability, memory_bytes_per_s=gb_per_s * 10**9,
    )  # fmt: skip
    return model, device


GPUS = dict((
    _gpu("P4", "6.1", 20, 1063, 192), _gpu("P100 SXM", "6.0", 56, 1480, 732),
    _gpu("V100 SXM", "7.0", 80, 1530, 900), _gpu("T4", "7.5", 40, 1590, 320),
    _gpu("A100 40GB", "8.0", 108, 1410, 1555), _gpu("A10", "8.6", 72, 1695, 600),
    _gpu("L4", "8.9", 58, 2040, 300), _gpu("H100 SXM", "9.0", 132, 1830, 3350),
    _gpu("B200", "10.0", 148, 1965, 7700), _gpu("RTX 5090", "12.0", 170, 2407, 1792),
))  # fmt: skip
"""Multiprocessors, boost clocks in MHz and GB/s of NVIDIA's datasheets. Of an H100, the clock of
its tensor cores; its lanes run at up to 1980 MHz."""
NOMINAL = {
    "P4": (5.5, None, None), "P100 SXM": (10.6, None, None), "V100 SXM": (15.7, None, 125),
    "T4": (8.1, None, 65), "A100 40GB": (19.5, 156, 312), "A10": (31.2, 62.5, 125),
    "L4": (30.3, 60, 121), "H100 SXM": (66.9, 495, 989), "B200": (75, 1125, 2250),
    "RTX 5090": (104.8, 104.8, 209.5),
}  # fmt: skip
"""TFLOP/s of NVIDIA's datasheets and whitepapers: FP32, TF32 and FP16 on tensor cores, dense."""
_GRAPPLER_LANES = 64


@dataclass(frozen=True)
class Published:
    """A latency of TensorFlow on a GPU that NVIDIA published."""

    model: str
    gpu: str
    batch: int
    milliseconds: float


# Model Zoo Results of the TensorFlow-2 quantization toolkit, "Baseline (TensorFlow)", batch 1. How
# they were measured is not said.
_TOOLKIT = (
    ("ResNet50", 7.95), ("ResNet50V2", 6.16), ("ResNet101", 15.92), ("ResNet101V2", 14.13),
    ("MobileNet", 1.99), ("MobileNetV2", 3.71), ("EfficientNetB0", 6.77),
)  # fmt: skip
# DeepLearningExamples, ResNet-50 v1.5, TensorFlow 1.15 of the container 20.06, FP32 or TF32.
_EXAMPLES = {
    "A100 40GB": ((1, 5.26), (8, 8.31), (64, 35.82), (256, 133.90)),
    "V100 SXM": ((1, 5.79), (8, 10.22), (64, 51.12), (256, 189.85)),
    "T4": ((1, 7.34), (8, 23.41), (64, 150.82), (256, 601.37)),
}
PUBLISHED = (
    *(Published(model, "A100 40GB", 1, ms) for model, ms in _TOOLKIT),
    *(Published("ResNet50", gpu, *row) for gpu, rows in _EXAMPLES.items() for row in rows),
)


class _BatchNorm(keras.layers.BatchNormalization):
    """Batch norm as one operator, as Keras 2 exported it; Keras 3 exports seven."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        size = inputs.shape[-1]
        gamma = self.gamma if self.scale else tf.ones([size])
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=gamma, offset=self.beta, mean=self.moving_mean,
            variance=self.moving_variance, epsilon=self.epsilon, is_training=False,
        )[0]  # fmt: skip


def main(_: list[str]) -> None:
    for line in (*peak_rows(), ""):
        print(line)
    for line in baseline_rows():
        print(line, flush=True)


def peak_rows() -> Iterator[str]:
    """Peaks that are computed, in TFLOP/s, beside Grappler's and NVIDIA's."""
    yield "| GPU | capability | Grappler | FP32 | nominal | TF32 | nominal | FP16 | nominal |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, gpu in GPUS.items():
        grappler = _GRAPPLER_LANES * 2 * (gpu.num_cores or 0) * (gpu.frequency_mhz or 0) / 1e6
        ours = [
            peak_flops(gpu, dtype, contraction=contraction) / 1e12
            for dtype, contraction in (("int32", False), ("float32", True), ("float16", True))
        ]
        pairs = [
            f"{peak:.1f} | {nominal or '-'}" if nominal else "- | -"
            for peak, nominal in zip(ours, NOMINAL[name], strict=True)
        ]
        yield f"| {name} | {gpu.architecture} | {grappler:.1f} | {' | '.join(pairs)} |"


def baseline_rows() -> Iterator[str]:
    """Latencies that are computed beside published ones."""
    yield "| model | GPU | batch | published ms | computed ms | computed / published | as Keras 3 |"
    yield "|---|---|---|---|---|---|---|"
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(p.model for p in PUBLISHED):
            if _MODELS.value and name not in _MODELS.value:
                continue
            path = _built(name, Path(folder), one_operator=True)
            in_pieces = _built(name, Path(folder), one_operator=False)
            for row in (p for p in PUBLISHED if p.model == name):
                gpu = GPUS[row.gpu]
                ours = computed_ms(path, gpu, row.batch)
                keras_3 = f"{computed_ms(in_pieces, gpu, 1):.2f}" if row.batch == 1 else "-"
                ratios.append(ours / row.milliseconds)
                yield (
                    f"| {name} | {row.gpu} | {row.batch} | {row.milliseconds} | {ours:.2f} "
                    f"| {ratios[-1]:.2f} | {keras_3} |"
                )
    yield f"\nratios {min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}"


def computed_ms(directory: Path, gpu: Device, batch: int) -> float:
    """Latency of a model on one GPU by computed costs, without feeds and fetches."""
    model = read_saved_model(directory)
    graph = prune(import_graph(model, ImportOptions(batch_size=batch)))
    links = (Link(_CPU.name, gpu.name, 0, 10**12), Link(gpu.name, _CPU.name, 0, 10**12))
    cluster = Cluster("one GPU", (_CPU, gpu), links)
    coarse, _ = coarsen(graph, device_types=["CPU", "GPU"])
    costs = profile(model, coarse, cluster, ProfileOptions(source="analytical"))
    problem = build_problem(coarse, cluster, costs)
    return sum(operator.compute_ns[1] or 0 for operator in problem.operators) / 1e6


def _built(name: str, folder: Path, *, one_operator: bool) -> Path:
    keras.utils.clear_session()
    model = getattr(keras.applications, name)(weights=None)
    if one_operator:
        model = keras.models.clone_model(model, clone_function=_with_one_operator)
    path = folder / f"{name}_{one_operator}"
    model.export(path, format="tf_saved_model", verbose=False)
    return path


def _with_one_operator(layer: keras.layers.Layer) -> keras.layers.Layer:
    if isinstance(layer, keras.layers.BatchNormalization):
        return _BatchNorm.from_config(layer.get_config())
    return layer.__class__.from_config(layer.get_config())


if __name__ == "__main__":
    app.run(main)

"""Measures placed models on their cluster and shows prediction and measurement side by side."""

from moirai_tf.bench.bench import BenchOptions, bench
from moirai_tf.bench.latency import Latencies, measure_latencies, ratio
from moirai_tf.bench.report import BenchReport, BenchRow

__all__ = [
    "BenchOptions",
    "BenchReport",
    "BenchRow",
    "Latencies",
    "bench",
    "measure_latencies",
    "ratio",
]

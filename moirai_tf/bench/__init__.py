"""The test bench: local clusters of unequal servers, and placed models measured on their cluster.

Prediction and measurement are shown side by side, as a table and as a trace.
"""

from moirai_tf.bench.bench import BenchOptions, bench
from moirai_tf.bench.latencies import BenchReport, BenchRow, Latencies, measure_latencies, ratio

__all__ = [
    "BenchOptions",
    "BenchReport",
    "BenchRow",
    "Latencies",
    "bench",
    "measure_latencies",
    "ratio",
]

"""Time and memory of coarsening for graphs up to 100,000 operators: a table.

python -m benchmarks.fusion_scale --operators=1000,10000,100000
"""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import dataclass

from absl import app, flags

from moirai_tf.fusion.coarsen import coarsen
from tests.graphs import branching_network

_OPERATORS = flags.DEFINE_list("operators", ["1000", "10000", "100000"], "sizes of the graphs")


@dataclass(frozen=True, slots=True)
class Scale:
    """One measurement."""

    operators: int
    fused: int
    seconds: float
    """Of CPU time, which other programs do not lengthen."""
    peak_bytes: int
    """Most memory that Python held for coarsening at once; the fine graph not counted."""


def main(_: list[str]) -> None:
    print("| operators | after fusion | CPU seconds | per 1,000 operators | peak MB |")
    print("|---|---|---|---|---|")
    for size in map(int, _OPERATORS.value):
        done = measure(size)
        per_thousand = 1000 * done.seconds / done.operators
        print(
            f"| {done.operators:,} | {done.fused:,} | {done.seconds:.1f} | {per_thousand:.3f} "
            f"| {done.peak_bytes / 1e6:.0f} |",
            flush=True,
        )


def measure(operators: int) -> Scale:
    """Coarsens an Inception-like graph twice: for the time, and for the memory."""
    graph = branching_network(operators)
    start = time.process_time()
    coarse, _ = coarsen(graph)
    seconds = time.process_time() - start
    tracemalloc.start()
    coarsen(graph)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Scale(len(graph), len(coarse), seconds, peak)


if __name__ == "__main__":
    app.run(main)

"""Wall-clock times of steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np


def elapsed_ns(step: Callable[[], object]) -> int:
    """How long one call takes."""
    start = time.perf_counter_ns()
    step()
    return time.perf_counter_ns() - start


def medians_ns(steps: Sequence[Callable[[], object]], *, repeats: int, warmup: int) -> list[float]:
    """Median time of each step; all take turns, so that drift hits them alike."""
    samples = [[elapsed_ns(step) for step in steps] for _ in range(warmup + repeats)]
    return [float(median) for median in np.median(samples[warmup:], axis=0)]

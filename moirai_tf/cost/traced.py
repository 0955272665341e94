"""What one placement showed of the device that was looked at, in untraced and traced steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moirai_tf.cost.layouts import Layout
from moirai_tf.cost.step_stats import Allocated
from moirai_tf.cost.xplane import UNKNOWN
from moirai_tf.graph.graph import Graph


@dataclass(frozen=True)
class TracedLayout:
    """Times in nanoseconds; by operator (or `UNKNOWN`) where they are of operators."""

    kernel_ns: Mapping[int, float]
    kernels: Mapping[int, float]
    """How many kernels ran."""
    wait_ns: Mapping[int, float]
    """How long a GPU had nothing to do before an operator's kernels; empty for a CPU."""
    latency_ns: float
    """Of an untraced step, as its client sees it."""
    step_ns: float
    """Of a traced one."""
    spread: float
    """Of the untraced steps: between the quartiles, relative to the median."""
    memory: Allocated
    repeats: int
    stream_ns: float
    """All kernels on a GPU's stream."""
    copied_ns: float
    """All copies from and to a GPU."""


def own_ns(
    graph: Graph, shown: Sequence[Layout], found: Sequence[Mapping[int, float]]
) -> npt.NDArray[Any]:
    """By operator, what the layouts found of those that were on the device looked at."""
    total = np.zeros(len(graph))
    for layout, by_operator in zip(shown, found, strict=True):
        for owner, value in by_operator.items():
            if owner != UNKNOWN and layout.placement[graph.operators[owner].name] == layout.device:
                total[owner] = value
    return total

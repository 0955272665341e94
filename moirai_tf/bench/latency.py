"""End-to-end latency of several ways to run one signature; drift hits all of them alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from moirai_tf.errors import MoiraiError
from moirai_tf.runtime.timing import elapsed_ns, warm_up


@dataclass(frozen=True)
class Latencies:
    """The latency of one run, once per round."""

    samples_ns: tuple[int, ...]

    @property
    def median_ns(self) -> int:
        """The middle of the samples."""
        return round(float(np.median(self.samples_ns)))

    @property
    def quartiles_ns(self) -> tuple[int, int]:
        """A quarter of the samples is below the first, a quarter above the second."""
        low, high = np.percentile(self.samples_ns, (25, 75))
        return round(float(low)), round(float(high))

    @property
    def spread(self) -> float:
        """Distance of the quartiles, relative to the median."""
        low, high = self.quartiles_ns
        return (high - low) / self.median_ns if self.median_ns else 0.0


def measure_latencies(
    runs: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int, seed: int = 0
) -> dict[str, Latencies]:
    """Calls every run once per round, in an order that changes from round to round.

    Args:
      runs: name -> a call that runs the signature once and returns when its results are here.
      repeats: rounds that count.
      warmup: calls of every run before them; more follow while it still gets faster.
      seed: of the orders.

    Returns:
      Name -> latencies in nanoseconds, one per round: those of equal position belong together.

    Raises:
      MoiraiError: there is nothing to repeat.
    """
    check_count("repeats", repeats, 1)
    check_count("warmup", warmup, 0)
    order = list(runs)
    generator = random.Random(seed)
    samples: dict[str, list[int]] = {name: [] for name in runs}
    for run in runs.values():
        warm_up(run, warmup)
    for _ in range(repeats):
        generator.shuffle(order)
        for name in order:
            samples[name].append(elapsed_ns(runs[name]))
    return {name: Latencies(tuple(values)) for name, values in samples.items()}


def check_count(name: str, value: int, least: int) -> None:
    """Refuses a number of runs that is too small.

    Raises:
      MoiraiError: naming the option.
    """
    if value < least:
        raise MoiraiError(
            f"{name} is {value}",
            why="what is shown is the median of several runs",
            fix=f"give {least} or more",
        )


def ratio(one: Latencies, other: Latencies) -> float:
    """How many times as long `one` takes as `other`: the median of the ratios of each round.

    What slows a machine down for a while slows both down, so it cancels within a round.
    """
    pairs = zip(one.samples_ns, other.samples_ns, strict=True)
    return float(np.median([first / max(second, 1) for first, second in pairs]))

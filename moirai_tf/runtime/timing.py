"""Wall-clock times of steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

_LONG_S = 3.0
LEAST_STEPS = 7
"""Repetitions of what takes long."""
_ROUND = 5
_MOST_ROUNDS = 12
_STILL_FALLING = 0.98
"""A round whose median is below this part of the one before says that there is more to come."""


def elapsed_ns(step: Callable[[], object]) -> int:
    """How long one call takes."""
    start = time.perf_counter_ns()
    step()
    return time.perf_counter_ns() - start


def enough(repeats: int, least: int = LEAST_STEPS) -> Iterator[int]:
    """Numbers of repetitions: so many, or fewer of what takes long.

    Long steps differ less from each other, and their medians need fewer of them.

    Args:
      repeats: of what takes no more than three seconds in all.
      least: of what takes longer.
    """
    end_s = time.monotonic() + _LONG_S
    for number in range(repeats):
        if number >= least and time.monotonic() > end_s:
            return
        yield number


def medians_ns(steps: Sequence[Callable[[], object]], *, repeats: int, warmup: int) -> list[float]:
    """Median time of each step; all take turns, so that drift hits them alike."""
    samples = [[elapsed_ns(step) for step in steps] for _ in range(warmup + repeats)]
    return [float(median) for median in np.median(samples[warmup:], axis=0)]


def warm_up(step: Callable[[], object], least: int) -> list[int]:
    """Calls a step until it no longer gets faster.

    The first steps of a server that has just started are up to a third slower for seconds: its
    memory is still to be touched for the first time.

    Args:
      step: what is called.
      least: calls that are made in any case.

    Returns:
      Nanoseconds of the last calls, which were as fast as it gets.
    """
    latest: list[int] = []
    for _ in range(least - _ROUND):
        step()
    before_ns = math.inf
    for _ in range(_MOST_ROUNDS):
        latest = [elapsed_ns(step) for _ in enough(_ROUND, 3)]
        round_ns = float(np.median(latest))
        if round_ns > _STILL_FALLING * before_ns:
            break
        before_ns = round_ns
    return latest

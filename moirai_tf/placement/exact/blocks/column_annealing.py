"""One column per block within memory, by annealing over the columns that prices brought."""

from __future__ import annotations

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.exact.blocks.memory_prices import Choices
from moirai_tf.placement.problem import IntArray

_LONGEST_WINDOW = 3
_RUNS = 0.1
"""Share of trials that send a run of blocks of any length to one device."""
_BIAS, _BIAS_OF_RUNS = 3, 12
"""Power of a random number below 1 that picks a column; cheap ones come first."""
_BALANCE = 200
"""Steps after which the cost of overfull devices is raised or lowered."""
_WARMTH = 30
"""Mean time of a block over the temperature at the start."""
_COOLING = 1e-3
"""Temperature at the end, relative to that at the start."""


@compiled
def anneal(
    chosen_from: Choices,
    chosen: IntArray,
    price: FloatArray,
    steps: int,
    seed: int,
    best: IntArray,
) -> float:
    """Replaces the columns of a few neighbouring blocks at a time.

    What does not fit is paid for, ever more dearly, and never kept.

    Args:
      chosen_from: the columns.
      chosen: column of each block, a path; changed.
      price: of each device's whole memory, for what is over it.
      steps: number of trials.
      seed: of the random numbers.
      best: output: the least time within memory, if any was met.

    Returns:
      Its ticks; infinity if none was met.
    """
    np.random.seed(seed)
    devices = chosen_from.share.shape[1]
    blocks = len(chosen)
    used = np.zeros(devices)
    ticks = 0.0
    for column in chosen:
        used += chosen_from.share[column]
        ticks += chosen_from.ticks[column]
    best_ticks = ticks if used.max() <= 1.0 else np.inf
    best[:] = chosen
    window = np.zeros(blocks, dtype=np.int64)
    changed = np.zeros(devices)
    warmth = max(1.0, ticks / blocks / _WARMTH)
    dear = 1.0
    full = False
    for step in range(steps):
        temperature = warmth * _COOLING ** (step / steps)
        if step % _BALANCE == 0:
            dear = dear * 1.1 if full else max(1.0, dear / 1.1)
            full = used.max() > 1.0
        changed[:] = used
        begin, length, longer = _propose(chosen_from, chosen, window, changed)
        if longer == np.inf:
            continue
        gain = -longer
        for k in range(devices):
            over_before, over_after = max(0.0, used[k] - 1.0), max(0.0, changed[k] - 1.0)
            gain += dear * price[k] * (over_before - over_after)
        if gain < 0 and np.random.random() >= np.exp(gain / temperature):
            continue
        used[:] = changed
        ticks += longer
        chosen[begin : begin + length] = window[:length]
        if ticks < best_ticks and used.max() <= 1.0:
            best_ticks = ticks
            best[:] = chosen
    return best_ticks


@compiled
def _propose(
    chosen_from: Choices, chosen: IntArray, window: IntArray, used: FloatArray
) -> tuple[int, int, float]:
    """Other columns for a few neighbouring blocks, with the same devices at both ends.

    Args:
      chosen_from: the columns.
      chosen: column of each block.
      window: output: the new columns.
      used: share of each device's memory; changed by what the new columns use.

    Returns:
      The first block, how many there are, and how many ticks more the new columns take; infinity
      if a device has no column to the next.
    """
    devices, blocks = len(used), len(chosen)
    run = np.random.randint(devices) if np.random.random() < _RUNS else -1
    length = 1 + np.random.randint(_LONGEST_WINDOW)
    if run >= 0:
        length = int(blocks ** np.random.random())
    length = min(blocks, max(1, length))
    begin = np.random.randint(blocks - length + 1)
    device = chosen_from.entry[chosen[begin]]
    longer = 0.0
    for place in range(length):
        old = chosen[begin + place]
        after = run if run >= 0 else np.random.randint(devices)
        if place == length - 1:
            after = chosen_from.exit[old]
        arc = (chosen_from.kind_of[begin + place] * devices + device) * devices + after
        first, end = chosen_from.first[arc], chosen_from.first[arc + 1]
        if first == end:
            return begin, length, np.inf
        rank = np.random.random() ** (_BIAS_OF_RUNS if run >= 0 else _BIAS)
        window[place] = first + int((end - first) * rank)
        device = after
        longer += chosen_from.ticks[window[place]] - chosen_from.ticks[old]
        for k in range(devices):
            used[k] += chosen_from.share[window[place], k] - chosen_from.share[old, k]
    return begin, length, longer

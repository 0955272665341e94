"""Simulated annealing of an assignment's largest load."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.arrays import IntArray
from moirai_tf.placement.compiled import compiled_lean
from moirai_tf.placement.improve.load_moves import Move, change, undo
from moirai_tf.placement.improve.load_network import Loads, Network, largest_ns, overfull


class Best(NamedTuple):
    """The best assignment so far; the arrays are changed in place."""

    device: IntArray
    """Of each unit."""
    bottleneck_ns: IntArray
    """(1,)"""


def new_best(loads: Loads) -> Best:
    """The present assignment as the best."""
    return Best(
        device=loads.device.copy(),
        bottleneck_ns=np.array([loads.load_ns.max()], dtype=np.int64),
    )


@compiled_lean
def anneal(
    network: Network,
    loads: Loads,
    best: Best,
    move: Move,
    steps: int,
    hot_ns: float,
    cold_ns: float,
    target_ns: int,
    seed: int,
) -> None:
    """Moves units while the temperature falls geometrically; stops when no load is above target.

    What is lowered is the 4-norm of the loads above `target_ns`: near the largest, but every
    overloaded device and channel counts. Source: Kirkpatrick, Gelatt and Vecchi 1983.
    """
    np.random.seed(seed)
    cooling = (cold_ns / hot_ns) ** (1 / steps)
    temperature_ns, present_ns = hot_ns, _excess_ns(loads, target_ns)
    for _ in range(steps):
        temperature_ns *= cooling
        count = change(network, loads, move)
        excess_ns = np.inf if overfull(loads) else _excess_ns(loads, target_ns)
        if excess_ns > present_ns - temperature_ns * np.log(1 - np.random.random()):
            undo(network, loads, move, count)
            continue
        present_ns = excess_ns
        bottleneck_ns = largest_ns(loads)
        if bottleneck_ns < best.bottleneck_ns[0]:
            best.bottleneck_ns[0] = bottleneck_ns
            for unit in range(len(loads.device)):
                best.device[unit] = loads.device[unit]
            if bottleneck_ns <= target_ns:
                return


@compiled_lean
def _excess_ns(loads: Loads, target_ns: int) -> float:
    total = 0.0
    for load_ns in loads.load_ns:
        if load_ns > target_ns:
            square = float(load_ns - target_ns) ** 2
            total += square * square
    return np.sqrt(np.sqrt(total))  # type: ignore[no-any-return]

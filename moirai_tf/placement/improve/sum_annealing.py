"""Simulated annealing of a weighted sum of makespan and bottleneck, the order being fixed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.arrays import Arrays, IntArray
from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled_lean
from moirai_tf.placement.evaluate.insertion import State, play
from moirai_tf.placement.improve.load_moves import Move, change, undo
from moirai_tf.placement.improve.load_network import Loads, Network, largest_ns, overfull


class Timed(NamedTuple):
    """What turns an assignment into a makespan, and the best so far; changed in place."""

    order: IntArray
    """Operators, producers first."""
    unit_of: IntArray
    """Unit of each operator."""
    assignment: IntArray
    """Device of each operator, for playing."""
    device: IntArray
    """Of each unit in the best assignment."""
    value_ns: FloatArray
    """(2,): the sum of the best assignment and of the present one."""


@compiled_lean
def anneal_sum(
    arrays: Arrays,
    state: State,
    network: Network,
    loads: Loads,
    timed: Timed,
    move: Move,
    steps: int,
    hot_ns: float,
    cold_ns: float,
    weight: float,
    seed: int,
) -> None:
    """Moves units while the temperature falls geometrically; every change is played.

    Source: Kirkpatrick, Gelatt and Vecchi 1983.
    """
    np.random.seed(seed)
    cooling = (cold_ns / hot_ns) ** (1 / steps)
    temperature_ns = hot_ns
    for _ in range(steps):
        temperature_ns *= cooling
        count = change(network, loads, move)
        enough_ns = timed.value_ns[1] - temperature_ns * np.log(1 - np.random.random())
        value_ns = sum_ns(arrays, state, loads, timed, weight, enough_ns)
        if value_ns > enough_ns:
            undo(network, loads, move, count)
            continue
        timed.value_ns[1] = value_ns
        if value_ns < timed.value_ns[0]:
            timed.value_ns[0] = value_ns
            for unit in range(len(loads.device)):
                timed.device[unit] = loads.device[unit]


@compiled_lean
def sum_ns(
    arrays: Arrays, state: State, loads: Loads, timed: Timed, weight: float, enough_ns: float
) -> float:
    """The weighted sum; infinite without room, or where the bottleneck alone is above enough.

    The makespan is never below the bottleneck, so neither is the sum.
    """
    bottleneck_ns = largest_ns(loads)
    if overfull(loads) or bottleneck_ns > enough_ns:
        return np.inf
    for operator in range(len(timed.unit_of)):
        timed.assignment[operator] = loads.device[timed.unit_of[operator]]
    makespan_ns = play(arrays, state, timed.order, timed.assignment)
    return weight * makespan_ns + (1 - weight) * bottleneck_ns

"""Moves of local search over assignments: units change devices, alone, in pairs or in runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.arrays import IntArray
from moirai_tf.placement.compiled import compiled_lean
from moirai_tf.placement.improve.load_network import Loads, Network, relocate

_LONGEST_RUN = 32
_NEAR, _ANYWHERE, _SWAP = 0.5, 0.65, 0.8
"""Up to these a random number means: a unit to a neighbour's device, to any device, two units
exchanged; beyond the last, a run of units in topological order to the device beside it."""


class Move(NamedTuple):
    """How to take a move back; the arrays are changed in place."""

    units: IntArray
    """Units that it has changed, in order."""
    devices: IntArray
    """Where they were."""


def new_move() -> Move:
    """Room for a move."""
    return Move(*(np.zeros(_LONGEST_RUN, dtype=np.int64) for _ in Move._fields))


@compiled_lean
def change(network: Network, loads: Loads, move: Move) -> int:
    """A random move; how many units it has changed."""
    unit = np.random.randint(len(loads.device))
    kind = np.random.random()
    if kind < _NEAR:
        other = _neighbour(network, unit)
        return _move(network, loads, move, unit, loads.device[other], 0)
    if kind < _ANYWHERE:
        device = np.random.randint(len(loads.free_bytes))
        return _move(network, loads, move, unit, device, 0)
    if kind < _SWAP:
        other = np.random.randint(len(loads.device))
        here, there = loads.device[unit], loads.device[other]
        if network.work_ns[unit, there] < 0 or network.work_ns[other, here] < 0:
            return 0
        count = _move(network, loads, move, unit, there, 0)
        return _move(network, loads, move, other, here, count)
    return _move_run(network, loads, move, network.position[unit])


@compiled_lean
def _neighbour(network: Network, unit: int) -> int:
    """A random unit that shares a tensor; without any, the unit itself."""
    first, last = network.near_at[unit], network.near_at[unit + 1]
    if first == last:
        return unit
    return int(network.near[np.random.randint(first, last)])


@compiled_lean
def _move_run(network: Network, loads: Loads, move: Move, place: int) -> int:
    """Units from a place on, as many as chance says, to the device of the one before or after."""
    last = min(place + 2 + np.random.randint(_LONGEST_RUN - 2), len(network.order))
    beside = place - 1 if np.random.random() < 0.5 else last
    if beside < 0 or beside >= len(network.order):
        return 0
    target = loads.device[network.order[beside]]
    count = 0
    for position in range(place, last):
        count = _move(network, loads, move, network.order[position], target, count)
    return count


@compiled_lean
def _move(network: Network, loads: Loads, move: Move, unit: int, target: int, count: int) -> int:
    """Moves one unit if it can and must; how many units the move has changed by now."""
    if loads.device[unit] == target or network.work_ns[unit, target] < 0:
        return count
    move.units[count] = unit
    move.devices[count] = loads.device[unit]
    relocate(network, loads, unit, target)
    return count + 1


@compiled_lean
def undo(network: Network, loads: Loads, move: Move, count: int) -> None:
    """Takes back a move that has changed so many units."""
    for index in range(count - 1, -1, -1):
        relocate(network, loads, move.units[index], move.devices[index])

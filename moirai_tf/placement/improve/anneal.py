"""Simulated annealing inside one window: operators change devices and places in the order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.arrays import Arrays, IntArray
from moirai_tf.placement.compiled import compiled_lean
from moirai_tf.placement.evaluate.insertion import State
from moirai_tf.placement.improve.plan import (
    Plan,
    Units,
    can_run,
    earliest_position,
    latest_position,
    relocate,
    rent_ns,
    shift,
)
from moirai_tf.placement.improve.window import (
    Outside,
    look_back,
    play_range,
    remember,
    restore,
    value,
)

_LONGEST_RUN = 12


class Move(NamedTuple):
    """How to take a move back; the arrays are changed in place."""

    units: IntArray
    """Units that changed devices, in order."""
    devices: IntArray
    """Where they were."""
    counts: IntArray
    """(3,): how many, and the shift's source and target position."""


class Saved(NamedTuple):
    """Copies of the window's part of a plan: 0 as it was found, 1 the best so far."""

    order: IntArray
    """(2, n)"""
    assignment: IntArray
    """(2, n), by operator."""
    value_ns: IntArray
    """(3,): makespan as it was found, value of the best, value of the present plan; the price of
    memory is in all of them."""


def new_move() -> Move:
    """Room for a move."""
    return Move(*(np.zeros(size, dtype=np.int64) for size in (_LONGEST_RUN, _LONGEST_RUN, 3)))


def new_saved(operators: int) -> Saved:
    """Room for two copies."""
    return Saved(
        order=np.zeros((2, operators), dtype=np.int64),
        assignment=np.zeros((2, operators), dtype=np.int64),
        value_ns=np.zeros(3, dtype=np.int64),
    )


@compiled_lean
def open_window(
    arrays: Arrays,
    plan: Plan,
    state: State,
    outside: Outside,
    saved: Saved,
    first: int,
    last: int,
) -> None:
    """Plays a plan and gets ready to change it between two positions."""
    state.intervals[:] = 0
    makespan_ns = play_range(arrays, state, plan, 0, first)
    remember(arrays, state, plan, outside, first, last)
    makespan_ns = max(makespan_ns, play_range(arrays, state, plan, first, len(plan.order)))
    look_back(arrays, state, plan, outside, last)
    restore(arrays, state, plan, outside, first, len(plan.order))
    paid_ns = rent_ns(plan)
    saved.value_ns[0] = paid_ns + makespan_ns
    saved.value_ns[1:] = paid_ns + value(arrays, state, plan, outside, first, last, np.inf)
    _save(plan, saved, 0, first, last)
    _save(plan, saved, 1, first, last)


@compiled_lean
def anneal(
    arrays: Arrays,
    units: Units,
    plan: Plan,
    state: State,
    outside: Outside,
    move: Move,
    saved: Saved,
    first: int,
    last: int,
    steps: int,
    temperature_ns: float,
    seed: int,
) -> None:
    """Changes an open window at one temperature.

    Source: Kirkpatrick, Gelatt and Vecchi 1983.
    """
    np.random.seed(seed)
    for _ in range(steps):
        if not _change(arrays, units, plan, move, first, last):
            continue
        enough_ns = saved.value_ns[2] - temperature_ns * np.log(1 - np.random.random())
        paid_ns = rent_ns(plan)
        restore(arrays, state, plan, outside, first, last)
        found_ns = paid_ns + value(arrays, state, plan, outside, first, last, enough_ns - paid_ns)
        if found_ns > enough_ns:
            _take_back(units, plan, move)
            continue
        saved.value_ns[2] = found_ns
        if found_ns < saved.value_ns[1]:
            saved.value_ns[1] = found_ns
            _save(plan, saved, 1, first, last)


@compiled_lean
def close_window(
    arrays: Arrays,
    units: Units,
    plan: Plan,
    state: State,
    saved: Saved,
    first: int,
    last: int,
    error_ns: float,
) -> int:
    """Plays the whole; the makespan.

    The present plan stays if its value was right but for `error_ns`. If not, the best one takes
    its place, and if that is worse than what was found in the beginning, then that does.
    """
    makespan_ns = _played(arrays, state, plan)
    if makespan_ns + rent_ns(plan) <= saved.value_ns[2] + error_ns:
        return makespan_ns
    _load(units, plan, saved, 1, first, last)
    makespan_ns = _played(arrays, state, plan)
    if makespan_ns + rent_ns(plan) <= saved.value_ns[0]:
        return makespan_ns
    _load(units, plan, saved, 0, first, last)
    return _played(arrays, state, plan)


@compiled_lean
def _played(arrays: Arrays, state: State, plan: Plan) -> int:
    state.intervals[:] = 0
    return play_range(arrays, state, plan, 0, len(plan.order))


@compiled_lean
def _save(plan: Plan, saved: Saved, copy: int, first: int, last: int) -> None:
    for index in range(first, last):
        operator = plan.order[index]
        saved.order[copy, index] = operator
        saved.assignment[copy, operator] = plan.assignment[operator]


@compiled_lean
def _load(units: Units, plan: Plan, saved: Saved, copy: int, first: int, last: int) -> None:
    for index in range(first, last):
        operator = saved.order[copy, index]
        plan.order[index] = operator
        plan.position[operator] = index
        if plan.assignment[operator] != saved.assignment[copy, operator]:
            relocate(units, plan, units.of[operator], saved.assignment[copy, operator])


@compiled_lean
def _change(arrays: Arrays, units: Units, plan: Plan, move: Move, first: int, last: int) -> bool:
    """A random move within the window; False if it would break a rule and none was made."""
    move.counts[:] = 0
    kind = np.random.random()
    index = np.random.randint(first, last)
    if kind < 0.4:
        return _reorder(arrays, plan, move, index, first, last)
    if kind < 0.5:
        other = np.random.randint(first, last)
        return _exchange(arrays, units, plan, move, index, other, first, last)
    device = np.random.randint(arrays.sends_at)
    longest = 1 if kind < 0.85 else np.random.randint(2, _LONGEST_RUN + 1)
    return _move_run(arrays, units, plan, move, index, device, longest, first, last)


@compiled_lean
def _reorder(arrays: Arrays, plan: Plan, move: Move, index: int, first: int, last: int) -> bool:
    """One operator goes to another place between its producers and consumers."""
    operator = plan.order[index]
    low = earliest_position(arrays, plan, operator, first)
    high = latest_position(arrays, plan, operator, last - 1)
    if low >= high:
        return False
    target = np.random.randint(low, high + 1)
    move.counts[1], move.counts[2] = index, target
    shift(plan, index, target)
    return bool(index != target)


@compiled_lean
def _exchange(
    arrays: Arrays,
    units: Units,
    plan: Plan,
    move: Move,
    index: int,
    other: int,
    first: int,
    last: int,
) -> bool:
    """Two units exchange their devices."""
    one, two = plan.order[index], plan.order[other]
    here, there = plan.assignment[one], plan.assignment[two]
    if here == there:
        return False
    _take(units, plan, move, units.of[one], there)
    _take(units, plan, move, units.of[two], here)
    inside = _inside(units, plan, units.of[one], first, last)
    inside = inside and _inside(units, plan, units.of[two], first, last)
    able = can_run(arrays, units, units.of[one], there)
    able = able and can_run(arrays, units, units.of[two], here)
    return _kept(arrays, units, plan, move, inside and able)


@compiled_lean
def _move_run(
    arrays: Arrays,
    units: Units,
    plan: Plan,
    move: Move,
    index: int,
    device: int,
    longest: int,
    first: int,
    last: int,
) -> bool:
    """An operator, and those after it that are on the same device, go to another one."""
    source = plan.assignment[plan.order[index]]
    if source == device:
        return False
    able = True
    while index < last and move.counts[0] < longest:
        operator = plan.order[index]
        unit = units.of[operator]
        index += 1
        if plan.assignment[operator] != source:
            continue
        able = able and can_run(arrays, units, unit, device)
        able = able and _inside(units, plan, unit, first, last)
        _take(units, plan, move, unit, device)
    return _kept(arrays, units, plan, move, able)


@compiled_lean
def _inside(units: Units, plan: Plan, unit: int, first: int, last: int) -> bool:
    """Whether all members of a unit are in the window."""
    for index in range(units.members_at[unit], units.members_at[unit + 1]):
        position = plan.position[units.members[index]]
        if position < first or position >= last:
            return False
    return True


@compiled_lean
def _take(units: Units, plan: Plan, move: Move, unit: int, device: int) -> None:
    """Moves a unit, and remembers where it was."""
    count = move.counts[0]
    move.units[count] = unit
    move.devices[count] = plan.assignment[units.members[units.members_at[unit]]]
    move.counts[0] = count + 1
    relocate(units, plan, unit, device)


@compiled_lean
def _kept(arrays: Arrays, units: Units, plan: Plan, move: Move, able: bool) -> bool:
    """Whether the move may stand; it is taken back if not."""
    for device in range(arrays.sends_at):
        able = able and plan.free_bytes[device] >= 0
    if not able:
        _take_back(units, plan, move)
    return able


@compiled_lean
def _take_back(units: Units, plan: Plan, move: Move) -> None:
    for index in range(move.counts[0] - 1, -1, -1):
        relocate(units, plan, move.units[index], move.devices[index])
    if move.counts[1] != move.counts[2]:
        shift(plan, move.counts[2], move.counts[1])

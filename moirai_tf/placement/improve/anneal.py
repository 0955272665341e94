"""Simulated annealing inside one window: operators change devices and places in the order.

Source: Kirkpatrick, Gelatt and Vecchi 1983.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled_lean
from moirai_tf.placement.evaluate.insertion import State, new_state
from moirai_tf.placement.improve.list_plan import (
    ListPlan,
    Units,
    can_run,
    earliest_position,
    largest_load_ns,
    latest_position,
    memory_price_ns,
    relocate,
    shift,
    smooth_load_ns,
    units_of,
)
from moirai_tf.placement.improve.window import (
    Outside,
    look_back,
    outside_of,
    play_range,
    remember,
    restore,
    value,
)
from moirai_tf.placement.problem import Arrays, IntArray, Problem

_LONGEST_RUN = 12


class Goal(NamedTuple):
    """What is lowered: `weight * makespan + (1 - weight) * bottleneck`."""

    weight: float = 1.0
    floor_ns: float = 0.0
    """A lower bound on the bottleneck: what loads are above it counts."""


class Undo(NamedTuple):
    """How to take a move back; the arrays are changed in place."""

    units: IntArray
    """(longest run,): units that changed devices, in order."""
    devices: IntArray
    """(longest run,): where they were."""
    counts: IntArray
    """(3,): how many, and the shift's source and target position."""


class Saved(NamedTuple):
    """Copies of the window's part of a plan: 0 as it was found, 1 the best so far."""

    order: IntArray
    """(2, operators)"""
    assignment: IntArray
    """(2, operators), by operator."""
    value_ns: FloatArray
    """(3,): value as it was found, of the best, of the present plan, memory's price included."""


class Annealing(NamedTuple):
    """A plan and all that is needed to change it, in place."""

    arrays: Arrays
    units: Units
    plan: ListPlan
    state: State
    outside: Outside
    undo: Undo
    saved: Saved
    goal: Goal


def annealing_of(problem: Problem, plan: ListPlan, goal: Goal) -> Annealing:
    """Room for annealing a plan, which has loads if they count."""
    state = new_state(problem.arrays)
    order, assignment = np.zeros((2, 2, len(plan.order)), dtype=np.int64)
    sizes = (_LONGEST_RUN, _LONGEST_RUN, 3)
    return Annealing(
        arrays=problem.arrays,
        units=units_of(problem),
        plan=plan,
        state=state,
        outside=outside_of(state),
        undo=Undo(*(np.zeros(size, dtype=np.int64) for size in sizes)),
        saved=Saved(order, assignment, np.zeros(3)),
        goal=goal,
    )


@compiled_lean
def open_window(walk: Annealing, first: int, last: int) -> None:
    """Plays the plan and gets ready to change it between two positions."""
    arrays, plan, state, outside = walk.arrays, walk.plan, walk.state, walk.outside
    makespan_ns = 0
    if walk.goal.weight > 0:
        state.intervals[:] = 0
        makespan_ns = play_range(arrays, state, plan, 0, first)
        remember(arrays, state, plan, outside, first, last)
        makespan_ns = max(makespan_ns, play_range(arrays, state, plan, first, len(plan.order)))
        look_back(arrays, state, plan, outside, last)
        restore(arrays, state, plan, outside, first, len(plan.order))
    walk.saved.value_ns[0] = _whole_ns(plan, walk.goal, makespan_ns)
    walk.saved.value_ns[1:] = _window_ns(walk, first, last, np.inf)
    _save(plan, walk.saved, 0, first, last)
    _save(plan, walk.saved, 1, first, last)


@compiled_lean
def anneal(
    walk: Annealing, first: int, last: int, steps: int, temperature_ns: float, seed: int
) -> None:
    """Changes an open window at one temperature."""
    arrays, plan, value_ns = walk.arrays, walk.plan, walk.saved.value_ns
    np.random.seed(seed)
    for _ in range(steps):
        if not _change(walk, first, last):
            continue
        enough_ns = value_ns[2] - temperature_ns * np.log(1 - np.random.random())
        if walk.goal.weight > 0:
            restore(arrays, walk.state, plan, walk.outside, first, last)
        found_ns = _window_ns(walk, first, last, enough_ns)
        if found_ns > enough_ns:
            _take_back(arrays, walk.units, plan, walk.undo)
            continue
        value_ns[2] = found_ns
        if found_ns < value_ns[1]:
            value_ns[1] = found_ns
            _save(plan, walk.saved, 1, first, last)


@compiled_lean
def close_window(walk: Annealing, first: int, last: int, error_ns: float) -> float:
    """Plays the whole; makespan and bottleneck, weighed.

    The present plan stays if its value was right but for `error_ns`. If not, the best one takes
    its place, and if that is worse than what was found in the beginning, then that does.
    """
    goal, found_ns = walk.goal, walk.saved.value_ns
    makespan_ns = _played_ns(walk)
    if _whole_ns(walk.plan, goal, makespan_ns) > found_ns[2] + error_ns:
        _load(walk, 1, first, last)
        makespan_ns = _played_ns(walk)
        if _whole_ns(walk.plan, goal, makespan_ns) > found_ns[0]:
            _load(walk, 0, first, last)
            makespan_ns = _played_ns(walk)
    return goal.weight * makespan_ns + (1 - goal.weight) * largest_load_ns(walk.plan)


@compiled_lean
def _played_ns(walk: Annealing) -> int:
    """Makespan of the whole; 0 where it does not count."""
    if walk.goal.weight == 0:
        return 0
    walk.state.intervals[:] = 0
    return play_range(walk.arrays, walk.state, walk.plan, 0, len(walk.plan.order))


@compiled_lean
def _whole_ns(plan: ListPlan, goal: Goal, makespan_ns: int) -> float:
    """Value of a plan with this makespan."""
    value_ns = goal.weight * makespan_ns + memory_price_ns(plan)
    if goal.weight < 1:
        value_ns += (1 - goal.weight) * smooth_load_ns(plan, goal.floor_ns)
    return value_ns


@compiled_lean
def _window_ns(walk: Annealing, first: int, last: int, enough_ns: float) -> float:
    """The same with the window's estimate of the makespan; stops where it is above enough."""
    weight, known_ns = walk.goal.weight, _whole_ns(walk.plan, walk.goal, 0)
    if weight == 0 or known_ns > enough_ns:
        return known_ns
    rest_ns = (enough_ns - known_ns) / weight
    return known_ns + weight * value(
        walk.arrays, walk.state, walk.plan, walk.outside, first, last, rest_ns
    )


@compiled_lean
def _save(plan: ListPlan, saved: Saved, copy: int, first: int, last: int) -> None:
    for index in range(first, last):
        operator = plan.order[index]
        saved.order[copy, index] = operator
        saved.assignment[copy, operator] = plan.assignment[operator]


@compiled_lean
def _load(walk: Annealing, copy: int, first: int, last: int) -> None:
    units, plan, saved = walk.units, walk.plan, walk.saved
    for index in range(first, last):
        operator = saved.order[copy, index]
        plan.order[index] = operator
        plan.position[operator] = index
        if plan.assignment[operator] != saved.assignment[copy, operator]:
            device = saved.assignment[copy, operator]
            relocate(walk.arrays, units, plan, units.of[operator], device)


@compiled_lean
def _change(walk: Annealing, first: int, last: int) -> bool:
    """A random move within the window; False if it would break a rule and none was made."""
    walk.undo.counts[:] = 0
    kind = np.random.random()
    if walk.goal.weight == 0:  # orders make no difference
        kind = 0.4 + 0.6 * kind
    index = np.random.randint(first, last)
    if kind < 0.4:
        return _reorder(walk.arrays, walk.plan, walk.undo, index, first, last)
    if kind < 0.5:
        return _exchange(walk, index, np.random.randint(first, last), first, last)
    device = np.random.randint(walk.arrays.devices)
    longest = 1 if kind < 0.85 else np.random.randint(2, _LONGEST_RUN + 1)
    return _move_run(walk, index, device, longest, first, last)


@compiled_lean
def _reorder(arrays: Arrays, plan: ListPlan, undo: Undo, index: int, first: int, last: int) -> bool:
    """One operator goes to another place between its producers and consumers."""
    operator = plan.order[index]
    low = earliest_position(arrays, plan, operator, first)
    high = latest_position(arrays, plan, operator, last - 1)
    if low >= high:
        return False
    target = np.random.randint(low, high + 1)
    undo.counts[1], undo.counts[2] = index, target
    shift(plan, index, target)
    return bool(index != target)


@compiled_lean
def _exchange(walk: Annealing, index: int, other: int, first: int, last: int) -> bool:
    """Two units exchange their devices."""
    plan, of = walk.plan, walk.units.of
    one, two = plan.order[index], plan.order[other]
    here, there = plan.assignment[one], plan.assignment[two]
    if here == there:
        return False
    able = _take(walk, of[one], there, first, last)
    able = _take(walk, of[two], here, first, last) and able
    return _kept(walk, able)


@compiled_lean
def _move_run(
    walk: Annealing, index: int, device: int, longest: int, first: int, last: int
) -> bool:
    """An operator, and those after it that are on the same device, go to another one."""
    plan = walk.plan
    source = plan.assignment[plan.order[index]]
    if source == device:
        return False
    able = True
    while index < last and walk.undo.counts[0] < longest:
        operator = plan.order[index]
        index += 1
        if plan.assignment[operator] == source:
            able = _take(walk, walk.units.of[operator], device, first, last) and able
    return _kept(walk, able)


@compiled_lean
def _take(walk: Annealing, unit: int, device: int, first: int, last: int) -> bool:
    """Moves a unit, and remembers where it was; whether it can be there and was in the window."""
    units, plan, undo = walk.units, walk.plan, walk.undo
    count = undo.counts[0]
    undo.units[count] = unit
    undo.devices[count] = plan.assignment[units.members[units.members_at[unit]]]
    undo.counts[0] = count + 1
    relocate(walk.arrays, units, plan, unit, device)
    able = can_run(walk.arrays, units, unit, device)
    for index in range(units.members_at[unit], units.members_at[unit + 1]):
        position = plan.position[units.members[index]]
        able = able and first <= position < last
    return able


@compiled_lean
def _kept(walk: Annealing, able: bool) -> bool:
    """Whether the move may stand; it is taken back if not."""
    for free_bytes in walk.plan.free_bytes:
        able = able and free_bytes >= 0
    if not able:
        _take_back(walk.arrays, walk.units, walk.plan, walk.undo)
    return able


@compiled_lean
def _take_back(arrays: Arrays, units: Units, plan: ListPlan, undo: Undo) -> None:
    for index in range(undo.counts[0] - 1, -1, -1):
        relocate(arrays, units, plan, undo.units[index], undo.devices[index])
    if undo.counts[1] != undo.counts[2]:
        shift(plan, undo.counts[2], undo.counts[1])

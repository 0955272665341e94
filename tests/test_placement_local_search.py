"""Local search: moves keep every rule, windows never harm, and the value of a window is right."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.placement import Problem, SolveOptions, check, simulate, solve
from moirai_tf.placement.evaluate.insertion import new_state, play, schedule_in
from moirai_tf.placement.improve.anneal import Goal, anneal, annealing_of, close_window, open_window
from moirai_tf.placement.improve.list_plan import (
    ListPlan,
    largest_load_ns,
    memory_price_ns,
    plan_of,
    relocate,
    units_of,
)
from tests.placement_brute_force import assignments, bottleneck, optimum
from tests.placement_cases import layered, problem_of, problems


def _annealed(
    problem: Problem, plan: ListPlan, window: tuple[int, int], seed: int, error_ns: float
) -> tuple[float, float, float]:
    """One window, annealed in place: its value before, what it claims, and after."""
    before_ns = play(problem.arrays, new_state(problem.arrays), plan.order, plan.assignment)
    before_ns += memory_price_ns(plan)
    walk = annealing_of(problem, plan, Goal())
    open_window(walk, *window)
    assert walk.saved.value_ns[0] == before_ns
    anneal(walk, *window, 200, 1.0, seed)
    claim_ns = walk.saved.value_ns[2]
    after_ns = close_window(walk, *window, error_ns)
    played = schedule_in(problem, walk.state)
    assert played.makespan_ns == after_ns
    assert check(problem, played) == []
    assert played == simulate(problem, plan.assignment.tolist(), plan.order.tolist())
    return before_ns, claim_ns, after_ns + memory_price_ns(plan)


@settings(max_examples=100, deadline=None)
@given(problems(most_operators=8), st.data())
def test_windows_keep_every_rule_and_never_harm(problem: Problem, data: st.DataObject) -> None:
    allowed = assignments(problem)
    if not allowed:
        return
    count = len(problem.operators)
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count))
    plan = plan_of(problem, list(problem.topological_order), data.draw(st.sampled_from(allowed)))
    outside = {*plan.order[:first].tolist(), *plan.order[last:].tolist()}
    kept = {operator: plan.assignment[operator] for operator in outside}
    plan.price[:] = data.draw(st.sampled_from([0.0, 0.5, 3.0]))
    plan.price[0] *= 2
    error_ns = data.draw(st.sampled_from([-math.inf, 0.0, 5.0]))
    before_ns, claim_ns, after_ns = _annealed(
        problem, plan, (first, last), data.draw(st.integers(0, 99)), error_ns
    )
    assert after_ns <= max(before_ns, claim_ns + error_ns)
    assert all(plan.assignment[operator] == device for operator, device in kept.items())
    assert sorted(plan.order) == list(range(count))
    assert (plan.order[plan.position] == np.arange(count)).all()
    again = plan_of(problem, plan.order.tolist(), tuple(plan.assignment.tolist()))
    assert (again.free_bytes == plan.free_bytes).all()


@settings(max_examples=100, deadline=None)
@given(problems(most_operators=8), st.data())
def test_value_of_the_whole_is_its_makespan(problem: Problem, data: st.DataObject) -> None:
    allowed = assignments(problem)
    if not allowed:
        return
    plan = plan_of(problem, list(problem.topological_order), data.draw(st.sampled_from(allowed)))
    walk = annealing_of(problem, plan, Goal())
    open_window(walk, 0, len(plan.order))
    assert walk.saved.value_ns.tolist() == [walk.saved.value_ns[0]] * 3


def test_value_of_a_window_counts_what_follows() -> None:
    """a on d0 (2), its tensor to d1 (3), b there (4), c after it (5): 2 + 3 + 4 + 5 = 14.

    In a window with a alone the rest is a tail of 3 + 9; in one with b alone, of 5.
    """
    problem = problem_of({"a": (2, 2), "b": (4, 4), "c": (5, 5)}, [("a", "b", 3), ("b", "c", 3)])
    plan = plan_of(problem, [0, 1, 2], (0, 1, 1))
    walk = annealing_of(problem, plan, Goal())
    for window in ((0, 1), (1, 2), (2, 3)):
        open_window(walk, *window)
        assert walk.saved.value_ns.tolist() == [14, 14, 14]


def test_window_leaves_a_device_that_is_too_dear() -> None:
    """2 on either device; d0 costs 3 a byte, so both go to d1 although they take 4 there."""
    problem = problem_of({"a": (2, 2), "b": (2, 2)}, [], memory={"a": 1, "b": 1}, capacity=(2, 2))
    plan = plan_of(problem, [0, 1], (0, 1))
    plan.price[:] = 3.0, 0.0
    assert _annealed(problem, plan, (0, 2), 0, 0.0) == (2 - 3 * 1, 4 - 3 * 2, 4 - 3 * 2)
    assert plan.assignment.tolist() == [1, 1]


def test_prices_move_memory_between_windows() -> None:
    """A chain of 150 operators of 10 or 11, then 150 of 10 or 30; half of all fit the fast device.

    Whoever takes fast memory as long as there is some ends at 150 * 10 + 150 * 30 = 6000. Best is
    150 * 11 + 150 * 10 = 3150, and no window sees both ends.
    """
    names = [f"o{i:03}" for i in range(300)]
    problem = problem_of(
        {name: (10, 11 if i < 150 else 30) for i, name in enumerate(names)},
        [(one, two, 0) for one, two in itertools.pairwise(names)],
        memory=dict.fromkeys(names, 1),
        capacity=(150, 300),
    )
    result = solve(problem, SolveOptions(solver="local-search"))
    assert result.makespan_ns == 3150


@settings(max_examples=25, deadline=None)
@given(problems(most_operators=5))
def test_no_answer_is_below_the_optimum(problem: Problem) -> None:
    best = optimum(problem)
    if best is None:
        return
    result = solve(problem, SolveOptions(solver="local-search"))
    assert result.makespan_ns is not None
    assert result.lower_bound_ns <= best <= result.makespan_ns


@pytest.mark.parametrize("congestion", ["port", "link", "none"])
def test_it_finds_what_heuristics_miss(congestion: str) -> None:
    """Pairs that talk much and do not know it: each pair on one device, 3 x 2 on each of two."""
    names = [f"{kind}{i}" for kind in "ab" for i in range(6)]
    problem = problem_of(
        dict.fromkeys(names, (3, 3)),
        [(f"a{i}", f"b{i}", 50) for i in range(6)],
        memory=dict.fromkeys(names, 1),
        capacity=(6, 6),
        congestion=congestion,
    )
    result = solve(problem, SolveOptions(solver="local-search"))
    assert result.makespan_ns == 18


def test_it_improves_what_heuristics_find_at_size() -> None:
    problem = layered(300)
    result = solve(problem, SolveOptions(solver="local-search", time_limit_s=5))
    assert "schedule: local-search" in result.messages
    assert result.makespan_ns is not None
    assert result.makespan_ns < min(ns for _, ns in result.baselines)


def test_equal_seeds_walk_the_same_way() -> None:
    problem = layered(16, devices=2)
    found = [solve(problem, SolveOptions(solver="local-search", seed=7)) for _ in range(2)]
    assert found[0].schedule is not None
    assert found[0].schedule == found[1].schedule


@settings(max_examples=40, deadline=None)
@given(problems(most_operators=6), st.data())
def test_loads_follow_every_move(problem: Problem, data: st.DataObject) -> None:
    """Kept up to date while units move, they are those of the assignment counted anew."""
    order = list(problem.topological_order)
    start = tuple(problem.unit_devices[unit][0] for unit in problem.unit_of)
    plan, units = plan_of(problem, order, start, loads=True), units_of(problem)
    for unit in data.draw(st.lists(st.integers(0, len(problem.units) - 1), max_size=6)):
        device = data.draw(st.sampled_from(problem.unit_devices[unit]))
        relocate(problem.arrays, units, plan, unit, device)
    anew = plan_of(problem, order, tuple(plan.assignment.tolist()), loads=True)
    for kept, counted in zip(plan, anew, strict=True):
        assert kept.tolist() == counted.tolist()
    assert largest_load_ns(plan) == bottleneck(problem, plan.assignment.tolist())

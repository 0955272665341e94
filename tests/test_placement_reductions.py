"""Reductions: the same optimum, and schedules that can be carried back."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.placement import Problem, SolveOptions, check, simulate, solve
from moirai_tf.placement.problem import PER_EDGE
from moirai_tf.placement.reductions import reduce
from tests.placement_brute_force import assignments, optimum
from tests.placement_cases import problem_of, problems

WEIGHTS = problem_of(
    {"w": (0, 0), "a": (4, 2), "out": (0, 0), "b": (4, 2), "c": (3, 3)},
    [("w", "a", 50), ("a", "out", 50), ("out", "b c", 1), ("b", "c", 1)],
    memory={"w": 8, "a": 1, "out": 1, "b": 1, "c": 1},
    colocation=((0, 1, 2),),
)
"""w and out share a's device, so neither 50 is ever paid: a chain of three operators is left."""


def test_weights_and_outputs_become_part_of_their_operator() -> None:
    reduced = reduce(WEIGHTS)
    assert [o.name for o in reduced.problem.operators] == ["a", "b", "c"]
    assert [o.memory_bytes for o in reduced.problem.operators] == [10, 1, 1]
    assert [t.consumers for t in reduced.problem.tensors] == [(1, 2), (2,)]
    assert reduced.problem.colocation == ()
    result = solve(WEIGHTS, SolveOptions(mip_gap=0.0))
    assert result.makespan_ns == 7  # 2 + 2 + 3 on d1
    assert result.schedule is not None
    assert check(WEIGHTS, result.schedule) == []


def test_an_operator_alone_or_with_work_stays() -> None:
    """Without the group, w's 50 must be paid where a is elsewhere; with work it takes its turn."""
    assert reduce(replace(WEIGHTS, colocation=())).problem == replace(WEIGHTS, colocation=())
    worker = replace(WEIGHTS.operators[0], compute_ns=(0, 1))
    busy = replace(WEIGHTS, operators=(worker, *WEIGHTS.operators[1:]))
    assert len(reduce(busy).problem.operators) == 4


def test_a_ban_passes_to_the_rest_of_the_unit() -> None:
    banned = replace(WEIGHTS.operators[0], compute_ns=(0, None))
    problem = replace(WEIGHTS, operators=(banned, *WEIGHTS.operators[1:]))
    assert reduce(problem).problem.operators[0].compute_ns == (4, None)


def test_two_readers_of_one_tensor_stay_apart_per_edge() -> None:
    """s and b both read a's tensor, each by a transfer of its own; s must not vanish into b."""
    problem = problem_of(
        {"a": (1, 9), "s": (0, 0), "b": (9, 1)},
        [("a", "s b", 3), ("s", "b", 0)],
        colocation=((1, 2),),
    )
    assert len(reduce(problem).problem.operators) == 2
    apart = replace(problem, transfers=PER_EDGE)
    assert len(reduce(apart).problem.operators) == 3
    assert solve(apart, SolveOptions(mip_gap=0.0)).makespan_ns == 8  # 1 + 3 + 3 + 1 by one port


@st.composite
def with_idle_units(draw: st.DrawFn) -> Problem:
    """Problems of which some operators take no time and share a device with others."""
    problem = draw(problems(most_operators=6))
    devices = len(problem.devices)
    idle = draw(st.sets(st.integers(0, len(problem.operators) - 1), max_size=4))
    operators = tuple(
        replace(o, compute_ns=(0,) * devices) if i in idle else o
        for i, o in enumerate(problem.operators)
    )
    host = draw(st.integers(0, len(problem.operators) - 1))
    group = tuple(sorted(idle | {host}))
    groups = (group,) if len(group) > 1 else ()
    return replace(problem, operators=operators, colocation=groups)


@settings(max_examples=150, deadline=None)
@given(with_idle_units())
def test_optimum_is_kept_and_every_schedule_comes_back(problem: Problem) -> None:
    reduced = reduce(problem)
    assert optimum(reduced.problem) == optimum(problem)
    for assignment in assignments(reduced.problem)[:4]:
        schedule = simulate(reduced.problem, list(assignment))
        assert check(reduced.problem, schedule) == []
        back = reduced.invert(schedule)
        assert check(problem, back) == []
        assert back.makespan_ns == schedule.makespan_ns

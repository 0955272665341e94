"""The integer program: exact on both backends, in all modes, and honest about its bound."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings

from moirai_tf.placement import Problem, SolveOptions, check, simulate, solve
from moirai_tf.placement.bound.linear_program import LinearModel
from moirai_tf.placement.exact.milp.backends import (
    SOLVED,
    STOPPED,
    BackendRefusalError,
    Limits,
    Outcome,
    solve_with_gurobi,
    solve_with_highs,
)
from moirai_tf.placement.exact.milp.driver import Milp
from moirai_tf.placement.exact.milp.formulation import build, decoded, row_estimate, start_values
from moirai_tf.placement.portfolio import STRATEGIES
from tests.placement_brute_force import optimum
from tests.placement_cases import MODES, layered, problem_of, problems

BACKENDS = ("milp-highs", "milp-gurobi")

# s, two chains of six operators of 10, and t, on two equal devices; a way takes 5.
# On one device all takes 4 + 120 + 3 = 127. Otherwise, with s on d0: if t is there too, a chain
# that leaves comes back, 4 + 60 + 5 + 5 + 3 = 77. If t is on d1 both chains cross once, one before
# and one after its operators: 4 + 60 + 5 + 3 = 72, and no chain can do with less.
MILLION = 1_000_000
CHAINS = [[f"{chain}{i}" for i in range(6)] for chain in "ab"]
FOURTEEN = problem_of(
    {
        "s": (4 * MILLION, 4 * MILLION),
        **{name: (10 * MILLION, 10 * MILLION) for chain in CHAINS for name in chain},
        "t": (3 * MILLION, 3 * MILLION),
    },
    [(left, right, 5 * MILLION) for c in CHAINS for left, right in pairwise(["s", *c, "t"])],
)


@pytest.mark.parametrize("solver", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_fourteen_operators_by_hand(solver: str, mode: tuple[str, str]) -> None:
    problem = replace(FOURTEEN, transfers=mode[0], congestion=mode[1])
    result = solve(problem, SolveOptions(solver=solver, time_limit_s=60))
    assert result.status == "optimal"
    assert (result.makespan_ns, result.lower_bound_ns) == (72 * MILLION, 72 * MILLION)


@pytest.mark.parametrize("solver", BACKENDS)
@pytest.mark.parametrize(
    ("transfers", "congestion", "makespan"),
    [
        # a (1) on d0, b and c (2) on d1; the tensor takes 4. One transfer: 1-5, b 5-7, c 7-9.
        ("per_tensor", "port", 9),
        ("per_tensor", "none", 9),
        # two transfers, 1-5 and 5-9 with congestion: c 9-11; both 1-5 without
        ("per_edge", "port", 11),
        ("per_edge", "link", 11),
        ("per_edge", "none", 9),
    ],
)
def test_modes_by_hand(solver: str, transfers: str, congestion: str, makespan: int) -> None:
    problem = problem_of(
        {"a": (1, None), "b": (None, 2), "c": (None, 2)},
        [("a", "b c", 4)],
        transfers=transfers,
        congestion=congestion,
    )
    result = solve(problem, SolveOptions(solver=solver))
    assert (result.status, result.makespan_ns) == ("optimal", makespan)


@settings(max_examples=60, deadline=None)
@given(problems(most_operators=6))
def test_exact_on_both_backends(problem: Problem) -> None:
    best = optimum(problem)
    for solver in BACKENDS:
        result = solve(problem, SolveOptions(solver=solver, mip_gap=0.0))
        if best is None:
            assert result.status == "infeasible"
            continue
        assert result.status == "optimal", result.messages
        assert result.makespan_ns == result.lower_bound_ns == best


@settings(max_examples=40, deadline=None)
@given(problems(most_operators=6))
def test_any_schedule_is_a_start_within_its_own_horizon(problem: Problem) -> None:
    """A backend that may only use the start's integers must reach the start's makespan."""
    start = solve(problem, SolveOptions(solver="etf")).schedule
    if start is None or start.makespan_ns == 0:
        return
    model = build(problem, start.makespan_ns)
    values = start_values(model, start)
    assert values.keys() == set(model.linear.integer.nonzero()[0])
    outcome = solve_with_highs(_fixed(model.linear, values), {}, Limits(10.0))
    assert outcome.state == SOLVED
    again = decoded(model, outcome.incumbents[-1][1])
    assert check(problem, again) == []
    assert again.makespan_ns <= start.makespan_ns


def _fixed(model: LinearModel, values: Mapping[int, int]) -> LinearModel:
    lower, upper = model.lower.copy(), model.upper.copy()
    for column, value in values.items():
        lower[column] = upper[column] = value
    return replace(model, lower=lower, upper=upper)


def test_edges_that_paths_imply_and_apart_windows_make_no_rows() -> None:
    """a -> b -> c with a -> c: nothing moves for free, so one row less without times."""
    edges = [("a", "b", 0), ("b", "c", 0), ("a", "c", 0)]
    times: dict[str, tuple[int | None, ...]] = {"a": (1, 1), "b": (1, 1), "c": (1, 1)}
    short = build(problem_of(times, edges[:2]), 9).linear
    implied = build(problem_of(times, edges), 9).linear
    costly = build(problem_of(times, [*edges[:2], ("a", "c", 2)]), 9).linear
    assert implied.rows == short.rows < costly.rows
    assert build(problem_of(times, edges), 9).operator_orders == {}


def test_large_model_falls_back_to_highs_and_says_so() -> None:
    """Past 2,000 columns or rows the licence that comes with gurobipy refuses."""
    problem = layered(60, slack=1.5)
    with pytest.raises(BackendRefusalError, match="10010"):
        solve_with_gurobi(build(problem, 10**7).linear, {}, Limits(5.0))
    result = solve(problem, SolveOptions(solver="milp-gurobi", time_limit_s=4))
    assert result.schedule is not None
    assert any("milp-gurobi was refused" in message for message in result.messages)
    assert any("HiGHS was used instead" in message for message in result.messages)


def test_missing_gurobi_falls_back_to_highs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gurobipy", None)
    result = solve(FOURTEEN, SolveOptions(solver="milp-gurobi"))
    assert (result.status, result.makespan_ns) == ("optimal", 72 * MILLION)
    assert any("gurobipy is not installed" in message for message in result.messages)


def test_too_large_model_is_not_built() -> None:
    problem = layered(4_000, devices=2)
    result = solve(problem, SolveOptions(solver="milp-highs", time_limit_s=15))
    assert result.schedule is not None
    assert any("the model would be too large" in message for message in result.messages)


def test_size_is_known_before_building() -> None:
    problem = layered(50)
    horizon = sum(max(filter(None, o.compute_ns)) for o in problem.operators)
    assert row_estimate(problem) == pytest.approx(build(problem, horizon).linear.rows, rel=0.3)


def test_threads_may_change_between_solves() -> None:
    for threads in (1, 2, 1):
        result = solve(FOURTEEN, SolveOptions(solver="milp-highs", threads=threads))
        assert result.makespan_ns == result.lower_bound_ns == 72 * MILLION


def test_no_time_is_a_stop_not_a_crash() -> None:
    model = build(FOURTEEN, 127 * MILLION).linear
    for backend in (solve_with_highs, solve_with_gurobi):
        outcome = backend(model, {}, Limits(0.0))
        assert (outcome.state, outcome.bound) == (STOPPED, -math.inf)


def test_solver_without_proof_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that claims its own start infeasible is not believed."""

    def confused(model: LinearModel, start: Mapping[int, int], limits: Limits) -> Outcome:
        return Outcome("no solution", math.inf)

    monkeypatch.setitem(STRATEGIES, "milp-highs", Milp("milp-highs", confused))
    result = solve(FOURTEEN, SolveOptions(solver="milp-highs"))
    assert result.status == "feasible"
    assert any("numerical trouble" in message for message in result.messages)


def test_nanoseconds_of_a_long_model_stay_exact() -> None:
    """Odd nanoseconds near a second: the makespan is exact, the bound within the asked gap."""
    second = 1_000_000_007
    problem = problem_of(
        {"a": (second, second + 1), "b": (second + 3, second), "c": (7, 5)},
        [("a", "c", 11), ("b", "c", 13)],
    )
    result = solve(problem, SolveOptions(solver="milp-highs", mip_gap=1e-5))
    # a on d0, b on d1, each its best; c on d1 after a's way: second + 11 + 5
    assert result.status == "optimal"
    assert result.makespan_ns == second + 16
    assert simulate(problem, [0, 1, 1]).makespan_ns == second + 16

"""Lower bounds: by hand, and never above the optimum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.placement import Bound, Problem, SolveOptions, solve
from moirai_tf.placement.bound import paths, relaxation
from moirai_tf.placement.bound.linear_program import ModelBuilder, dual_bound
from moirai_tf.placement.exact.milp.backends import Limits
from moirai_tf.placement.exact.milp.formulation import reachable
from moirai_tf.placement.problem import IntArray
from tests.placement_brute_force import optimum
from tests.placement_cases import MODES, layered, problem_of, problems

LIMITS = Limits(10.0)


def test_critical_path_pays_transfers_that_bans_force() -> None:
    """a only on d0, b only on d1: 2 + 5 + 3 = 10. Without the ban b takes 3 on d0: 2 + 3 = 5."""
    forced = problem_of({"a": (2, None), "b": (None, 3)}, [("a", "b", 5)])
    free = problem_of({"a": (2, None), "b": (3, 3)}, [("a", "b", 5)])
    assert paths.critical_path(forced).value_ns == 10
    assert paths.critical_path(free).value_ns == 5


def test_critical_path_pays_the_dearer_of_compute_and_way() -> None:
    """a 1 on d0, b 1 on d1, else 9 each; the way 4. Both at their best: 1 + 4 + 1 = 6, not 2."""
    problem = problem_of({"a": (1, 9), "b": (9, 1)}, [("a", "b", 4)])
    assert paths.critical_path(problem).value_ns == 6


def test_group_has_no_way_between_its_members() -> None:
    """Together on one device: 1 + 9 = 10."""
    problem = problem_of({"a": (1, 9), "b": (9, 1)}, [("a", "b", 4)], colocation=((0, 1),))
    assert paths.critical_path(problem).value_ns == 10


def test_heads_and_tails_by_hand() -> None:
    """a (1 | 9), b (9 | 1), way 4. b starts on d0 after 1, on d1 after min(1 + 4, 9) = 5."""
    problem = problem_of({"a": (1, 9), "b": (9, 1)}, [("a", "b", 4)])
    assert paths.heads_ns(problem).tolist() == [[0, 0], [1, 5]]
    # a's tail on d0: 1 + min(9, 4 + 1) = 6; on d1: 9 + min(1, 4 + 9) = 10
    assert paths.tails_ns(problem).tolist() == [[6, 10], [9, 1]]


def test_blocks_between_cuts_add_up() -> None:
    """s, then three times 6 on two devices, then t: 1 + 18 / 2 + 1 = 11; the path is only 8."""
    names = ("x", "y", "z")
    problem = problem_of(
        {"s": (1, 1), **dict.fromkeys(names, (6, 6)), "t": (1, 1)},
        [("s", "x y z", 0), *((name, "t", 0) for name in names)],
    )
    assert paths.cuts(problem) == [0, 4]
    assert paths.blocks(problem) == [(None, [], 0), (0, [1, 2, 3], 4), (4, [], None)]
    assert paths.critical_path(problem).value_ns == 8
    assert paths.blockwise(problem).value_ns == 11


def test_linear_relaxation_sees_memory() -> None:
    """Four equal operators of 4, fast (4) on d0 and slow (12) on d1; only two fit d0.

    With half of them on each device d1 works 2 * 12 = 24; without memory the load is less.
    """
    problem = problem_of(
        dict.fromkeys("abcd", (4, 12)), [], memory=dict.fromkeys("abcd", 1), capacity=(2, 4)
    )
    assert relaxation.linear(problem, 48, LIMITS).value_ns == 24
    free = problem_of(dict.fromkeys("abcd", (4, 12)), [])
    assert relaxation.linear(free, 48, LIMITS).value_ns == 12


# s and u, three times 6, then twice 4, on two devices: 4 + 12 + 4 = 20 at best.
HOURGLASS = problem_of(
    {"s": (1, 1), "u": (4, 4), **dict.fromkeys("xyz", (6, 6)), **dict.fromkeys("vw", (4, 4))},
    [("s", "x y z", 0), ("u", "x y z", 0), *((name, "v w", 0) for name in "xyz")],
)


def test_interval_between_heads_and_tails_holds_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work 31 / 2 gives 16, the path 14; 18 of work between 4 and 4 before the end: 8 + 9 = 17."""
    assert paths.cuts(HOURGLASS) == []
    assert relaxation.linear(HOURGLASS, 40, LIMITS).value_ns == 17
    monkeypatch.setattr(relaxation, "intervals", lambda *_: iter(()))
    assert relaxation.linear(HOURGLASS, 40, LIMITS).value_ns == 16


def test_energy_of_an_interval_by_hand() -> None:
    """Of x, which runs from 4 on and ends 4 before the end, or sooner: 6 in the interval (4, 4).

    From 4 on u has nothing left to do if it started at 0; v may be done before 4 to the end.
    """
    heads, tails = paths.heads_ns(HOURGLASS), paths.tails_ns(HOURGLASS)
    found = {
        (head, tail): energy[:, 0].tolist()
        for head, tail, energy in relaxation.intervals(HOURGLASS, [*range(7)], heads, tails)
    }
    assert found[4, 4] == [0, 0, 6, 6, 6, 0, 0]
    assert found[0, 4] == [1, 4, 6, 6, 6, 0, 0]


def test_broken_interval_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 4 on there are 18 + 8 of work; twice that claims 4 + 26 = 30, brute force knows 20."""
    honest = relaxation.intervals

    def doubled(*arguments: Any) -> Iterator[tuple[int, int, IntArray]]:
        for head, tail, energy in honest(*arguments):
            yield head, tail, 2 * energy

    assert optimum(HOURGLASS) == 20
    assert _unsound(HOURGLASS, 20) == []
    monkeypatch.setattr(relaxation, "intervals", doubled)
    assert [bound.value_ns for bound in _unsound(HOURGLASS, 20)] == [30, 30]


# A chain of 2 or 8 on d0, 8 or 2 on d1, ways of 1, and only one of them fits d1; z is beside it.
ALTERNATING = problem_of(
    {"a": (2, 8), "b": (8, 2), "c": (2, 8), "d": (8, 2), "e": (2, 8), "z": (0, 0)},
    [("a", "b", 1), ("b", "c", 1), ("c", "d", 1), ("d", "e", 1)],
    memory=dict.fromkeys("abcde", 1),
    capacity=(5, 1),
)


def test_relaxation_with_transfers_by_hand() -> None:
    """All on d0 takes 22. One of b and d on d1 saves 6 and costs two ways: 18, also in halves."""
    assert optimum(ALTERNATING) == 18
    assert relaxation.linear(ALTERNATING, 40, LIMITS).value_ns == 17
    assert relaxation.linear(ALTERNATING, 40, LIMITS, ways=True).value_ns == 18


def test_local_search_proves_the_bound_with_transfers() -> None:
    result = solve(ALTERNATING, SolveOptions(solver="local-search"))
    assert (result.status, result.makespan_ns, result.lower_bound_ns) == ("optimal", 18, 18)
    assert "bound: linear relaxation with transfers" in result.messages


def test_relaxation_with_transfers_fills_channels() -> None:
    """Sources on d0, sinks on d1, three ways of 5 one after another: 15, with two readers 30."""
    works: dict[str, tuple[int | None, ...]] = {"z": (0, 0)}
    works |= {f"a{i}": (0, None) for i in range(3)}
    works |= {f"{kind}{i}": (None, 0) for kind in "bc" for i in range(3)}
    edges = [(f"a{i}", f"b{i} c{i}", 5) for i in range(3)]
    for congestion, transfers, expected in (
        ("port", "per_tensor", 15),
        ("link", "per_tensor", 15),
        ("none", "per_tensor", 5),
        ("port", "per_edge", 30),
    ):
        problem = problem_of(works, edges, congestion=congestion, transfers=transfers)
        assert relaxation.linear(problem, 99, LIMITS, ways=True).value_ns == expected


def test_broken_way_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ways that take twice as long: 22 - 6 + 4 = 20, and brute force knows 18."""
    honest = relaxation._Relaxation._way

    def doubled(*arguments: Any) -> dict[tuple[int, int, int], int]:
        return {(k, m, 2 * time): column for (k, m, time), column in honest(*arguments).items()}

    assert _unsound(ALTERNATING, 18) == []
    monkeypatch.setattr(relaxation._Relaxation, "_way", doubled)
    assert [bound.value_ns for bound in _unsound(ALTERNATING, 18)] == [20]


def test_quantum_rounds_a_bound_up() -> None:
    problem = problem_of({"a": (10, 15)}, [])
    assert [paths.round_up(problem, value) for value in (10, 10.1, 11, 15.0)] == [10, 15, 15, 15]


@settings(max_examples=60, deadline=None)
@given(problems())
def test_no_bound_is_above_the_optimum(problem: Problem) -> None:
    best = optimum(problem)
    if best is None:
        return
    assert _unsound(problem, best) == []


@pytest.mark.parametrize(("transfers", "congestion"), MODES)
def test_no_bound_is_above_the_optimum_of_the_exact_model(transfers: str, congestion: str) -> None:
    problem = replace(layered(11, devices=2, slack=1.4), transfers=transfers, congestion=congestion)
    result = solve(problem, SolveOptions(solver="milp-highs", mip_gap=0.0))
    assert result.status == "optimal"
    assert result.makespan_ns is not None
    assert _unsound(problem, result.makespan_ns) == []


def _unsound(problem: Problem, best_ns: int) -> list[Bound]:
    """Bounds above the optimum."""
    found = (
        paths.critical_path(problem),
        paths.blockwise(problem),
        relaxation.linear(problem, 2 * best_ns + 10, LIMITS),
        relaxation.linear(problem, 2 * best_ns + 10, LIMITS, ways=True),
    )
    return [bound for bound in found if paths.round_up(problem, bound.value_ns) > best_ns]


@settings(max_examples=60, deadline=None)
@given(problems(most_operators=6))
def test_cuts_are_the_operators_comparable_with_all(problem: Problem) -> None:
    reach = reachable(problem)
    expected = {i for i in range(len(reach)) if (reach[i] | reach[:, i]).all()}
    assert set(paths.cuts(problem)) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3))
def test_any_duals_prove_something_true(duals: list[float]) -> None:
    """min x with x + y >= 4, x - y == 1, y <= 3: the best is y = 3/2, x = 5/2."""
    builder = ModelBuilder()
    x, y = builder.column(0, 10), builder.column(0, 10)
    builder.at_least([(1, x), (1, y)], 4)
    builder.equal([(1, x), (-1, y)], 1)
    builder.at_most([(1, y)], 3)
    model = builder.build(x)
    assert dual_bound(model, np.array(duals)) <= 3  # the least whole number above 5/2
    assert dual_bound(model, np.array([0.5, 0.5, 0.0])) == 3
    assert dual_bound(model, np.array([np.nan, np.inf, 0.0])) <= 3


def test_impossible_row_without_terms_is_kept() -> None:
    builder = ModelBuilder()
    x = builder.column(0, 1)
    builder.at_least([(1, x), (-1, x)], 0)
    builder.at_least([(1, x), (-1, x)], 2)
    assert builder.build(x).rows == 1


def test_wrong_bound_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound one above the optimum must not leave `solve`."""
    problem = problem_of({"a": (3, 4), "b": (3, 4)}, [("a", "b", 5)])
    assert solve(problem).status == "optimal"
    honest = paths.critical_path(problem)
    broken = replace(honest, value_ns=honest.value_ns + 1)
    monkeypatch.setattr(paths, "critical_path", lambda _: broken)
    result = solve(problem, SolveOptions(solver="heft"))
    assert result.status == "error"
    assert result.schedule is None
    assert "bound: 7 is above the makespan 6" in result.messages


def test_linear_relaxation_at_size() -> None:
    problem = layered(600)
    schedule = solve(problem, SolveOptions(solver="heft")).schedule
    assert schedule is not None
    simple = paths.critical_path(problem).value_ns
    assert simple < schedule.lower_bound_ns <= schedule.makespan_ns

"""`solve`: statuses, limits, the single device, interrupts, and what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from moirai_tf.errors import MoiraiError
from moirai_tf.options import options_of
from moirai_tf.placement import (
    STRATEGIES,
    Incumbent,
    Problem,
    SolveOptions,
    check,
    simulate,
    solve,
)
from moirai_tf.placement.bound import packing
from moirai_tf.placement.bound.linear_program import LinearModel
from moirai_tf.placement.construct.heuristics import Constructive
from moirai_tf.placement.exact.milp.backends import Limits, Outcome, solve_with_highs
from tests.placement_cases import layered, problem_of

# c (9) waits for a and b (10 each), over a way of 1: 20 + 9 on one device, 10 + 1 + 9 on two.
JOIN = problem_of({"a": (10, 10), "b": (10, 10), "c": (9, 9)}, [("a", "c", 1), ("b", "c", 1)])


@pytest.mark.parametrize("solver", STRATEGIES)
def test_every_strategy_answers_with_a_checked_schedule(solver: str) -> None:
    result = solve(JOIN, SolveOptions(solver=solver))
    assert result.schedule is not None
    assert check(JOIN, result.schedule) == []
    assert result.makespan_ns == (29 if solver in ("single", "m-topo") else 20)
    assert result.lower_bound_ns <= 20
    assert (result.single_device, result.single_device_ns) == ("d0", 29)
    assert result.status == (
        "optimal" if result.lower_bound_ns == result.makespan_ns else "feasible"
    )


def test_options_are_options_of_the_command_line_too() -> None:
    known = {option.name: option for option in options_of(SolveOptions)}
    assert known["solver"].choices == tuple(STRATEGIES)
    assert {"auto", "milp-highs", "milp-gurobi", "single", "etf", "heft", "m-topo"} <= set(
        STRATEGIES
    )
    assert {"time_limit_s", "mip_gap", "threads", "seed", "min_gain"} <= known.keys()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"solver": "magic"}, "option solver is 'magic'"),
        ({"time_limit_s": 0.0}, "option time_limit_s is 0.0"),
        ({"time_limit_s": float("nan")}, "option time_limit_s is nan"),
        ({"mip_gap": 1.0}, "option mip_gap is 1.0"),
        ({"mip_gap": -0.1}, "option mip_gap is -0.1"),
        ({"threads": 0}, "option threads is 0"),
        ({"seed": -1}, "option seed is -1"),
        ({"min_gain": 1.5}, "option min_gain is 1.5"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(MoiraiError) as caught:
        SolveOptions(**options)  # type: ignore[arg-type]
    assert sentence in caught.value.rule


def test_faulty_problem_is_refused() -> None:
    with pytest.raises(MoiraiError, match="a cycle"):
        solve(problem_of({"a": (1,), "b": (1,)}, [("a", "b", 0), ("b", "a", 0)]))


@pytest.mark.parametrize(("min_gain", "makespan"), [(0.0, 20), (0.31, 20), (0.32, 29), (0.9, 29)])
def test_small_gain_is_not_worth_a_second_device(min_gain: float, makespan: int) -> None:
    """20 against 29 gains 9 / 29 = 31.03 %."""
    result = solve(JOIN, SolveOptions(min_gain=min_gain))
    assert result.makespan_ns == makespan
    assert result.lower_bound_ns == 20
    told = any("no placement was found that beats it" in message for message in result.messages)
    assert told == (makespan == 29)
    assert result.status == ("optimal" if makespan == 20 else "feasible")


def test_tie_goes_to_the_single_device() -> None:
    chain = problem_of({"a": (5, 5), "b": (5, 5)}, [("a", "b", 0)])
    result = solve(chain, SolveOptions(solver="milp-highs"))
    assert result.schedule is not None
    assert result.schedule.assignment == (0, 0)
    assert (result.status, result.makespan_ns) == ("optimal", 10)


def test_gap_that_was_asked_for_is_stated() -> None:
    """Work 31 on two devices: bound 16, best 20, gap 0.2."""
    problem = problem_of({"a": (10, 10), "b": (10, 10), "c": (11, 11)}, [])
    loose = solve(problem, SolveOptions(solver="heft", mip_gap=0.3))
    assert (loose.status, loose.makespan_ns, loose.lower_bound_ns) == ("optimal", 20, 16)
    assert loose.gap == pytest.approx(0.2)
    assert "optimal within the requested gap of 0.3" in loose.messages
    strict = solve(problem, SolveOptions(solver="heft", mip_gap=0.1))
    assert strict.status == "feasible"
    exact = solve(problem, SolveOptions(solver="auto"))
    assert (exact.status, exact.makespan_ns, exact.gap) == ("optimal", 20, 0.0)


def test_nothing_to_place() -> None:
    result = solve(Problem("empty", JOIN.devices, ()))
    assert (result.status, result.makespan_ns, result.gap) == ("optimal", 0, 0.0)


def test_history_falls_and_is_told_as_it_happens() -> None:
    told: list[tuple[Incumbent, int]] = []
    result = solve(layered(60), SolveOptions(time_limit_s=2), lambda *seen: told.append(seen))
    makespans = [incumbent.makespan_ns for incumbent in result.history]
    assert makespans == sorted(set(makespans), reverse=True)
    assert makespans[-1] == result.makespan_ns
    assert [incumbent for incumbent, _ in told] == list(result.history)
    assert all(bound <= result.lower_bound_ns for _, bound in told)


@pytest.mark.parametrize("solver", STRATEGIES)
def test_expired_limit_still_gives_an_answer(solver: str) -> None:
    problem = layered(300)
    result = solve(problem, SolveOptions(solver=solver, time_limit_s=1e-6))
    assert result.status == "feasible"
    assert result.schedule is not None
    assert check(problem, result.schedule) == []
    assert any("ended the search" in message for message in result.messages)


@pytest.mark.parametrize("solver", ["auto", "local-search", "milp-highs"])
def test_equal_seeds_give_equal_answers(solver: str) -> None:
    problem = layered(16, devices=2, slack=2.5)
    options = SolveOptions(solver=solver, seed=3, time_limit_s=60)
    first, second = solve(problem, options), solve(problem, options)
    assert first.schedule == second.schedule
    assert first.messages == second.messages


def test_auto_beats_the_heuristics_that_it_starts_from() -> None:
    problem = layered(200)
    result = solve(problem, SolveOptions(time_limit_s=4))
    assert {"heft", "etf", "m-topo"} <= dict(result.baselines).keys()
    assert result.history[-1].found_by in ("local-search", "decomposition")
    assert result.makespan_ns is not None
    assert result.makespan_ns < min(makespan for _, makespan in result.baselines)


def test_faulty_schedule_is_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heuristic that forgets a transfer is caught by the checker and reported."""

    def forgetful(*_: object) -> object:
        return replace(simulate(JOIN, [0, 1, 0]), transfers=())

    monkeypatch.setitem(STRATEGIES, "heft", Constructive("heft", forgetful))  # type: ignore[arg-type]
    result = solve(JOIN, SolveOptions(solver="heft"))
    assert result.makespan_ns == 29
    assert any("heft: communication: b -> c has no transfer" in m for m in result.messages)


@pytest.mark.parametrize("solver", ["milp-highs", "local-search"])
def test_ctrl_c_brings_the_best_schedule_back(solver: str) -> None:
    program = textwrap.dedent(f"""
        import signal
        from moirai_tf.placement import SolveOptions, check, solve
        from tests.placement_cases import layered
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored
        problem = layered(120)
        say = lambda incumbent, bound: print(incumbent.found_by, flush=True)
        result = solve(problem, SolveOptions(solver="{solver}", time_limit_s=120), say)
        assert check(problem, result.schedule) == []
        print("status", result.status, result.messages)
    """)
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "packing\n"
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "status feasible" in output
    assert "the search was interrupted" in output


def test_ctrl_c_while_memory_is_packed_gives_a_clean_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Best fit fails for 6, 5, 4, 4 bytes on 10 and 9, so HiGHS packs; Ctrl-C is pressed then."""
    problem = problem_of(
        dict.fromkeys("abcd", (1, 1)),
        [],
        memory={"a": 6, "b": 5, "c": 4, "d": 4},
        capacity=(10, 9),
    )
    honest = solve_with_highs

    def pressed(model: LinearModel, start: dict[int, int], limits: Limits) -> Outcome:
        return replace(honest(model, start, limits), interrupted=True)

    monkeypatch.setattr(packing, "solve_with_highs", pressed)
    result = solve(problem)
    assert (result.status, result.schedule) == ("error", None)
    assert result.messages == ("interrupted before there was a first schedule",)


def test_ten_thousand_operators_by_heuristics() -> None:
    problem = layered(10_000)
    result = solve(problem, SolveOptions(solver="heft", time_limit_s=10))
    assert result.status == "feasible"
    assert result.schedule is not None
    assert check(problem, result.schedule) == []
    assert 0 < result.lower_bound_ns < result.schedule.makespan_ns

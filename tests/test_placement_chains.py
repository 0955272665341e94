"""Problems whose chains stay together."""

from __future__ import annotations

import pytest
from hypothesis import given

from moirai_tf.placement import SolveOptions, check, simulate, solve
from moirai_tf.placement.reductions import keep_chains
from tests.placement_cases import problem_of, problems


def test_a_chain_ends_where_it_forks_and_joins() -> None:
    # in -> a -> b -> out, in -> c -> d -> out: two chains; in has two readers, out two producers.
    problem = problem_of(
        dict.fromkeys(("in", "a", "b", "c", "d", "out"), (1, 1)),
        [("in", "a c", 1), ("a", "b", 1), ("c", "d", 1), ("b", "out", 1), ("d", "out", 1)],
    )
    assert keep_chains(problem).colocation == ((1, 2), (3, 4))


def test_what_takes_no_time_neither_starts_nor_ends_a_chain() -> None:
    # A constant beside the chain does not count as a producer, and has no chain of its own.
    problem = problem_of(
        {"a": (1, 1), "constant": (0, 0), "b": (1, 1)}, [("a", "b", 1), ("constant", "b", 1)]
    )
    assert keep_chains(problem).colocation == ((0, 2),)


def test_a_chain_breaks_where_no_device_runs_both_sides() -> None:
    problem = problem_of(
        {"a": (1, 1), "b": (1, None), "c": (None, 1), "d": (1, 1)},
        [("a", "b", 1), ("b", "c", 1), ("c", "d", 1)],
    )
    assert keep_chains(problem).colocation == ((0, 1), (2, 3))


def test_chains_that_contradict_colocation_are_not_kept() -> None:
    # a runs on d0 only and is with c; b runs on both; c -> d would take d, which needs d1, along.
    problem = problem_of(
        {"a": (1, None), "b": (1, 1), "c": (1, 1), "d": (1, 1), "e": (None, 1)},
        [("c", "d", 1)],
        colocation=((0, 2), (3, 4)),
    )
    assert keep_chains(problem) == problem


def test_chains_keep_a_model_of_branches_from_being_cut_everywhere() -> None:
    # Two chains of three; moving is free, so the exact problem may cut anywhere.
    names = [f"{chain}{i}" for chain in "ab" for i in range(3)]
    problem = problem_of(
        dict.fromkeys(names, (10, 10)),
        [(f"{c}{i}", f"{c}{i + 1}", 0) for c in "ab" for i in range(2)],
    )
    result = solve(keep_chains(problem), SolveOptions(time_limit_s=5.0))
    assert result.schedule is not None
    assert result.schedule.makespan_ns == 30
    assert len({p.device for p in result.schedule.placed[:3]}) == 1


@given(problems())
def test_every_answer_is_one_of_the_problem(problem) -> None:
    chained = keep_chains(problem)
    assert chained.operators == problem.operators
    assert chained.tensors == problem.tensors
    assert all(chained.unit_devices) or chained is problem
    if not all(chained.unit_devices):
        return
    assignment = [chained.unit_devices[unit][0] for unit in chained.unit_of]
    need = [0] * len(problem.devices)
    for operator, device in zip(problem.operators, assignment, strict=True):
        need[device] += operator.memory_bytes
    if all(n <= c for n, c in zip(need, problem.capacity_bytes, strict=True)):
        assert not check(problem, simulate(problem, assignment))


@pytest.mark.parametrize("readers", ["b", "b b2"])
def test_only_the_only_reader_goes_along(readers: str) -> None:
    problem = problem_of(dict.fromkeys(("a", "b", "b2"), (1, 1)), [("a", readers, 1)])
    assert keep_chains(problem).colocation == (((0, 1),) if readers == "b" else ())

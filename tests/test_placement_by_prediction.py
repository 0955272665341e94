"""The search by predicted latency; arithmetic in the comments."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from moirai_tf.placement import Device, Operator, Problem, Schedule, Tensor, check, simulate
from moirai_tf.placement.improve.by_prediction import improved
from tests.placement_cases import problems

FAR = ((0, 1000), (1000, 0))
SECONDS = 10.0
"""Longer than it takes until nothing is found any more."""


def two_chains(capacity: int | None = None) -> Problem:
    """Six operators in turn, twice, 10 each on either of two devices, with 1 byte each."""
    return Problem(
        "two chains",
        (Device("d0", None), Device("d1", capacity)),
        tuple(Operator(f"{chain}{i}", (10, 10), 1) for chain in "ab" for i in range(6)),
        tuple(Tensor(i, (i + 1,), FAR) for i in range(11) if i != 5),
    )


def makespan(schedule: Schedule) -> int:
    return schedule.makespan_ns


def test_a_chain_moves_as_a_whole():
    # 12 operators on one device take 120, a chain on each 60; to cut a chain costs 1000.
    problem = two_chains()
    found = improved(problem, simulate(problem, [0] * 12), makespan, SECONDS)
    assert found.makespan_ns == 60
    assert not check(problem, found)


def test_what_is_predicted_counts():
    # By the makespan a chain on each is best; here each operator on d1 makes a step dearer by 50.
    problem = two_chains()
    apart = simulate(problem, [0] * 6 + [1] * 6)

    def predicted_ns(schedule: Schedule) -> int:
        return schedule.makespan_ns + 50 * sum(schedule.assignment)

    found = improved(problem, apart, predicted_ns, SECONDS)
    assert found.assignment == (0,) * 12


def test_memory_and_colocation_hold():
    # d1 has room for 5 of the 6 operators of a chain.
    tight = two_chains(capacity=5)
    start = simulate(tight, [0] * 12)
    assert improved(tight, start, makespan, SECONDS) is start
    # The last of a and the first of b are colocated, so both chains are in one place.
    bound = replace(two_chains(), colocation=((5, 6),))
    assert improved(bound, simulate(bound, [0] * 12), makespan, SECONDS).makespan_ns == 120


@given(problems(), st.integers(0, 3))
def test_it_is_feasible_and_never_worse(problem, seed):
    start = simulate(problem, [problem.unit_devices[unit][0] for unit in problem.unit_of])
    found = improved(problem, start, makespan, 0.05, seed)
    assert found.makespan_ns <= start.makespan_ns
    assert found is start or not check(problem, found)

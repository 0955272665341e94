"""The simulator: gaps, modes and queues by hand, feasibility in all modes by hypothesis."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.placement import Problem, Schedule, check, ready_queue, simulate
from moirai_tf.placement.evaluate.events import remaining_path_order, replay
from moirai_tf.placement.evaluate.insertion import PartialSchedule
from tests.placement_brute_force import assignments
from tests.placement_cases import MODES, layered, problem_of, problems
from tests.placement_list_schedule import list_schedule

# a on d0 sends one tensor to b and c; 4 ns to any other device
FORK = problem_of({"a": (1, 1, 1), "b": (2, 2, 2), "c": (2, 2, 2)}, [("a", "b c", 4)])


@pytest.mark.parametrize(
    ("assignment", "transfers", "congestion", "makespan"),
    [
        # to two devices: a 0-1; both move 1-5, or one after the other 1-5 and 5-9; then 2
        ([0, 1, 2], "per_tensor", "none", 7),
        ([0, 1, 2], "per_tensor", "link", 7),
        ([0, 1, 2], "per_tensor", "port", 11),
        # to one device: a single transfer 1-5, then b 5-7 and c 7-9
        ([0, 1, 1], "per_tensor", "port", 9),
        ([0, 1, 1], "per_tensor", "none", 9),
        # one for each consumer: 1-5 and 5-9, then c 9-11; without congestion both 1-5
        ([0, 1, 1], "per_edge", "port", 11),
        ([0, 1, 1], "per_edge", "link", 11),
        ([0, 1, 1], "per_edge", "none", 9),
        ([1, 1, 1], "per_tensor", "port", 5),
    ],
)
def test_modes_by_hand(
    assignment: list[int], transfers: str, congestion: str, makespan: int
) -> None:
    problem = replace(FORK, transfers=transfers, congestion=congestion)
    for schedule in (simulate(problem, assignment), ready_queue(problem, assignment)):
        assert check(problem, schedule) == []
        assert schedule.makespan_ns == makespan


def test_order_decides_and_ready_queue_does_not_plan() -> None:
    """short (1) is ready first; long (5) starts a path of 5 + 4 + 9. One device, d0, runs both.

    Planned, long goes first: 5 + 4 + 9 = 18. The queue takes short, which comes first: 19.
    """
    problem = problem_of(
        {"short": (1, None), "long": (5, None), "after": (None, 9)}, [("long", "after", 4)]
    )
    assignment = [0, 0, 1]
    assert simulate(problem, assignment).makespan_ns == 18
    assert simulate(problem, assignment, order=[0, 1, 2]).makespan_ns == 19
    assert ready_queue(problem, assignment).makespan_ns == 19


def test_insertion_uses_the_gap_before_a_waiting_operator() -> None:
    """b waits on d1 for a's tensor until 6; c (3) fits before it although it is placed later."""
    problem = problem_of({"a": (2, 2), "b": (3, 3), "c": (3, 3)}, [("a", "b", 4)])
    schedule = simulate(problem, [0, 1, 1], order=[0, 1, 2])
    assert (schedule.placed[2].start_ns, schedule.makespan_ns) == (0, 9)


def test_two_inputs_share_the_receiving_port() -> None:
    """a on d0 and b on d1 both finish at 1; c on d2 gets 1-5 and 5-9 by port, both 1-5 by link."""
    problem = problem_of(
        {"a": (1, 1, 1), "b": (1, 1, 1), "c": (1, 1, 1)}, [("a", "c", 4), ("b", "c", 4)]
    )
    assert simulate(problem, [0, 1, 2]).makespan_ns == 10
    assert simulate(replace(problem, congestion="link"), [0, 1, 2]).makespan_ns == 6


def test_trial_changes_nothing_and_guards_its_use() -> None:
    partial = PartialSchedule(FORK)
    partial.place(0, 0)
    assert partial.trial(1, 1) == partial.trial(1, 1)
    with pytest.raises(ValueError, match="not placed yet"):
        PartialSchedule(FORK).trial(1, 0)
    banned = problem_of({"a": (1, None)}, [])
    with pytest.raises(ValueError, match="cannot run"):
        PartialSchedule(banned).trial(0, 1)


@settings(max_examples=150, deadline=None)
@given(problems(most_operators=7), st.randoms(use_true_random=False))
def test_compiled_evaluator_equals_the_plain_one(problem: Problem, generator: Random) -> None:
    for assignment in assignments(problem)[:4]:
        order = _random_order(problem, generator)
        assert simulate(problem, assignment, order) == list_schedule(problem, assignment, order)


@pytest.mark.parametrize(("transfers", "congestion"), MODES)
def test_compiled_evaluator_equals_the_plain_one_at_size(transfers: str, congestion: str) -> None:
    problem = replace(layered(300), transfers=transfers, congestion=congestion)
    generator = Random(1)
    assignment = [generator.randrange(4) for _ in problem.operators]
    for order in (remaining_path_order(problem, assignment), _random_order(problem, generator)):
        assert simulate(problem, assignment, order) == list_schedule(problem, assignment, order)


@settings(max_examples=80, deadline=None)
@given(problems(most_operators=6))
def test_every_simulation_is_feasible_and_replay_never_delays(problem: Problem) -> None:
    for assignment in assignments(problem)[:8]:
        planned = simulate(problem, assignment)
        assert check(problem, planned) == []
        assert check(problem, ready_queue(problem, assignment)) == []
        again = _replayed(problem, planned)
        assert check(problem, again) == []
        assert again.makespan_ns <= planned.makespan_ns


@settings(max_examples=30, deadline=None)
@given(problems(most_operators=6))
def test_inexact_starts_still_give_exact_times(problem: Problem) -> None:
    for assignment in assignments(problem)[:4]:
        planned = simulate(problem, assignment)
        noisy = _replayed(problem, planned, noise=1e-7)
        assert check(problem, noisy) == []
        assert noisy.makespan_ns <= planned.makespan_ns


def _random_order(problem: Problem, generator: Random) -> list[int]:
    """Operators in random order, producers first."""
    waiting = [len(tensors) for tensors in problem.incoming]
    ready = [operator for operator, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        order.append(ready.pop(generator.randrange(len(ready))))
        for tensor in problem.outgoing[order[-1]]:
            for consumer in problem.tensors[tensor].consumers:
                waiting[consumer] -= 1
                if waiting[consumer] == 0:
                    ready.append(consumer)
    return order


def _replayed(problem: Problem, schedule: Schedule, noise: float = 0.0) -> Schedule:
    starts = [p.start_ns + noise * (i % 3 - 1) for i, p in enumerate(schedule.placed)]
    transfers = {
        (t.tensor, t.target if t.consumer is None else t.consumer): t.start_ns + noise
        for t in schedule.transfers
    }
    return replay(problem, schedule.assignment, starts, transfers)

"""Heuristics: by hand, and feasible whenever anything is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings

from moirai_tf.placement import Device, Problem, Schedule, SolveOptions, check, solve
from moirai_tf.placement.bound.packing import InfeasibleError, Packing, Reservation, pack, shortage
from moirai_tf.placement.clock import Deadline, OutOfTimeError
from moirai_tf.placement.construct import (
    etf,
    getf,
    heft,
    m_etf,
    m_sct,
    m_topo,
    single,
    single_devices,
)
from moirai_tf.placement.construct.heft import upward_ranks
from moirai_tf.placement.exact.milp.backends import Limits
from tests.placement_brute_force import assignments
from tests.placement_cases import layered, problem_of, problems

Heuristic = Callable[[Problem, Packing, Deadline], Schedule]

LIMITS = Limits(10.0)
HEURISTICS: tuple[Heuristic, ...] = (heft, etf, m_topo, m_etf, m_sct, getf)


def _pack(problem: Problem) -> tuple[int, ...]:
    packing = pack(problem, LIMITS)
    assert packing is not None
    return packing


def test_upward_ranks_use_means() -> None:
    """c: (3 + 5) / 2 = 4; b: 2 + 6 + 4 = 12; a: (1 + 3) / 2 + max(6 + 12, 2 + 4) = 20."""
    problem = problem_of(
        {"a": (1, 3), "b": (2, None), "c": (3, 5)}, [("a", "b", 6), ("a", "c", 2), ("b", "c", 6)]
    )
    assert upward_ranks(problem) == [20.0, 12.0, 4.0]


def test_heft_takes_the_earliest_finish() -> None:
    """a (4) to d0. b: on d0 4-10; on d1 after 1 of transfer 5-8: d1. c: d0 4-8, d1 8-10: d0."""
    problem = problem_of({"a": (4, 9), "b": (6, 3), "c": (4, 2)}, [("a", "b", 1), ("a", "c", 1)])
    schedule = heft(problem, _pack(problem), Deadline(10))
    assert schedule.assignment == (0, 1, 0)
    assert schedule.makespan_ns == 8


def test_etf_takes_the_earliest_start() -> None:
    """a starts at 0 on d0 and ends at 4. b starts at 4 on d0 (d1: 5) though d1 would finish at 8.

    c then starts at 5 on d1 (d0: 10). Makespan 4 + 6 = 10.
    """
    problem = problem_of({"a": (4, 9), "b": (6, 3), "c": (4, 2)}, [("a", "b", 1), ("a", "c", 1)])
    schedule = etf(problem, _pack(problem), Deadline(10))
    assert schedule.assignment == (0, 0, 1)
    assert schedule.makespan_ns == 10


def test_m_topo_fills_devices_in_turn() -> None:
    """Memory 2 each, 4 operators, 2 devices: share 8 / 2 + 2 = 6, so d0 takes three of them."""
    problem = problem_of(
        dict.fromkeys("abcd", (1, 1)),
        [("a", "b", 1), ("b", "c", 1), ("c", "d", 1)],
        memory=dict.fromkeys("abcd", 2),
    )
    assert m_topo(problem, _pack(problem), Deadline(10)).assignment == (0, 0, 0, 1)


def test_single_is_the_best_device_that_can_hold_and_run_all() -> None:
    """d0 takes 6 but holds only 2 bytes; d1 takes 9; d2 cannot run b."""
    problem = problem_of(
        {"a": (2, 4, 1), "b": (4, 5, None)},
        [("a", "b", 3)],
        memory={"a": 2, "b": 1},
        capacity=(2, None, None),
    )
    assert [option.device for option in single_devices(problem)] == [1]
    best = single(problem)
    assert best is not None
    assert (best.schedule.assignment, best.schedule.makespan_ns) == ((1, 1), 9)
    assert single(problem_of({"a": (1, None), "b": (None, 1)}, [])) is None


def test_pinned_feeds_do_not_rule_a_single_device_out() -> None:
    """feed and fetch are on the client, d0. On d1: 2 for the feed, 3 of work, 4 for the fetch: 9.

    On d0 the work takes 20. Without a way the same device would take 3.
    """
    problem = problem_of(
        {"feed": (0, None), "work": (20, 3), "fetch": (0, None)},
        [("feed", "work", 2), ("work", "fetch", 4)],
    )
    times = {option.device: option.schedule.makespan_ns for option in single_devices(problem)}
    assert times == {0: 20, 1: 9}
    result = solve(problem, SolveOptions(solver="single"))
    assert (result.single_device, result.single_device_ns, result.makespan_ns) == ("d1", 9, 9)


def test_pinned_feed_needs_room_where_it_stays() -> None:
    """The feed's 3 bytes are on d0, which holds 2: nothing fits. With 3 bytes d1 is an option."""
    problem = problem_of(
        {"feed": (0, None), "work": (9, 3)}, [], memory={"feed": 3}, capacity=(2, None)
    )
    assert single_devices(problem) == []
    roomy = replace(problem, devices=(Device("d0", 3), Device("d1")))
    assert [option.device for option in single_devices(roomy)] == [0, 1]


def test_work_that_cannot_run_rules_a_single_device_out() -> None:
    """a takes no time on d1 but 5 on d0, where it must be if d2 is to do the rest; d1 will do."""
    idle = problem_of({"a": (5, 0, None), "b": (None, None, 2)}, [])
    assert [option.device for option in single_devices(idle)] == [2]
    busy = problem_of({"a": (5, 1, None), "b": (None, None, 2)}, [])
    assert single_devices(busy) == []


@pytest.mark.parametrize("heuristic", HEURISTICS)
def test_greedy_choice_never_leads_into_a_dead_end(heuristic: Heuristic) -> None:
    """d0 is fast for all, but must be kept for big: 3 + 3 bytes of small fit d1 (6), big d0 (5)."""
    problem = problem_of(
        {"small": (1, 50), "other": (1, 50), "big": (1, 50)},
        [],
        memory={"small": 3, "other": 3, "big": 5},
        capacity=(5, 6),
    )
    schedule = heuristic(problem, _pack(problem), Deadline(10))
    assert schedule.assignment == (1, 1, 0)


@pytest.mark.parametrize("heuristic", HEURISTICS)
def test_group_moves_together_with_all_its_memory(heuristic: Heuristic) -> None:
    """first and last share a device and need 6 bytes: d1, although d0 is faster for first."""
    problem = problem_of(
        {"first": (1, 9), "middle": (5, 5), "last": (1, 9)},
        [("first", "middle", 1), ("middle", "last", 1)],
        memory={"first": 2, "middle": 1, "last": 4},
        capacity=(5, 6),
        colocation=((0, 2),),
    )
    schedule = heuristic(problem, _pack(problem), Deadline(10))
    assert schedule.assignment == (1, 0, 1)


@settings(max_examples=100, deadline=None)
@given(problems(most_operators=6))
def test_feasible_exactly_when_something_is(problem: Problem) -> None:
    if not assignments(problem):
        with pytest.raises(InfeasibleError):
            pack(problem, LIMITS)
        return
    for heuristic in HEURISTICS:
        assert check(problem, heuristic(problem, _pack(problem), Deadline(10))) == []


def test_packing_is_searched_exactly_where_best_fit_fails() -> None:
    """Best fit puts 6 into 9 and 5 into 10 and ends with 3, 1 free and a 4; 6 + 4 and 5 + 4 fit."""
    problem = problem_of(
        dict.fromkeys("abcd", (1, 1)),
        [],
        memory={"a": 6, "b": 5, "c": 4, "d": 4},
        capacity=(10, 9),
    )
    packing = _pack(problem)
    assert (packing[0], packing[1], packing[2] != packing[3]) == (0, 1, True)


@pytest.mark.parametrize(
    ("memory", "capacity", "reason"),
    [
        ({"a": 9}, (8, 7), "a must share a device and need 9 bytes; of d0, d1 none holds more"),
        (
            {"a": 6, "b": 6, "c": 5},
            (8, 8),
            "3 operators that can only be on d0, d1 need 17 bytes, and these hold 16; the largest "
            "are a, b, c",
        ),
        (
            {"a": 5, "b": 5, "c": 5},
            (8, 8),
            "a, b, c need 15 bytes, of which d0, d1 hold 16, but an exact search found no way",
        ),
    ],
)
def test_infeasible_memory_is_explained(
    memory: dict[str, int], capacity: tuple[int, int], reason: str
) -> None:
    problem = problem_of(dict.fromkeys("abc", (1, 1)), [], memory=memory, capacity=capacity)
    assert assignments(problem) == []
    result = solve(problem)
    assert result.status == "infeasible"
    assert result.schedule is None
    assert reason in result.messages[0]


def test_shortage_on_the_only_devices_of_some_operators() -> None:
    """b and c can only be on d1: 5 + 4 bytes against 8, while d0 is empty."""
    problem = problem_of(
        {"a": (1, 1), "b": (None, 1), "c": (None, 1)},
        [],
        memory={"b": 5, "c": 4},
        capacity=(100, 8),
    )
    reason = shortage(problem)
    assert reason is not None
    assert reason.startswith("2 operators that can only be on d1 need 9 bytes, and these hold 8")


def test_reservation_refuses_what_would_block_another() -> None:
    problem = problem_of({"a": (1, 1), "b": (1, 1)}, [], memory={"a": 4, "b": 4}, capacity=(4, 4))
    reservation = Reservation(problem, _pack(problem))
    assert sorted(reservation.devices(0)) == [0, 1]
    reservation.decide(0, 1)
    assert reservation.devices(0) == [1]
    assert reservation.devices(1) == [0]
    with pytest.raises(ValueError, match="no room"):
        reservation.decide(1, 1)


def test_deadline_ends_a_heuristic() -> None:
    problem = layered(200)
    for heuristic in HEURISTICS:
        with pytest.raises(OutOfTimeError):
            heuristic(problem, _pack(problem), Deadline(0.0))


@pytest.mark.parametrize("slack", [1.0001, 1.02, 1.5])
def test_tight_memory_at_size(slack: float) -> None:
    problem = layered(400, slack=slack)
    for name in ("heft", "etf", "m-topo"):
        result = solve(problem, SolveOptions(solver=name, time_limit_s=20))
        assert result.status in ("feasible", "optimal")
        assert result.schedule is not None
        assert check(problem, result.schedule) == []

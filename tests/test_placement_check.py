"""The checker: schedules broken on purpose, each fault named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moirai_tf.placement import Placed, Problem, Schedule, Transfer, check
from tests.placement_cases import problem_of

# a on d0 feeds b on d1 and c on d2 with one tensor; d, on d0, may not run on d1; c and e share d2.
# Port mode: a 0-2, to d1 2-6, to d2 6-10, b 6-9, c 10-12, e 12-15, d 2-7. Makespan 15.
PROBLEM = problem_of(
    {"a": (2, 2, 2), "b": (3, 3, 3), "c": (2, 2, 2), "d": (5, None, 5), "e": (3, 3, 3)},
    [("a", "b c", 4), ("c", "e", 4)],
    memory={"a": 4, "b": 6, "c": 1, "d": 3, "e": 2},
    capacity=(7, 6, None),
    colocation=((2, 4),),
)
A, B, C, D, E = range(5)
GOOD = Schedule(
    placed=(
        Placed(0, 0, 2),
        Placed(1, 6, 9),
        Placed(2, 10, 12),
        Placed(0, 2, 7),
        Placed(2, 12, 15),
    ),
    transfers=(Transfer(0, 0, 1, 2, 6), Transfer(0, 0, 2, 6, 10)),
    makespan_ns=15,
)


def placed(operator: int, device: int, start_ns: int, finish_ns: int) -> Schedule:
    """GOOD with one operator elsewhere."""
    values = list(GOOD.placed)
    values[operator] = Placed(device, start_ns, finish_ns)
    return replace(GOOD, placed=tuple(values))


def moved(*transfers: Transfer) -> Schedule:
    """GOOD with other transfers."""
    return replace(GOOD, transfers=transfers)


def test_good_schedule_has_no_fault() -> None:
    assert check(PROBLEM, GOOD) == []


@pytest.mark.parametrize(
    ("schedule", "fault"),
    [
        (replace(GOOD, placed=GOOD.placed[:4]), "assignment: 4 operators are placed, the problem"),
        (placed(D, 7, 2, 7), "assignment: d is on device 7, which does not exist"),
        (placed(D, 1, 10, 15), "assignment: d is on d1, which cannot run it"),
        (placed(D, 0, 2, 6), "duration: d takes 4 on d0, it should take 5"),
        (placed(D, 0, -5, 0), "duration: d starts at -5, before 0"),
        (placed(D, 0, 1, 6), "overlap: a and d run at the same time on d0"),
        (placed(E, 0, 16, 19), "colocation: c and e must share a device and do not"),
        (placed(B, 0, 7, 10), "memory: d0 holds 13 bytes of 7; the largest are b, a, d"),
        (placed(B, 1, 5, 8), "communication: a -> b: the consumer starts at 5, tensor 0 is there"),
        (placed(E, 2, 11, 14), "communication: c -> e: the consumer starts at 11, tensor 1"),
        (moved(GOOD.transfers[0]), "communication: a -> c has no transfer of tensor 0 to d2"),
        (
            moved(*GOOD.transfers, Transfer(0, 0, 2, 10, 14)),
            "communication: tensor 0 of a from d0 to d2 is transferred twice",
        ),
        (
            moved(*GOOD.transfers, Transfer(1, 2, 0, 12, 16)),
            "communication: tensor 1 of c from d2 to d0 serves no consumer",
        ),
        (
            moved(Transfer(0, 0, 1, 1, 5), GOOD.transfers[1]),
            "communication: tensor 0 of a from d0 to d1 starts before its producer finishes",
        ),
        (
            moved(Transfer(0, 0, 1, 2, 5), GOOD.transfers[1]),
            "communication: tensor 0 of a from d0 to d1 takes 3, it should take 4",
        ),
        (
            moved(GOOD.transfers[0], Transfer(0, 1, 2, 6, 10)),
            "communication: tensor 0 of a from d1 to d2 does not start where its producer is",
        ),
        (
            moved(GOOD.transfers[0], Transfer(0, 0, 2, 6, 10, C)),
            "communication: a -> c has no transfer of tensor 0 to d2",
        ),
        (
            moved(GOOD.transfers[0], Transfer(0, 0, 2, 5, 9)),
            "congestion: d0 sends two tensors at the same time",
        ),
        (moved(Transfer(9, 0, 1, 2, 6)), "communication: transfer 0 moves an unknown tensor 9"),
        (moved(Transfer(0, 0, 5, 2, 6)), "communication: transfer 0 uses a device that does not"),
        (
            moved(Transfer(0, 0, 1, 2, 6, 77)),
            "communication: transfer 0 is for an unknown operator",
        ),
        (replace(GOOD, makespan_ns=14), "makespan: claimed 14, the latest finish is 15"),
        (replace(GOOD, lower_bound_ns=16), "bound: 16 is above the makespan 15"),
        (replace(GOOD, status="perfect"), "status: 'perfect' is neither optimal nor feasible"),
        (replace(GOOD, status="optimal"), "status: optimal is claimed, but makespan 15 and bound"),
        (replace(GOOD, allowed_gap=-0.1), "status: the allowed gap -0.1 is not in [0, 1)"),
        (replace(GOOD, allowed_gap=float("nan")), "status: the allowed gap nan is not in [0, 1)"),
    ],
)
def test_each_fault_is_named(schedule: Schedule, fault: str) -> None:
    assert any(sentence.startswith(fault) for sentence in check(PROBLEM, schedule)), check(
        PROBLEM, schedule
    )


@pytest.mark.parametrize(
    ("bound", "gap", "right"), [(15, 0, True), (12, 0.2, True), (11, 0.2, False)]
)
def test_optimal_needs_the_bound_within_the_stated_gap(bound: int, gap: float, right: bool) -> None:
    claimed = replace(GOOD, status="optimal", lower_bound_ns=bound, allowed_gap=gap)
    assert (check(PROBLEM, claimed) == []) == right


def test_congestion_modes_differ() -> None:
    """Both tensors leave a at 2: one port cannot send both, two links can."""
    early = replace(moved(GOOD.transfers[0], Transfer(0, 0, 2, 2, 6)))
    assert check(PROBLEM, early)[0].startswith("congestion: d0 sends two tensors")
    assert check(replace(PROBLEM, congestion="link"), early) == []
    assert check(replace(PROBLEM, congestion="none"), early) == []


def test_receiving_port_and_link_take_one_at_a_time() -> None:
    """a on d0 and b on d1 both send to c on d2; d1 sends two tensors on one link."""
    problem = problem_of(
        {"a": (1, 1, 1), "b": (1, 1, 1), "c": (1, 1, 1)},
        [("a", "c", 4), ("b", "c", 4), ("b", "c", 4)],
    )
    schedule = Schedule(
        placed=(Placed(0, 0, 1), Placed(1, 0, 1), Placed(2, 9, 10)),
        transfers=(Transfer(0, 0, 2, 1, 5), Transfer(1, 1, 2, 3, 7), Transfer(2, 1, 2, 5, 9)),
        makespan_ns=10,
    )
    assert any("d2 receives two tensors" in fault for fault in check(problem, schedule))
    faults = check(replace(problem, congestion="link"), schedule)
    assert [fault.split(":")[1] for fault in faults] == [
        " the link d1 -> d2 carries two tensors at the same time"
    ]


def test_per_edge_needs_a_transfer_for_each_consumer() -> None:
    problem = problem_of({"a": (1, 1), "b": (1, 1), "c": (1, 1)}, [("a", "b c", 4)])
    shared = Schedule(
        placed=(Placed(0, 0, 1), Placed(1, 5, 6), Placed(1, 6, 7)),
        transfers=(Transfer(0, 0, 1, 1, 5),),
        makespan_ns=7,
    )
    assert check(problem, shared) == []
    each = replace(problem, transfers="per_edge")
    assert [fault.split(":")[1] for fault in check(each, shared)] == [
        " a -> b has no transfer of tensor 0 to d1",
        " a -> c has no transfer of tensor 0 to d1",
        " tensor 0 of a from d0 to d1 serves no consumer",
    ]
    own = replace(
        shared,
        placed=(Placed(0, 0, 1), Placed(1, 5, 6), Placed(1, 9, 10)),
        transfers=(Transfer(0, 0, 1, 1, 5, 1), Transfer(0, 0, 1, 5, 9, 2)),
        makespan_ns=10,
    )
    assert check(each, own) == []


def test_spans_without_length_overlap_nothing() -> None:
    problem: Problem = problem_of({"a": (4,), "b": (0,)}, [])
    schedule = Schedule((Placed(0, 0, 4), Placed(0, 2, 2)), (), 4)
    assert check(problem, schedule) == []


def test_long_operator_is_seen_behind_short_ones() -> None:
    """a runs from 0 to 10, b from 1 to 2, c from 4 to 5: both are inside a."""
    problem = problem_of({"a": (10,), "b": (1,), "c": (1,)}, [])
    schedule = Schedule((Placed(0, 0, 10), Placed(0, 1, 2), Placed(0, 4, 5)), (), 10)
    assert [fault.split(" run")[0] for fault in check(problem, schedule)] == [
        "overlap: a and b",
        "overlap: a and c",
    ]

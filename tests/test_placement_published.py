"""Published methods that are compared with: their own choices, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moirai_tf.placement import Device, Problem, Schedule, SolveOptions, Tensor, check, solve
from moirai_tf.placement.bound.packing import Packing, pack
from moirai_tf.placement.clock import Deadline, OutOfTimeError
from moirai_tf.placement.construct import etf, getf, m_etf, m_sct
from moirai_tf.placement.construct.getf import Machines, machines_of, work_ns
from moirai_tf.placement.construct.m_sct import WaitingClock, co_placed, favourites
from moirai_tf.placement.exact.milp.backends import Limits
from moirai_tf.placement.solve import make
from tests.placement_cases import layered, problem_of

_EIGHT = (1, 4, 4, 4, 4, 4, 4, 4)
"""Time on one device of speed 4 and seven of speed 1."""


def _pack(problem: Problem) -> Packing:
    packing = pack(problem, Limits(10.0))
    assert packing is not None
    return packing


def _run(method: object, problem: Problem) -> dict[str, tuple[int, int]]:
    """(device, start) of each operator in a checked schedule."""
    schedule = method(problem, _pack(problem), Deadline(10))  # type: ignore[operator]
    assert isinstance(schedule, Schedule)
    assert check(problem, schedule) == []
    named = zip(problem.operators, schedule.placed, strict=True)
    return {operator.name: (placed.device, placed.start_ns) for operator, placed in named}


def _waiting(problem: Problem, packing: Packing, deadline: Deadline) -> Schedule:
    """m-SCT without groups."""
    return WaitingClock(problem, packing, deadline).run()


def test_m_etf_runs_what_arrived_first() -> None:
    """busy holds d0 until 10. p (d1) is done at 2; its tensor for x takes 1, that for y takes 5.

    At 10 both are there, x since 3, so x runs before y, which comes first in topological order.
    ETF sees two starts at 10 and takes y.
    """
    problem = problem_of(
        {"busy": (10, None), "p": (None, 2), "y": (1, None), "x": (1, None)},
        [("p", "y", 5), ("p", "x", 1)],
    )
    assert _run(m_etf, problem) == {"busy": (0, 0), "p": (1, 0), "x": (0, 10), "y": (0, 11)}
    assert _run(etf, problem) == {"busy": (0, 0), "p": (1, 0), "y": (0, 10), "x": (0, 11)}


def test_m_etf_takes_the_faster_of_two_free_devices() -> None:
    """Both are free at 0; d1 is done with a at 3, d0 at 9. b then starts at 0 on d0."""
    problem = problem_of({"a": (9, 3), "b": (9, 3)}, [])
    assert _run(m_etf, problem) == {"a": (1, 0), "b": (0, 0)}


def test_m_etf_passes_by_devices_that_are_full() -> None:
    """d1 holds one of the two."""
    problem = problem_of(
        {"a": (9, 3), "b": (9, 3)}, [("a", "b", 1)], memory={"a": 2, "b": 2}, capacity=(4, 2)
    )
    assert _run(m_etf, problem) == {"a": (1, 0), "b": (0, 4)}


def test_favourite_child_is_on_the_longest_path() -> None:
    """w >= 2 + 4 x[i, j] + 5 and w >= 2 + 4 x[i, k] + 1, and x[i, j] + x[i, k] >= 1.

    x[i, j] = 0, x[i, k] = 1 gives 7, anything else more.
    """
    problem = problem_of({"i": (1, 3), "j": (5, 5), "k": (1, 1)}, [("i", "j", 4), ("i", "k", 4)])
    assert favourites(problem, Deadline(10)) == {0: 1}


@pytest.mark.parametrize(
    ("first", "found"),
    [
        # max(6 + 4 x, 1 + 4 (1 - x)) is least at x = 0: 6.
        (6, {0: 2}),
        # max(3 + 4 x, 1 + 4 (1 - x)) is least at x = 0.25: 4. Nobody's x is below 0.1.
        (3, {}),
    ],
)
def test_one_favourite_parent(first: int, found: dict[int, int]) -> None:
    problem = problem_of(
        {"p": (first, first), "q": (1, 1), "child": (2, 2)},
        [("p", "child", 4), ("q", "child", 4)],
    )
    assert favourites(problem, Deadline(10)) == found


def _awaiting(**more: tuple[int | None, ...]) -> Problem:
    """a and b start on d0 and d1 at 0. f waits on d0 for b: 1 + 2 = 3; on d1 for a: 2 + 5 = 7.

    The favourite child of a is f: with it w = max(2, 1 + mean 1) + 20 = 22, and through g
    2 + 9 + 10 = 21. Without it w is above 22. g is ready on d0 at 2, on d1 at 11.
    """
    problem = problem_of(
        {"a": (2, 2), "b": (1, 1), "f": (20, 20), "g": (10, 10), **more},
        [("a", "f", 5), ("a", "g", 9)],
    )
    return replace(problem, tensors=(*problem.tensors, Tensor(1, (2,), ((0, 0), (2, 0)))))


def test_device_waits_for_a_favourite_child() -> None:
    """At 2 d0 is awake and leaves g, so f runs from 3 on, and g on d1 at 11.

    m-ETF runs g at 2; f goes to d1 at 7.
    """
    problem = _awaiting()
    assert favourites(problem, Deadline(10)) == {0: 2}
    expected = {"a": (0, 0), "b": (1, 0), "f": (0, 3), "g": (1, 11)}
    assert _run(_waiting, problem) == expected
    assert _run(m_etf, problem) == {"a": (0, 0), "b": (1, 0), "g": (0, 2), "f": (1, 7)}


def test_awake_device_runs_what_is_urgent() -> None:
    """u could start since 0 on all of its devices, d0 alone, so it does not wait for f at 2.

    After u, which has no favourite child, g runs at 4; f goes to d1 at 7.
    """
    problem = _awaiting(u=(2, None))
    expected = {"a": (0, 0), "b": (1, 0), "u": (0, 2), "g": (0, 4), "f": (1, 7)}
    assert _run(_waiting, problem) == expected


def test_single_consumers_are_merged() -> None:
    """p and q are read by t alone; s by both. The group takes 1 + 2 + 3 and 4 + 5 + 6."""
    problem = problem_of(
        {"s": (7, 7), "p": (1, 4), "q": (2, 5), "t": (3, 6)},
        [("s", "p q", 1), ("p", "t", 1), ("q", "t", 1)],
        memory={"p": 3, "q": 3, "t": 3},
    )
    merged = co_placed(problem)
    assert merged.members == ((0,), (1, 2, 3))
    assert [o.compute_ns for o in merged.problem.operators] == [(7, 7), (6, 15)]
    assert [(t.producer, t.consumers) for t in merged.problem.tensors] == [(0, (1,))]
    assert merged.expand([1, 0], [0, 1]) == ([1, 0, 0, 0], [0, 1, 2, 3])


def test_m_sct_tries_groups() -> None:
    """b joins f on d0, 2-3 and 3-23, as late as without groups, and groups come first."""
    assert _run(m_sct, _awaiting()) == {"a": (0, 0), "b": (0, 2), "f": (0, 3), "g": (1, 11)}


def test_groups_fit_a_device() -> None:
    """q + t need 6 bytes, with p 9, and no device holds more than 6."""
    problem = problem_of(
        {"s": (7, 7), "p": (1, 4), "q": (2, 5), "t": (3, 6)},
        [("s", "p q", 1), ("p", "t", 1), ("q", "t", 1)],
        memory={"p": 3, "q": 3, "t": 3},
        capacity=(6, 6),
    )
    assert co_placed(problem).members == ((0,), (1,), (2, 3))


def test_speed_groups() -> None:
    """8 devices: G = ln 8 / ln ln 8 = 2.84. 0.5 < 9 / 8 is left out; 1.2 G = 3.41 divides."""
    machines = Machines((9, 8, 4, 3, 2, 2, 1.2, 0.5))
    assert machines.kept == (0, 1, 2, 3, 4, 5, 6)
    assert machines.groups == ((3, 4, 5, 6), (0, 1, 2))
    assert Machines((4, 3, 2)).groups == ((0, 1, 2),)  # G = ln 3 / ln ln 3 = 11.7
    assert Machines((4, 3)).groups == ((0, 1),)  # ln ln 2 < 0
    assert Machines((4, 1)).groups == ((0,),)  # 1 < 4 / 2


def test_half_of_the_mass_decides() -> None:
    """Total speeds: 7 slow, 4 fast. With half of it on fast ones only these count."""
    machines = Machines((4, 1, 1, 1, 1, 1, 1, 1))
    assert machines.groups == ((1, 2, 3, 4, 5, 6, 7), (0,))
    slow = [0.1] * 5 + [0.0] * 2
    assert machines.group_of([0.5, *slow]) == 1
    assert machines.group_of([0.4, 0.2, *slow[1:], 0.0]) == 0
    # Above the slow group both count, and the faster total is taken: 21 against 8.2.
    assert Machines((9, 8, 4, 3, 2, 2, 1.2, 0.5)).group_of([0.4, 0, 0, 0.6, 0, 0, 0, 0]) == 1


def test_speeds_are_geometric_means() -> None:
    """Gains over the mean: a (mean 4) 2 and 1 / 2, b 1 and 1. Speeds 2 ** 0.5 and 2 ** -0.5.

    Work of a: (2 * 1.41 * 8 * 0.71) ** 0.5 = 4, of b also 4; c is known on d0 alone: 3 * 1.41.
    """
    problem = problem_of({"a": (2, 8), "b": (4, 4), "c": (3, None)}, [])
    machines = machines_of(problem)
    assert machines.speed == pytest.approx((2**0.5, 2**-0.5))
    assert work_ns(problem, machines).tolist() == [4, 4, 4]


def test_getf_keeps_to_the_group() -> None:
    """Relaxed, both have 0.8 of their work on d0: load 1.6 = completion 0.8 * 1 + 0.2 * 4.

    So both run on d0, 0-1 and 1-2. ETF starts the second at 0 on a slow one, until 4.
    """
    problem = problem_of({"a": _EIGHT, "b": _EIGHT}, [])
    assert _run(getf, problem) == {"a": (0, 0), "b": (0, 1)}
    assert _run(etf, problem) == {"a": (0, 0), "b": (1, 0)}


def test_getf_leaves_a_group_that_is_full() -> None:
    problem = problem_of(
        {"a": _EIGHT, "b": _EIGHT}, [], memory={"a": 2, "b": 2}, capacity=(2, *(None,) * 7)
    )
    assert _run(getf, problem) == {"a": (0, 0), "b": (1, 0)}


def test_getf_uses_what_it_left_out_only_where_it_must() -> None:
    """d1 is 10 times slower: a waits for d0 rather than run there, c can run nowhere else."""
    problem = problem_of({"b": (5, 50), "a": (5, 50), "c": (None, 7)}, [])
    assert _run(getf, problem) == {"b": (0, 0), "a": (0, 5), "c": (1, 0)}


@pytest.mark.parametrize("name", ["m-etf", "m-sct", "getf"])
def test_tight_memory_at_size(name: str) -> None:
    problem = layered(400, slack=1.02)
    result = solve(problem, SolveOptions(solver=name, time_limit_s=20))
    assert name in dict(result.baselines)
    assert result.schedule is not None
    assert check(problem, result.schedule) == []


@pytest.mark.parametrize("method", [m_etf, m_sct, getf])
def test_deadline_ends_a_method(method: object) -> None:
    problem = replace(layered(200, devices=8), devices=(*map(Device, "abcdefgh"),))
    with pytest.raises(OutOfTimeError):
        method(problem, _pack(problem), Deadline(0.0))  # type: ignore[operator]


def test_what_a_method_makes_by_itself() -> None:
    """One device takes 2 + 2 = 4; m-ETF runs b on d1 at once, where it is slower: 9."""
    problem = problem_of({"a": (2, 9), "b": (2, 9)}, [])
    made = make(problem, SolveOptions(solver="m-etf"))
    assert made is not None
    assert made[0].schedule.makespan_ns == 9
    assert solve(problem, SolveOptions(solver="m-etf")).makespan_ns == 4
    unable = problem_of({"a": (2, None), "b": (None, 9)}, [])
    assert make(unable, SolveOptions(solver="single")) is None

"""Inside a block: filtered devices, the graph of its jobs, and their best order, by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.placement import Problem
from moirai_tf.placement.exact.blocks.block import NEVER, split
from moirai_tf.placement.exact.blocks.cut import Cutting
from moirai_tf.placement.exact.blocks.filter import SearchState, measure, new_state, propagate
from moirai_tf.placement.exact.blocks.jobs import JobGraph, JobTable, jackson_bound, job_graph
from moirai_tf.placement.exact.blocks.orders import best_order
from moirai_tf.placement.problem import BoolArray, IntArray
from tests.placement_cases import problem_of

MANY = 1_000_000


def numbers(*values: int) -> IntArray:
    return np.array(values, dtype=np.int64)


def preemptive(jobs: list[tuple[int, int, int]]) -> int:
    """Jackson's bound of (head, length, tail) on one resource."""
    head, length, tail = (numbers(*column) for column in zip(*jobs, strict=True))
    return int(jackson_bound(head, length, tail, np.arange(len(jobs)), np.zeros_like(head)))


def in_turn(jobs: list[tuple[int, int, int]]) -> int:
    """The makespan in a given order."""
    now = makespan = 0
    for head, length, tail in jobs:
        now = max(now, head) + length
        makespan = max(makespan, now + tail)
    return makespan


def test_jackson_by_hand() -> None:
    """The first runs from 0 to 1 and gives way to the second, 1 to 3, and 5 after it: 8."""
    assert preemptive([(0, 4, 0), (1, 2, 5)]) == 8
    assert min(in_turn([(0, 4, 0), (1, 2, 5)]), in_turn([(1, 2, 5), (0, 4, 0)])) == 8


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5), st.integers(0, 9)), min_size=1).filter(
        lambda jobs: len(jobs) <= 5
    )
)
def test_jackson_is_below_every_order(jobs: list[tuple[int, int, int]]) -> None:
    assert preemptive(jobs) <= min(map(in_turn, map(list, permutations(jobs))))
    released = [(0, length, tail) for _, length, tail in jobs]  # the longest tail first
    assert preemptive(released) == min(map(in_turn, map(list, permutations(released))))


@st.composite
def graphs(draw: st.DrawFn) -> JobGraph:
    """Up to five jobs, each on at most two of three resources, after some of those before it."""
    count = draw(st.integers(1, 5))
    before: list[int] = []
    first = [0]
    for job in range(count):
        before += draw(st.lists(st.integers(0, job - 1), unique=True, max_size=2)) if job else []
        first.append(len(before))
    each = st.lists(st.integers(0, 5), min_size=count, max_size=count)
    pairs = st.sampled_from([(-1, -1), (0, -1), (1, -1), (0, 1), (1, 2)])
    length = draw(each)
    resources = [draw(pairs) if time else (-1, -1) for time in length]
    lags = draw(st.lists(st.integers(0, 3), min_size=len(before), max_size=len(before)))
    tail = draw(each)
    table = JobTable(
        np.zeros(count, dtype=np.int64),
        numbers(*length),
        numbers(*tail),
        np.array(resources, dtype=np.int64),
    )
    return JobGraph(table, numbers(*first), numbers(*before), numbers(*lags), np.arange(count), 3)


def played(graph: JobGraph, order: tuple[int, ...]) -> int:
    """The makespan when jobs come on their resources in an order; NEVER if one comes too early."""
    finish: dict[int, int] = {}
    free = [0, 0, 0, 0]  # the last for "no resource"
    for job in order:
        entries = range(graph.first[job], graph.first[job + 1])
        if any(int(graph.before[entry]) not in finish for entry in entries):
            return NEVER
        own = [int(resource) for resource in graph.table.resources[job] if resource >= 0]
        ready = [finish[int(graph.before[entry])] + int(graph.lag[entry]) for entry in entries]
        finish[job] = max([0, *ready, *(free[resource] for resource in own)])
        finish[job] += int(graph.table.length[job])
        for resource in own:
            free[resource] = finish[job]
    return max(end + int(graph.table.tail[job]) for job, end in finish.items())


@settings(max_examples=200, deadline=None)
@given(graphs(), st.integers(0, 3))
def test_best_order_against_all(graph: JobGraph, few: int) -> None:
    count = len(graph.table.length)
    expected = min(played(graph, order) for order in permutations(range(count)))
    start = np.zeros(count, dtype=np.int64)
    value, bound, _ = best_order(graph, NEVER, 0, MANY, start)
    assert value == bound == expected
    assert (start + graph.table.length + graph.table.tail).max() == expected
    value, bound, _ = best_order(graph, NEVER, 0, few, start)
    assert bound <= expected <= value
    value, bound, _ = best_order(graph, expected, 0, MANY, start)
    assert value == bound == expected  # nothing below


def state_of(problem: Problem) -> tuple[SearchState, BoolArray]:
    """The whole problem as one block without prices, and where its operators can be."""
    kind = split(problem, Cutting((), (problem.topological_order,)), 1)[0].kind
    allowed = kind.between(0, 0)
    assert allowed is not None
    return new_state(kind.data, np.zeros_like(kind.data.compute)), allowed


def test_open_operators_are_time_between_others() -> None:
    """a, x, c in a chain, a and c on d0. Through x: 3 on d0, or 2 + 1 + 2 = 5 by way of d1."""
    state, domain = state_of(
        problem_of({"a": (1, 1), "x": (3, 1), "c": (1, 1)}, [("a", "x", 2), ("x", "c", 2)])
    )
    domain[1, 1] = domain[3, 1] = False
    _, count, longest = measure(state, domain)
    graph = job_graph(state.data, domain, state.jobs, count)
    assert longest == 1 + 3 + 1
    assert graph.source.tolist() == [0, 1, 3, 4]  # made-up entry, a, c, made-up exit
    assert graph.table.length.tolist() == [0, 1, 1, 0]
    waits = slice(graph.first[2], graph.first[3])  # of c
    assert graph.before[waits].tolist() == [1]
    assert graph.lag[waits].tolist() == [3]


def test_jobs_are_operators_and_transfers() -> None:
    """a on d0, b and c on d1: its tensor is moved once, by the send port of d0, 2 + 0.

    What b and c send to the made-up exit, on d0, takes no time and no port.
    """
    state, domain = state_of(
        problem_of(
            {"a": (1, None), "b": (None, 1), "c": (None, 1)},
            [("a", "b c", 4)],
            transfers="per_tensor",
            congestion="port",
        )
    )
    _, count, longest = measure(state, domain)
    assert (count, longest) == (5 + 1 + 2, 1 + 4 + 1)
    assert state.jobs.table.resources[5:8].tolist() == [[2 + 0, 4 + 1], [-1, -1], [-1, -1]]
    assert (state.jobs.table.head[5], state.jobs.table.length[5], state.jobs.table.tail[5]) == (
        1,
        4,
        1,
    )


def filtered(problem: Problem, best: int) -> tuple[list[list[bool]], int]:
    """What is left of the operators' devices below a value, and the bound."""
    state, domain = state_of(problem)
    weights = np.full(state.data.resources, 1.0 / state.data.resources)
    bound = propagate(state, domain, weights, best, 0)
    return domain[1:-1].tolist(), int(bound)


def test_long_paths_leave_no_choice() -> None:
    """a (1 | 9) and b (1 | 3) with a way of 4: below 8 only both on d0, which take 2.

    b on d1 takes 1 + 4 + 3 = 8, a on d1 at least 9 + 3.
    """
    problem = problem_of({"a": (1, 9), "b": (1, 3)}, [("a", "b", 4)])
    assert filtered(problem, 8) == ([[True, False], [True, False]], 2)
    assert filtered(problem, 9)[0] == [[True, False], [True, True]]
    assert filtered(problem, 2)[1] == 2  # nothing is below


def test_memory_leaves_no_choice() -> None:
    """a only on d0 fills it, so b, which is faster there, has to go to d1."""
    problem = problem_of(
        {"a": (1, None), "b": (1, 5)}, [], memory={"a": 2, "b": 1}, capacity=(2, 2)
    )
    assert filtered(problem, NEVER) == ([[True, False], [False, True]], 5)


def test_units_share_what_is_left() -> None:
    """a cannot be on d1, and b is of its unit."""
    problem = problem_of({"a": (1, None), "b": (1, 1)}, [], colocation=((0, 1),))
    assert filtered(problem, NEVER)[0] == [[True, False], [True, False]]

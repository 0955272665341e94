"""The search of one block against trying everything, with prices, bans, units and memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.placement import Problem
from moirai_tf.placement.exact.blocks.block import NEVER, BlockClass, split
from moirai_tf.placement.exact.blocks.cut import Cutting
from moirai_tf.placement.exact.blocks.search import enumerate_block, search_block
from moirai_tf.placement.problem import BoolArray, IntArray
from tests.placement_brute_force import optimum
from tests.placement_cases import MODES, problem_of, problems

MANY = 1_000_000


@st.composite
def priced(draw: st.DrawFn, most_operators: int = 5) -> tuple[Problem, IntArray]:
    """A problem that is one block, and the price of each of its operators on each device."""
    problem = draw(problems(most_operators=most_operators))
    count = len(problem.operators) * len(problem.devices)
    prices = draw(st.lists(st.integers(0, 8), min_size=count, max_size=count))
    return problem, np.array(prices).reshape(len(problem.operators), len(problem.devices))


def whole(problem: Problem) -> Cutting:
    """No cuts at all."""
    return Cutting((), (problem.topological_order,))


def block_of(problem: Problem, prices: IntArray) -> tuple[BlockClass, BoolArray, IntArray]:
    """The whole problem as one block with made-up entry and exit, which cost nothing."""
    block = split(problem, whole(problem), 1)[0]
    allowed = block.kind.between(0, 0)
    assert allowed is not None
    price = np.zeros_like(block.kind.data.compute)
    price[1:-1] = prices[list(block.operators[1:-1])]
    return block.kind, allowed, price


def values(problem: Problem, prices: IntArray) -> dict[tuple[int, ...], int]:
    """Least makespan and prices of each possible device choice, by brute force."""
    found = {}
    rows = [range(len(problem.devices))] * len(problem.operators)
    for chosen in product(*rows):
        operators = tuple(
            replace(
                operator,
                compute_ns=tuple(
                    time if k == device else None for k, time in enumerate(operator.compute_ns)
                ),
            )
            for operator, device in zip(problem.operators, chosen, strict=True)
        )
        if any(o.compute_ns[k] is None for o, k in zip(operators, chosen, strict=True)):
            continue
        makespan = optimum(replace(problem, operators=operators))
        if makespan is not None:
            paid = sum(int(prices[operator, device]) for operator, device in enumerate(chosen))
            found[chosen] = makespan + paid
    return found


@settings(max_examples=100, deadline=None)
@given(priced())
def test_finds_the_least_value(case: tuple[Problem, IntArray]) -> None:
    kind, allowed, price = block_of(*case)
    best = min(values(*case).values(), default=NEVER)
    found = search_block(kind.data, allowed, price, NEVER, MANY, MANY)
    assert found.value == found.bound == best
    if best < NEVER:
        paid = price[np.arange(len(found.device)), found.device].sum()
        assert found.start[-1] + paid == best  # the made-up exit takes no time


@settings(max_examples=100, deadline=None)
@given(priced(), st.integers(0, 40), st.integers(0, 3))
def test_bounds_hold_at_every_limit(
    case: tuple[Problem, IntArray], nodes: int, orders: int
) -> None:
    kind, allowed, price = block_of(*case)
    best = min(values(*case).values(), default=NEVER)
    found = search_block(kind.data, allowed, price, NEVER, nodes, orders)
    assert found.bound <= best <= found.value


@settings(max_examples=60, deadline=None)
@given(priced(), st.integers(-2, 2))
def test_cutoff_around_the_optimum(case: tuple[Problem, IntArray], above: int) -> None:
    """Only values below the cutoff are found; otherwise the cutoff is proved."""
    kind, allowed, price = block_of(*case)
    best = min(values(*case).values(), default=NEVER)
    cutoff = max(0, min(best, 1000) + above)
    found = search_block(kind.data, allowed, price, cutoff, MANY, MANY)
    assert found.value == found.bound == min(best, cutoff)


@settings(max_examples=60, deadline=None)
@given(priced(most_operators=4), st.integers(0, 6), st.sampled_from([0, 1, 3, MANY]))
def test_enumerates_all_choices_below_a_limit(
    case: tuple[Problem, IntArray], slack: int, orders: int
) -> None:
    """With few nodes for orders some may be missing or late, and then it says so."""
    kind, allowed, price = block_of(*case)
    expected = values(*case)
    limit = min(expected.values(), default=0) + slack
    order = split(case[0], whole(case[0]), 1)[0].operators[1:-1]
    choices, makespans, complete = enumerate_block(kind.data, allowed, price, limit, 200, orders)
    seen = {}
    for row, makespan in zip(choices.tolist(), makespans.tolist(), strict=True):
        device = dict(zip(order, row[1:-1], strict=True))
        chosen = tuple(device[operator] for operator in range(len(order)))
        seen[chosen] = makespan + int(price[np.arange(len(row)), row].sum())
    assert all(value >= expected[chosen] for chosen, value in seen.items())
    assert complete or orders != MANY
    if complete:
        assert seen == {chosen: value for chosen, value in expected.items() if value < limit}


@pytest.mark.parametrize(("transfers", "congestion"), MODES)
def test_loads_prove_what_paths_do_not(transfers: str, congestion: str) -> None:
    """Eight operators of 10 on two devices, transfers free: at least 40, and paths say 10.

    Without any search the averaged loads prove it.
    """
    work = {f"o{i}": (10, 10) for i in range(8)}
    problem = replace(problem_of(work, []), transfers=transfers, congestion=congestion)
    kind, allowed, price = block_of(problem, np.zeros((8, 2), dtype=np.int64))
    found = search_block(kind.data, allowed, price, NEVER, 0, 0)
    assert found.bound == 40


def test_a_bound_that_is_too_large_is_noticed() -> None:
    """Prices that the search is told but brute force is not raise its bound above the optimum."""
    problem = problem_of({"a": (3, 5), "b": (4, 2)}, [("a", "b", 1)])
    kind, allowed, price = block_of(problem, np.zeros((2, 2), dtype=np.int64))
    best = min(values(problem, np.zeros((2, 2), dtype=np.int64)).values())
    assert search_block(kind.data, allowed, price, NEVER, MANY, MANY).bound == best == 6
    told = price.copy()
    told[1:-1] += 1
    assert search_block(kind.data, allowed, told, NEVER, MANY, MANY).bound == best + 2

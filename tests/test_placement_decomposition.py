"""Decomposition: cuts and blocks by hand, and against brute force and the exact model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.placement import Problem, SolveOptions, check, solve
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.exact.blocks.block import NEVER, split
from moirai_tf.placement.exact.blocks.block_pool import BlockPool, PricedArcs, Prices
from moirai_tf.placement.exact.blocks.cut import clean_cuts, cut_at
from moirai_tf.placement.exact.blocks.search import search_block
from tests.placement_brute_force import optimum
from tests.placement_cases import MODES, layered, problem_of, problems

DIAMOND = problem_of(
    {"a": (1, 4), "b": (6, 6), "c": (6, 6), "d": (1, 4)},
    [("a", "b c", 2), ("b", "d", 2), ("c", "d", 2)],
)
"""One branch on each device: 1 + 2 + 6 + 2 + 1 = 12; all on d0: 14."""


def block_values(problem: Problem, nodes: int = 1_000_000, orders: int = 100_000) -> list[int]:
    """Value and bound of the only block, over all entries and exits."""
    kind = split(problem, cut_at(problem, clean_cuts(problem)[-1:]), 1)[0].kind
    values, bounds = [], []
    for entry in kind.entries:
        for exit_device in kind.exits:
            allowed = kind.between(entry, exit_device)
            if allowed is not None:
                free = np.zeros_like(kind.data.compute)
                found = search_block(kind.data, allowed, free, NEVER, nodes, orders)
                values.append(found.value)
                bounds.append(found.bound)
    return [min(values), min(bounds)]


def test_cut_is_clean_unless_a_tensor_jumps_over_it() -> None:
    """b is comparable with all, but a's tensor goes past it to c."""
    chain = {"a": (1, 1), "b": (1, 1), "c": (1, 1)}
    assert clean_cuts(problem_of(chain, [("a", "b", 1), ("b", "c", 1)])) == [0, 1, 2]
    assert clean_cuts(problem_of(chain, [("a", "b c", 1), ("b", "c", 1)])) == [0, 2]


@pytest.mark.parametrize(("transfers", "congestion"), MODES)
def test_diamond_by_hand(transfers: str, congestion: str) -> None:
    problem = replace(DIAMOND, transfers=transfers, congestion=congestion)
    result = solve(problem, SolveOptions(solver="decomposition", mip_gap=0.0))
    assert (result.status, result.makespan_ns) == ("optimal", 12)


def test_equal_blocks_are_one_class() -> None:
    names = [f"{letter}{i}" for i in range(4) for letter in "abcd"]
    compute = {name: DIAMOND.operators["abcd".index(name[0])].compute_ns for name in names}
    edges = []
    for i in range(4):
        edges += [(f"a{i}", f"b{i} c{i}", 2), (f"b{i}", f"d{i}", 2), (f"c{i}", f"d{i}", 2)]
        edges += [(f"d{i}", f"a{i + 1}", 2)] if i < 3 else []
    problem = problem_of(compute, edges)
    blocks = split(problem, cut_at(problem, clean_cuts(problem)), 1)
    assert len(blocks) == 8  # entry, four diamonds, three ways between them
    assert len({id(block.kind) for block in blocks}) == 3
    result = solve(problem, SolveOptions(solver="decomposition", mip_gap=0.0))
    assert (result.status, result.makespan_ns) == ("optimal", 48)


@settings(max_examples=80, deadline=None)
@given(problems(most_operators=6))
def test_block_search_finds_the_optimum(problem: Problem) -> None:
    unlimited = replace(
        problem, devices=tuple(replace(device, memory_bytes=None) for device in problem.devices)
    )
    best = optimum(unlimited)
    cutting = cut_at(unlimited, clean_cuts(unlimited))
    free = PricedArcs(
        BlockPool(split(unlimited, cutting, 1), len(problem.devices), Deadline(60.0)),
        Prices((0,) * len(problem.devices)),
    )
    free.close(0.0)
    assert best is not None
    assert free.bound <= best
    result = solve(unlimited, SolveOptions(solver="decomposition", mip_gap=0.0))
    assert result.schedule is not None
    assert check(unlimited, result.schedule) == []
    if not problem.colocation:
        assert free.bound == best == result.makespan_ns
        assert result.status == "optimal"


@settings(max_examples=60, deadline=None)
@given(problems(most_operators=5), st.integers(0, 12), st.integers(0, 2))
def test_cut_off_search_still_bounds(problem: Problem, nodes: int, orders: int) -> None:
    unlimited = replace(
        problem,
        devices=tuple(replace(device, memory_bytes=None) for device in problem.devices),
        colocation=(),
    )
    whole = replace(unlimited)
    kind = split(whole, cut_at(whole, ()), 1)[0].kind
    allowed = kind.between(0, 0)
    assert allowed is not None
    found = search_block(kind.data, allowed, np.zeros_like(kind.data.compute), NEVER, nodes, orders)
    best = optimum(unlimited)
    assert best is not None
    assert found.bound <= best <= found.value


@settings(max_examples=60, deadline=None)
@given(problems(most_operators=6))
def test_bound_with_memory_is_a_proof(problem: Problem) -> None:
    best = optimum(problem)
    result = solve(problem, SolveOptions(solver="decomposition", mip_gap=0.0, time_limit_s=20))
    if best is None:
        assert result.status == "infeasible"
        return
    assert result.schedule is not None
    assert result.makespan_ns is not None
    assert check(problem, result.schedule) == []
    assert result.lower_bound_ns <= best <= result.makespan_ns


@pytest.mark.parametrize(("transfers", "congestion"), MODES)
def test_agrees_with_the_exact_model(transfers: str, congestion: str) -> None:
    problem = replace(layered(11, devices=2, slack=2.5), transfers=transfers, congestion=congestion)
    exact = solve(problem, SolveOptions(solver="milp-highs", mip_gap=0.0))
    found = solve(problem, SolveOptions(solver="decomposition", mip_gap=0.0))
    assert exact.status == found.status == "optimal"
    assert exact.makespan_ns == found.makespan_ns


def test_broken_bound_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound one above the optimum must not leave `solve`; a nanosecond has 2**38 ticks here."""
    honest = PricedArcs.bound.fget
    assert honest is not None
    monkeypatch.setattr(PricedArcs, "bound", property(lambda self: honest(self) + 2**38))
    result = solve(DIAMOND, SolveOptions(solver="decomposition"))
    assert result.status == "error"
    assert "bound: 13 is above the makespan 12" in result.messages


def test_binding_memory_at_size() -> None:
    """Twelve blocks, no two alike: prices and whole columns beat every heuristic."""
    problem = layered(60)
    result = solve(problem, SolveOptions(solver="decomposition", time_limit_s=60))
    assert result.schedule is not None
    assert check(problem, result.schedule) == []
    assert 0 < result.lower_bound_ns <= result.schedule.makespan_ns
    assert result.schedule.makespan_ns < min(makespan for _, makespan in result.baselines)
    assert "schedule: decomposition" in result.messages
    assert "bound: decomposition: whole columns for all blocks" in result.messages

"""Columns for repeated and relaxed blocks: labels and master program against brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moirai_tf.placement import Device, Operator, Problem, SolveOptions, Tensor, check, solve
from moirai_tf.placement.deadline import Deadline, OutOfTimeError
from moirai_tf.placement.exact.blocks import cut, gap_closing
from moirai_tf.placement.exact.blocks.block import split
from moirai_tf.placement.exact.blocks.block_pool import Pool, Priced, Prices
from moirai_tf.placement.exact.blocks.frontier import memory_of, undominated
from moirai_tf.placement.exact.blocks.repeated_layers import Run, runs
from tests.placement_brute_force import optimum
from tests.placement_cases import MODES, problem_of, problems, uniform

EXACT = SolveOptions(solver="decomposition", mip_gap=0.0, time_limit_s=20)


def test_runs_take_the_longest_repetition() -> None:
    """a, then b c three times, then d d: five d would be one run of one block."""
    assert runs([0, 1, 2, 1, 2, 1, 2, 3, 3]) == [Run(0, 1, 1), Run(1, 2, 3), Run(7, 1, 2)]
    assert runs([4] * 5) == [Run(0, 1, 5)]
    assert runs([1, 2, 3]) == [Run(0, 1, 1), Run(1, 1, 1), Run(2, 1, 1)]
    assert runs([]) == []


@given(st.lists(st.integers(0, 2), max_size=30))
def test_runs_spell_the_sequence(kinds: list[int]) -> None:
    spelled: list[int] = []
    for run in runs(kinds):
        assert run.first == len(spelled)
        spelled += kinds[run.first : run.first + run.period] * run.times
    assert spelled == kinds


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=30))
def test_every_choice_is_replaced_by_a_kept_one(rows: list[tuple[int, int, int]]) -> None:
    data = np.array(rows, dtype=np.int64)
    kept = data[undominated(data[:, 0], data[:, 1:].copy())]
    for row in data:
        assert (kept <= row).all(axis=1).any()
    assert len(kept) <= len({tuple(row) for row in rows})


def test_memory_of_choices() -> None:
    """Sizes 5, 3 and 2: all on d0, or the second on d1."""
    devices = np.array([[0, 0, 0], [0, 1, 0]])
    assert memory_of(np.array([5, 3, 2]), devices, 2).tolist() == [[10, 0], [7, 3]]


@st.composite
def layers(draw: st.DrawFn) -> Problem:
    """Up to four equal layers of two operators behind each other, with memory that binds."""
    devices = draw(st.integers(2, 3))
    times = [draw(st.tuples(*[st.integers(0, 9)] * devices)) for _ in range(2)]
    sizes = [draw(st.integers(0, 4)) for _ in range(2)]
    count = draw(st.integers(2, 4 if devices == 2 else 3))
    tables = [uniform(draw(st.integers(0, 6)), devices) for _ in range(2)]
    transfers, congestion = draw(st.sampled_from(MODES))
    operators = tuple(Operator(f"o{i}", times[i % 2], sizes[i % 2]) for i in range(2 * count))
    need = count * sum(sizes)
    capacity = st.integers(need // devices, need)
    return Problem(
        name="layers",
        devices=tuple(Device(f"d{k}", draw(capacity)) for k in range(devices)),
        operators=operators,
        tensors=tuple(Tensor(i, (i + 1,), tables[i % 2]) for i in range(len(operators) - 1)),
        transfers=transfers,
        congestion=congestion,
    )


@pytest.mark.parametrize("few_blocks", [0, 64])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(problem=layers())
def test_layers_within_memory_are_solved(
    few_blocks: int, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the master program alone, and with labels."""
    monkeypatch.setattr(gap_closing, "_FEW_BLOCKS", few_blocks)
    best = optimum(problem)
    result = solve(problem, EXACT)
    if best is None:
        assert result.status == "infeasible"
        return
    assert result.schedule is not None
    assert check(problem, result.schedule) == []
    assert (result.makespan_ns, result.lower_bound_ns) == (best, best)


SKIPPING = problem_of(
    {"mask": (1, 1), **{f"o{i}": (3, 4) for i in range(6)}},
    [("mask", "o0 o2 o4 o5", 2), *[(f"o{i}", f"o{i + 1}", 1) for i in range(5)]],
)
"""The mask hides all cuts between o0 and o5: 1 + 6 * 3 = 19 on d0."""


def test_a_tensor_that_all_read_hides_no_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "_SMALL", 1)
    monkeypatch.setattr(cut, "_SMALLER", 1)
    monkeypatch.setattr(cut, "_LEAST_SPAN", 1)
    relaxed, exact = cut.cuttings(SKIPPING)
    assert (relaxed.exact, relaxed.largest) == (False, 0)
    assert exact.largest == 5  # o0 to o4
    assert free_bound(SKIPPING, relaxed) == 19 == optimum(SKIPPING)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(problem=problems(most_operators=6))
def test_bound_without_what_spans_blocks_is_a_proof(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is small enough, so as much as possible is left out."""
    monkeypatch.setattr(cut, "_SMALL", 0)
    monkeypatch.setattr(cut, "_SMALLER", 0)
    monkeypatch.setattr(cut, "_LEAST_SPAN", 0.5)
    unlimited = replace(
        problem, devices=tuple(replace(device, memory_bytes=None) for device in problem.devices)
    )
    best = optimum(unlimited)
    assert best is not None
    for option in cut.cuttings(unlimited):
        assert free_bound(unlimited, option) <= best


def free_bound(problem: Problem, option: cut.Cutting) -> int:
    """What the blocks of a cutting prove without prices."""
    pool = Pool(split(problem, option, 1), len(problem.devices), Deadline(60.0))
    free = Priced(pool, Prices((0,) * len(problem.devices)))
    free.close(0.0)
    return free.bound


def test_what_floats_counts_for_memory_only() -> None:
    """side may run at any time beside the chain; a block knows its bytes."""
    names = ["first", *[f"o{i}" for i in range(8)], "last"]
    edges = [(a, b, 1) for a, b in pairwise(names)]
    problem = problem_of(
        {**dict.fromkeys(names, (2, 2)), "side": (5, 5)},
        [*edges, ("first", "side", 1), ("side", "last", 1)],
        memory={"side": 7},
    )
    options = cut.cuttings(problem)
    assert options[0].exact  # eight operators are few
    relaxed = cut._relaxed(problem, *cut._levels(problem), 4.0)
    assert relaxed.floats == {names.index("last") + 1}
    assert relaxed.inner[-2] == (names.index("last") + 1,)


def test_a_part_of_the_time_ends_a_block_and_no_more() -> None:
    deadline = Deadline(1000.0)
    reached = []
    with deadline.limited(0.0):
        deadline.check()
        reached.append("not")
    with deadline.limited(0.5):
        assert 499 <= deadline.remaining_s() <= 500
    assert deadline.remaining_s() > 999
    assert reached == []
    with pytest.raises(OutOfTimeError), Deadline(0.0).limited(1.0):
        Deadline(0.0).check()


def test_brute_force_agrees_with_a_hand_count() -> None:
    """Two layers of (1, 9) and (9, 1), a way of 2: changing three times costs 4 + 6 = 10."""
    best = min(
        sum((1, 9)[k] if i % 2 == 0 else (9, 1)[k] for i, k in enumerate(path))
        + 2 * sum(a != b for a, b in pairwise(path))
        for path in product((0, 1), repeat=4)
    )
    problem = problem_of(
        {f"o{i}": (1, 9) if i % 2 == 0 else (9, 1) for i in range(4)},
        [(f"o{i}", f"o{i + 1}", 2) for i in range(3)],
    )
    assert best == 10 == optimum(problem) == solve(problem, EXACT).makespan_ns
    tight = replace(problem, devices=tuple(replace(d, memory_bytes=0) for d in problem.devices))
    assert solve(tight, EXACT).makespan_ns == 10

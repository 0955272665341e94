"""Columns of blocks: prices of their memory, whole ones within it, and what cuts leave out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.placement import Device, Operator, Problem, SolveOptions, Tensor, check, solve
from moirai_tf.placement.clock import Deadline, OutOfTimeError
from moirai_tf.placement.exact.blocks import cut
from moirai_tf.placement.exact.blocks.block import NEVER, split
from moirai_tf.placement.exact.blocks.block_pool import (
    BlockPool,
    Column,
    PricedArcs,
    Prices,
    cheapest_around,
    shortest_path,
)
from moirai_tf.placement.exact.blocks.gap_closing import memory_of, undominated
from moirai_tf.placement.exact.blocks.master_program import MasterProgram, repeated_layers
from moirai_tf.placement.exact.blocks.memory_prices import (
    ColumnArrays,
    MemoryPricing,
    best_prices,
    cheapest_way,
)
from moirai_tf.placement.exact.blocks.search import enumerate_block
from moirai_tf.placement.exact.milp.backends import Limits
from tests.placement_brute_force import optimum
from tests.placement_cases import MODES, problem_of, problems, uniform

EXACT = SolveOptions(solver="decomposition", mip_gap=0.0, time_limit_s=20)


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


@settings(max_examples=40, deadline=None)
@given(layers())
def test_layers_within_memory_are_solved(problem: Problem) -> None:
    best = optimum(problem)
    result = solve(problem, EXACT)
    if best is None:
        assert result.status == "infeasible"
        return
    assert result.schedule is not None
    assert check(problem, result.schedule) == []
    assert (result.makespan_ns, result.lower_bound_ns) == (best, best)


def every_column(problem: Problem) -> BlockPool:
    """The blocks of a problem with all ways to run each of them."""
    cutting = cut.cut_at(problem, cut.clean_cuts(problem))
    pool = BlockPool(split(problem, cutting, 1), len(problem.devices), Deadline(60.0))
    for (kind, _, _), allowed in pool.arcs.items():
        data = pool.kinds[kind].data
        free = np.zeros_like(data.compute)
        devices, ticks, whole = enumerate_block(data, allowed, free, 1000, 1000, 100_000)
        assert whole
        for row, time in zip(devices.tolist(), ticks.tolist(), strict=True):
            pool.add(kind, time, row)
    return pool


def best_way(pool: BlockPool, capacity: tuple[int, ...]) -> int:
    """The least time of one column per block within memory, over all of them."""
    by_kind: dict[int, list[Column]] = {}
    for column in pool.columns:
        by_kind.setdefault(column.kind, []).append(column)
    ways = {(device, (0,) * pool.devices): 0 for device in range(pool.devices)}
    for kind in pool.kind_of.tolist():
        longer: dict[tuple[int, tuple[int, ...]], int] = {}
        for (device, used), ticks in ways.items():
            for column in by_kind.get(kind, ()):  # none, if an operator fits nowhere
                full = tuple(map(sum, zip(used, column.memory_bytes, strict=True)))
                if column.entry == device and all(map(int.__le__, full, capacity)):
                    key = column.exit, full
                    longer[key] = min(longer.get(key, NEVER), ticks + column.ticks)
        ways = longer
    return min(ways.values(), default=NEVER)


@settings(max_examples=60, deadline=None)
@given(layers())
def test_prices_prove_less_than_every_way_within_memory(problem: Problem) -> None:
    pool = every_column(problem)
    best = best_way(pool, problem.capacity_bytes)
    pricing = MemoryPricing(
        pool, problem.capacity_bytes, PricedArcs(pool, Prices((0,) * pool.devices))
    )
    pricing.prove()
    assert pricing.bound <= best


@settings(max_examples=60, deadline=None)
@given(layers())
def test_master_program_finds_the_best_way_within_memory(problem: Problem) -> None:
    pool = every_column(problem)
    best = best_way(pool, problem.capacity_bytes)
    program = MasterProgram(pool.kind_of.tolist(), pool.columns, problem.capacity_bytes, 1)
    answer = program.solve(1000, [], Limits(60.0))
    assert answer.settled
    assert answer.bound == min(best, 1000)
    if best < NEVER:
        assert answer.path is not None
        assert [column.kind for column in answer.path] == pool.kind_of.tolist()
        assert all(a.exit == b.entry for a, b in pairwise(answer.path))
        assert sum(column.ticks for column in answer.path) == best


def test_layers_that_repeat() -> None:
    """a, then b c three times, then d d: five d would be one run of one block."""
    assert repeated_layers([0, 1, 2, 1, 2, 1, 2, 3, 3]) == [(0, 1, 1), (1, 2, 3), (7, 1, 2)]
    assert repeated_layers([4] * 5) == [(0, 1, 5)]
    assert repeated_layers([1, 2, 3]) == [(0, 1, 1), (1, 1, 1), (2, 1, 1)]
    assert repeated_layers([]) == []


@given(st.lists(st.integers(0, 2), max_size=30))
def test_repeated_layers_spell_the_sequence(kinds: list[int]) -> None:
    spelled: list[int] = []
    for run in repeated_layers(kinds):
        assert run.first == len(spelled)
        spelled += kinds[run.first : run.first + run.period] * run.times
    assert spelled == kinds


def test_prices_of_memory_by_hand() -> None:
    """Four equal blocks, 1 tick with a byte of d0 or 3 with one of d1; d0 holds two: 2 + 6 = 8.

    A byte of d0 is worth 2 ticks, its whole memory 4. Cheapest at that price: 4 * 3 - 4 = 8.
    """
    columns = ColumnArrays(
        kind_of=np.zeros(4, dtype=np.int64),
        first=np.array([0, 2, 2, 2, 2]),
        ticks=np.array([1.0, 3.0]),
        share=np.array([[1 / 2, 0], [0, 1 / 4]]),
    )
    price, bound = best_prices(columns, 100.0, 1e-6)
    assert bound == pytest.approx(8, abs=1e-5)
    assert price == pytest.approx([4, 0], abs=1e-4)
    used = np.zeros(2)
    assert cheapest_way(columns, np.array([5.0, 0.0]), used) == 4 * 3
    assert used.tolist() == [0, 1]
    assert cheapest_way(columns, np.array([3.0, 0.0]), used) == 4 * (1 + 3 / 2)
    assert used.tolist() == [2, 0]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_shortest_paths_over_blocks(kinds: list[int], random: Random) -> None:
    """Against all ways; around an arc is the shortest way that uses it, without its own cost."""
    cost = np.array([random.randint(0, 9) for _ in range(12)]).reshape(3, 2, 2)
    kind_of = np.array(kinds)

    def total(way: tuple[int, ...]) -> int:
        return sum(int(cost[kind, a, b]) for kind, (a, b) in zip(kinds, pairwise(way), strict=True))

    ways = list(product((0, 1), repeat=len(kinds) + 1))
    path, least = shortest_path(cost, kind_of)
    assert total(tuple(path.tolist())) == least == min(map(total, ways))
    around = cheapest_around(cost, kind_of)
    for kind, a, b in product(range(3), (0, 1), (0, 1)):
        through = [
            total(way) - int(cost[kind, a, b])
            for way in ways
            for block, arc in enumerate(pairwise(way))
            if (kinds[block], *arc) == (kind, a, b)
        ]
        assert around[kind, a, b] == min(through, default=NEVER)


SKIPPING = problem_of(
    {"mask": (1, 1), **{f"o{i}": (3, 4) for i in range(6)}},
    [("mask", "o0 o2 o4 o5", 2), *[(f"o{i}", f"o{i + 1}", 1) for i in range(5)]],
)
"""The mask hides all cuts between o0 and o5: 1 + 6 * 3 = 19 on d0."""


def test_a_tensor_that_all_read_hides_no_cuts() -> None:
    relaxed, exact = cut.cuttings(SKIPPING, cut.BlockSizes(easy=1, wanted=1, least_span=1))
    assert (relaxed.exact, relaxed.largest) == (False, 0)
    assert exact.largest == 5  # o0 to o4
    assert free_bound(SKIPPING, relaxed) == 19 == optimum(SKIPPING)


@settings(max_examples=100, deadline=None)
@given(problems(most_operators=6))
def test_bound_without_what_spans_blocks_is_a_proof(problem: Problem) -> None:
    """Nothing is small enough, so as much as possible is left out."""
    sizes = cut.BlockSizes(easy=0, wanted=0, least_span=0.5)
    unlimited = replace(
        problem, devices=tuple(replace(device, memory_bytes=None) for device in problem.devices)
    )
    best = optimum(unlimited)
    assert best is not None
    for option in cut.cuttings(unlimited, sizes):
        assert free_bound(unlimited, option) <= best


def free_bound(problem: Problem, option: cut.Cutting) -> int:
    """What the blocks of a cutting prove without prices."""
    pool = BlockPool(split(problem, option, 1), len(problem.devices), Deadline(60.0))
    free = PricedArcs(pool, Prices((0,) * len(problem.devices)))
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

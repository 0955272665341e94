"""Linear relaxations of placement as lower bounds, made exact by their duals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from moirai_tf.placement.bound.linear_program import (
    FloatArray,
    LinearModel,
    ModelBuilder,
    dual_bound,
    time_unit_ns,
)
from moirai_tf.placement.bound.packing import Packing, Reservation, assignment_columns
from moirai_tf.placement.bound.paths import Bound, blocks, heads_ns, tails_ns
from moirai_tf.placement.evaluate.channels import channels_of
from moirai_tf.placement.exact.milp.backends import Limits, solve_with_highs
from moirai_tf.placement.exact.milp.loads import LoadModel, build_loads
from moirai_tf.placement.objective import unit_compute_ns
from moirai_tf.placement.problem import PER_EDGE, IntArray, Problem

_GRID = 6
"""Intervals of each block are made of about so many heads and tails."""
_PRICE = 1000
"""Of the dearest device; prices are whole numbers."""
_ROUNDS = 100
_STEP = 0.1


def linear(problem: Problem, horizon_ns: int, limits: Limits, *, ways: bool = False) -> Bound:
    """The linear relaxation of assignment, precedence, load and memory, proved by its duals.

    Every schedule of makespan at most `horizon_ns` satisfies the rows of `_Relaxation`, so the
    least makespan in it is a lower bound, or `horizon_ns` is one already; `dual_bound` makes a
    bound on that minimum out of any duals, however inexact, in whole numbers.

    Args:
      problem: a valid problem.
      horizon_ns: a makespan that is not to be exceeded.
      limits: of HiGHS.
      ways: whether tensors take time; a much larger program.
    """
    model = _Relaxation(problem, horizon_ns, ways=ways).model()
    how = "linear relaxation with transfers" if ways else "linear relaxation"
    return _proved(model, horizon_ns, limits, how)[0]


def _proved(
    model: LinearModel, most: int, limits: Limits, how: str
) -> tuple[Bound, FloatArray | None]:
    """What the duals of a relaxation prove, at most `most`; its column values if there are any."""
    outcome = solve_with_highs(model, {}, limits)
    if outcome.interrupted:
        raise KeyboardInterrupt
    value = 0 if outcome.row_duals is None else dual_bound(model, outcome.row_duals)
    return Bound(max(0, min(value, most)), how), outcome.solution


def intervals(
    problem: Problem, inside: list[int], heads: IntArray, tails: IntArray
) -> Iterator[tuple[int, int, IntArray]]:
    """Intervals of a block with the least work that falls into each: (h, t, energy in ns).

    Let L be the block's length, at least its longest path P. Operator i on device k starts at
    S >= head and S + tail <= L, so of its time p at least
    `min(p, head + p - h, tail - t, P - h - t)` is between h and L - t, whatever S and L are
    (energetic reasoning: Baptiste, Le Pape and Nuijten 2001). The intervals are a grid of heads and
    tails evenly spread over the operators.

    Args:
      problem: a valid problem.
      inside: operators of the block.
      heads: (operators, devices), counted from the block's start.
      tails: (operators, devices), counted from the block's end, the operator included.
    """
    if len(inside) < 2:
        return
    head, tail = heads[inside], tails[inside]
    able = problem.runnable[inside]
    time = np.where(able, problem.compute_ns[inside], 0)
    path = int((head + tail).min(axis=1).max())
    for first in _grid(head.min(axis=1)):
        for last in _grid((tail - time).min(axis=1)):
            if first + last == 0 or first + last >= path:
                continue
            least = np.minimum(np.minimum(time, head + time - first), tail - last)
            least = np.minimum(least, path - first - last)
            yield first, last, np.where(able, np.maximum(least, 0), 0)


def _grid(times: IntArray) -> list[int]:
    """0 and some of the times, evenly spread over the sorted ones."""
    ordered = np.sort(times)
    steps = np.linspace(0, len(ordered) - 1, _GRID + 1).astype(int)
    return sorted({0, *ordered[steps].tolist()})


class _Relaxation:
    """Builds the rows; block by block, so that times stay small and blocks nearly separate.

    A block lies between consecutive cuts a and b (or an end). Columns: share x_uk of unit u on
    device k, makespan T, start S of each cut, length L of each block from the finish of a to the
    start of b, and start S_i of each operator inside, counted from the finish of a. With `ways`
    also y_ijkm for each tensor from i to j in one block: 1 where i is on k and j on another m.
    """

    def __init__(self, problem: Problem, horizon_ns: int, *, ways: bool) -> None:
        self.problem = problem
        self.ways = ways
        self.horizon_ns = horizon_ns
        self.builder = ModelBuilder()
        self.unit_ns = time_unit_ns(horizon_ns)
        self.shares = assignment_columns(problem, self.builder, integer=False)

    def model(self) -> LinearModel:
        """All rows. For a cut or end b that follows a, with S counted from 0 (T at the end):

        - `S_b >= S_a + sum_k compute_ak x_ak + L`, and `L >= sum_k head_bk x_bk` from a on
        - `S_b >= sum_k head_bk x_bk` and `T >= S_b + sum_k tail_bk x_bk` over the whole graph
        """
        problem, builder = self.problem, self.builder
        makespan, before = self._time(), self._time()
        parts = blocks(problem)
        marks = {cut for cut, _, _ in parts if cut is not None}
        heads, tails = heads_ns(problem), tails_ns(problem)
        near_heads, near_tails = heads_ns(problem, marks), tails_ns(problem, marks)
        for cut, inside, end in parts:
            length = self._time()
            start = makespan if end is None else self._time()
            busy = [] if cut is None else self._minus(problem.compute_ns, cut)
            builder.at_least([(1, start), (-1, before), *busy, (-1, length)], 0)
            self._block(inside, length, near_heads, near_tails)
            if end is not None:
                builder.at_least([(1, length), *self._minus(near_heads, end)], 0)
                builder.at_least([(1, start), *self._minus(heads, end)], 0)
                builder.at_least([(1, makespan), (-1, start), *self._minus(tails, end)], 0)
            before = start
        return builder.build(makespan)

    def _block(self, inside: list[int], length: int, heads: IntArray, tails: IntArray) -> None:
        """Rows of one block, i and j inside it:

        - `S_i >= sum_k head_ik x_ik` and `L >= S_i + sum_k tail_ik x_ik`
        - `S_j >= S_i + sum_k compute_ik x_ik` for each tensor from i to j; see `_way`
        - `L >= sum_i compute_ik x_ik` for each device k, as all of them run within L
        - `L - h - t >= sum_i inside_ik x_ik` for each device k and some intervals from h to L - t
        """
        problem, builder = self.problem, self.builder
        starts = {operator: self._time() for operator in inside}
        for operator, start in starts.items():
            builder.at_least([(1, start), *self._minus(heads, operator)], 0)
            builder.at_least([(1, length), (-1, start), *self._minus(tails, operator)], 0)
        self._tensors(starts, length)
        for device in range(len(problem.devices)):
            able = [i for i in inside if problem.runnable[i, device]]
            load = [
                (-int(problem.compute_ns[i, device]), self.shares[problem.unit_of[i]][device])
                for i in able
            ]
            builder.at_least([(1, length), *load], 0)
        for head, tail, energy in intervals(problem, inside, heads, tails):
            for device in range(len(problem.devices)):
                load = [
                    (-int(energy[place, device]), self.shares[problem.unit_of[i]][device])
                    for place, i in enumerate(inside)
                    if energy[place, device]
                ]
                builder.at_least([(1, length), *load], head + tail)

    def _tensors(self, starts: dict[int, int], length: int) -> None:
        """Rows of a block's tensors. With `ways` the transfers on each channel fit into L:

        - `L >= sum time_tkm y_ijkm` over one consumer j of each tensor, or over all of them where
          each has its own transfer: what goes to other consumers only adds to it.
        """
        problem = self.problem
        carried: dict[int, list[tuple[int, int]]] = {}
        for operator, tensor in ((i, tensor) for i in starts for tensor in problem.outgoing[i]):
            consumers = [j for j in problem.tensors[tensor].consumers if j in starts]
            for number, consumer in enumerate(consumers):
                wait = [(1, starts[consumer]), (-1, starts[operator])]
                moves = self._way(tensor, operator, consumer) if self.ways else {}
                slower = [(-time, column) for (_, _, time), column in moves.items()]
                wait += self._minus(problem.compute_ns, operator)
                self.builder.at_least([*wait, *slower], 0)
                if number and problem.transfers != PER_EDGE:
                    continue
                for (source, target, time), column in moves.items():
                    for channel in channels_of(problem, source, target):
                        carried.setdefault(channel, []).append((-time, column))
        for load in carried.values():
            self.builder.at_least([(1, length), *load], 0)

    def _way(self, tensor: int, source: int, target: int) -> dict[tuple[int, int, int], int]:
        """Columns y_ijkm >= 0 of a tensor from i to j by (k, m, time), with their rows.

        - `x_jk = x_ik + sum_m y_ijmk - sum_m y_ijkm` for each device k, so shares that differ must
          move; the start of j then waits for `sum time_tkm y_ijkm` as well.
        """
        problem = self.problem
        if problem.unit_of[source] == problem.unit_of[target]:
            return {}
        here, there = (self.shares[problem.unit_of[i]] for i in (source, target))
        time_ns = problem.time_ns[tensor]
        moves = {
            (k, m, int(time_ns[k, m])): self.builder.column(0, 1)
            for k in here
            for m in there
            if k != m
        }
        for device in sorted({*here, *there}):
            left = [(1, column) for (k, _, _), column in moves.items() if k == device]
            came = [(-1, column) for (_, m, _), column in moves.items() if m == device]
            before = [(-1, here[device])] if device in here else []
            after = [(1, there[device])] if device in there else []
            self.builder.equal([*before, *after, *left, *came], 0)
        return moves

    def _time(self) -> int:
        """A column for a time."""
        return self.builder.column(0, self.horizon_ns, unit=self.unit_ns)

    def _minus(self, table: IntArray, operator: int) -> list[tuple[int, int]]:
        """Terms of `-sum_k table_ik x_ik`."""
        columns = self.shares[self.problem.unit_of[operator]]
        return [(-int(table[operator, k]), column) for k, column in columns.items()]


@dataclass(frozen=True)
class RelaxedLoads:
    """What the relaxation tells."""

    bound: Bound
    """On the bottleneck."""
    model: LoadModel
    shares: FloatArray | None
    """Column values; None if the solver had none."""


def priced_work(problem: Problem) -> Bound:
    """A bound from the work alone, for instances of any size.

    For any prices l_k >= 0 of the devices every assignment has
    `bottleneck * sum_k l_k >= sum_k l_k load_k >= sum_u min_k l_k work[u, k]`. Good prices come
    from multiplicative weights: what is overloaded at the cheapest choices becomes dearer
    (Plotkin, Shmoys and Tardos 1995). Whole numbers throughout the last sum.
    """
    work, units = unit_compute_ns(problem), np.arange(len(problem.units))
    banned, largest = work < 0, np.iinfo(np.int64).max
    weights, best = np.ones(len(problem.devices)), 0
    for _ in range(_ROUNDS):
        prices = np.ceil(_PRICE * weights / weights.max()).astype(np.int64)
        priced = np.where(banned, largest, work * prices)
        chosen = priced.argmin(axis=1)
        best = max(best, -(-int(priced[units, chosen].sum()) // int(prices.sum())))
        loads = np.bincount(chosen, work[units, chosen], len(weights))
        weights *= 1 + _STEP * loads / max(1.0, float(loads.max()))
    return Bound(best, "work at prices of devices")


def relax_loads(
    problem: Problem, ceiling_ns: int, limits: Limits, *, crossing: bool
) -> RelaxedLoads:
    """Solves the load model without integrality; its duals prove the bound in whole numbers.

    Args:
      problem: a valid problem.
      ceiling_ns: a bottleneck that some schedule reaches.
      limits: for the solver.
      crossing: whether channels count, which takes a column for every way of every tensor.
    """
    model = build_loads(problem, ceiling_ns, crossing=crossing)
    linear = replace(model.linear, integer=np.zeros_like(model.linear.integer))
    what = "devices and channels" if crossing else "devices"
    how = f"linear relaxation of the loads of {what}"
    bound, shares = _proved(linear, ceiling_ns, limits, how)
    return RelaxedLoads(bound, model, shares)


def rounded(problem: Problem, packing: Packing, relaxed: RelaxedLoads) -> list[int] | None:
    """Each unit to the device with its largest share, within memory; the clearest cases first.

    Returns:
      The device of each operator; None without shares.
    """
    if relaxed.shares is None:
        return None
    shares = [
        {device: float(relaxed.shares[column]) for device, column in choice.items()}
        for choice in relaxed.model.choices
    ]
    reservation = Reservation(problem, packing)
    assignment = [0] * len(problem.operators)
    for unit in sorted(range(len(shares)), key=lambda u: (-max(shares[u].values()), u)):
        members, share = problem.units[unit], shares[unit]
        allowed = reservation.devices(members[0])
        device = max(allowed, key=lambda k: share.get(k, -1.0))
        reservation.decide(members[0], device)
        for operator in members:
            assignment[operator] = device
    return assignment

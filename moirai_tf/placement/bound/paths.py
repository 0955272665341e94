"""Proved lower bounds on the makespan. Each function's docstring holds its proof."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moirai_tf.placement.problem import IntArray, Problem

_NEVER = 2**60
"""Stands for "cannot be": above every sum of times, and twice it still fits 64 bits."""


@dataclass(frozen=True)
class Bound:
    """A proved lower bound and the argument that proved it."""

    value_ns: int
    how: str


def heads_ns(problem: Problem, marks: Collection[int] = ()) -> IntArray:
    """(operators, devices): no schedule starts the operator on the device earlier.

    A tensor's consumer on device l starts after the producer on some device k and the way from k
    to l, and the least over k is taken; members of one unit are on the same device. By induction
    in topological order. 2**60 where the operator cannot be.

    With `marks`, some of `cuts`, times count from the finish of the last mark before the operator.
    """
    heads = np.where(problem.runnable, 0, _NEVER).astype(np.int64)
    origin = -1
    position = problem.topological_position
    for operator in problem.topological_order:
        row = heads[operator]
        for tensor in problem.incoming[operator]:
            producer = problem.tensors[tensor].producer
            if position[producer] < origin:
                continue
            finish = np.minimum(heads[producer] + problem.compute_ns[producer], _NEVER)
            if position[producer] == origin:
                finish = np.where(problem.runnable[producer], 0, _NEVER)
            if problem.unit_of[producer] != problem.unit_of[operator]:
                finish = (finish[:, None] + problem.time_ns[tensor]).min(axis=0)
            np.maximum(row, finish, out=row)
        np.minimum(row, _NEVER, out=row)
        if operator in marks:
            origin = position[operator]
    return heads


def tails_ns(problem: Problem, marks: Collection[int] = ()) -> IntArray:
    """(operators, devices): the makespan is at least the operator's start plus this.

    The mirror image of `heads_ns`, the operator's own time included. With `marks`, the start of
    the next mark after the operator stands for the makespan.
    """
    tails = np.zeros((len(problem.operators), len(problem.devices)), dtype=np.int64)
    position = problem.topological_position
    end = len(problem.operators)
    for operator in reversed(problem.topological_order):
        row = tails[operator]
        for tensor in problem.outgoing[operator]:
            for consumer in problem.tensors[tensor].consumers:
                if position[consumer] > end:
                    continue
                after = tails[consumer]
                if position[consumer] == end:
                    after = np.where(problem.runnable[consumer], 0, _NEVER)
                if problem.unit_of[consumer] != problem.unit_of[operator]:
                    after = (problem.time_ns[tensor] + after[None, :]).min(axis=1)
                np.maximum(row, after, out=row)
        row += problem.compute_ns[operator]
        row[~problem.runnable[operator]] = _NEVER
        np.minimum(row, _NEVER, out=row)
        if operator in marks:
            end = position[operator]
    return tails


def critical_path(problem: Problem) -> Bound:
    """The longest path, each operator and each way between two at its best.

    Every operator runs on some device k, and then the makespan is at least its head plus its
    tail there; the least over k holds for each operator.
    """
    if not problem.operators:
        return Bound(0, "there is nothing to run")
    through = heads_ns(problem) + tails_ns(problem)
    return Bound(int(through.min(axis=1).max()), "critical path with best times")


def blockwise(problem: Problem) -> Bound:
    """Cuts one after another, and between two the longest path or the work shared by all devices.

    All operators of a block run after the cut before it has finished and before the next starts,
    so the blocks' makespans add up. Some device works at least the mean over all devices of the
    least possible work of the block: `sum_k load_k >= sum_i min_k compute_ik`.
    """
    parts = blocks(problem)
    marks = {cut for cut, _, _ in parts if cut is not None}
    heads, tails = heads_ns(problem, marks), tails_ns(problem, marks)
    path = (heads + tails).min(axis=1)
    work = np.where(problem.runnable, problem.compute_ns, _NEVER).min(axis=1)
    total = sum(int(work[cut]) for cut in marks)
    for _, inside, end in parts:
        entry = 0 if end is None else int(heads[end].min())
        shared = -(-int(work[inside].sum()) // len(problem.devices))
        total += max(entry, shared, int(path[inside].max(initial=0)))
    return Bound(total, "critical path or shared work between cuts")


def cuts(problem: Problem) -> list[int]:
    """Operators that a path connects with every other one, in topological order.

    In one topological order, v is alone in being ready when its turn comes exactly if all that
    come later are its descendants; the same read backwards gives the ancestors.
    """
    later = _alone(problem, problem.topological_order, problem.outgoing, forward=True)
    earlier = _alone(problem, problem.topological_order[::-1], problem.incoming, forward=False)
    both = later & earlier
    return [operator for operator in problem.topological_order if operator in both]


def _alone(
    problem: Problem,
    order: tuple[int, ...],
    edges: tuple[tuple[int, ...], ...],
    *,
    forward: bool,
) -> set[int]:
    """Operators that are the only ready one when an order reaches them."""

    def following(operator: int) -> list[int]:
        tensors = [problem.tensors[tensor] for tensor in edges[operator]]
        if forward:
            return [consumer for tensor in tensors for consumer in tensor.consumers]
        return [tensor.producer for tensor in tensors]

    waiting = [0] * len(order)
    for operator in order:
        for other in following(operator):
            waiting[other] += 1
    ready = sum(count == 0 for count in waiting)
    alone = set()
    for operator in order:
        if ready == 1:
            alone.add(operator)
        ready -= 1
        for other in following(operator):
            waiting[other] -= 1
            ready += waiting[other] == 0
    return alone


def blocks(problem: Problem) -> list[tuple[int | None, list[int], int | None]]:
    """(cut or None, operators strictly between, next cut or None), all of them in order."""
    order, position = problem.topological_order, problem.topological_position
    marks = cuts(problem)
    places = [-1, *(position[cut] for cut in marks), len(order)]
    ends: list[int | None] = [None, *marks, None]
    return [
        (ends[i], list(order[low + 1 : high]), ends[i + 1])
        for i, (low, high) in enumerate(pairwise(places))
    ]


def round_up(problem: Problem, bound_ns: float) -> int:
    """The least makespan an optimum can have above a bound: a multiple of the quantum."""
    quantum = problem.quantum_ns
    return math.ceil(bound_ns / quantum) * quantum

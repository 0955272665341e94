"""Where a graph is cut into blocks: exactly, or after leaving out what spans many blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from moirai_tf.placement.bound.paths import cuts
from moirai_tf.placement.problem import IntArray, Problem, Tensor

_TIGHTER = 1.5
"""Spans are tried from the longest path down, each so much shorter than the last."""


@dataclass(frozen=True)
class BlockSizes:
    """Operators in a block, and the shortest span."""

    easy: int = 20
    """Up to so many of an exact cutting are solved easily."""
    wanted: int = 16
    """Of another cutting."""
    most: int = 60
    """More are not solved, nor bounded better than by simpler means."""
    least_span: float = 4
    """Of a tensor or operator that is left out, in steps."""


@dataclass(frozen=True)
class Cutting:
    """Cuts, the operators between them, and what is left out between blocks."""

    cuts: tuple[int, ...]
    inner: tuple[tuple[int, ...], ...]
    """Operators before the first cut, between two, and after the last one; producers first."""
    floats: frozenset[int] = frozenset()
    """Inner operators of which a block only knows the memory: they may run in another block."""
    exact: bool = True
    """Whether no operator floats and no tensor jumps over a cut."""

    @property
    def largest(self) -> int:
        """Operators of the largest block, without its cuts."""
        return max(map(len, self.inner))


def cuttings(problem: Problem, sizes: BlockSizes = BlockSizes()) -> list[Cutting]:
    """Cuttings that are worth a try, the most promising one first; maybe none.

    If the exact one has large blocks, so much is left out that they become small: tensors on their
    way to readers more than `span` steps later, and operators that can run anywhere within more
    than `span` steps, such as a mask that all layers read, the outputs of an encoder, or branches
    that begin early and end late. Without them there are only fewer things to do and to wait for,
    so bounds hold; their memory still counts. The largest span that suffices is taken, or else the
    one of smallest blocks.
    """
    exact = cut_at(problem, clean_cuts(problem))
    if exact.largest <= sizes.easy:
        return [exact]
    options = [exact]
    depth, slack = _levels(problem)
    span = float(depth.max(initial=0))
    while span >= sizes.least_span and options[-1].largest > sizes.wanted:
        options.append(_relaxed(problem, depth, slack, span))
        span /= _TIGHTER
    best = min(options, key=lambda option: option.largest)
    return [option for option in dict.fromkeys((best, exact)) if option.largest <= sizes.most]


def clean_cuts(problem: Problem) -> list[int]:
    """Cuts that no tensor jumps over, in topological order.

    When such an operator ends, all earlier ones have ended and no tensor of theirs is still to be
    moved, so every device and channel is idle and the makespan is the sum over the blocks.
    """
    position = problem.topological_position
    change = np.zeros(len(position) + 2, dtype=np.int64)
    for tensor in problem.tensors:
        begin = position[tensor.producer] + 1
        end = max(position[consumer] for consumer in tensor.consumers)
        if begin < end:
            change[begin] += 1
            change[end] -= 1
    jumped = np.cumsum(change)
    return [cut for cut in cuts(problem) if jumped[position[cut]] == 0]


def cut_at(problem: Problem, marks: Sequence[int]) -> Cutting:
    """The cutting at some of `clean_cuts`."""
    order, position = problem.topological_order, problem.topological_position
    places = [-1, *(position[mark] for mark in marks), len(order)]
    inner = (order[low + 1 : high] for low, high in pairwise(places))
    return Cutting(tuple(marks), tuple(inner))


def _levels(problem: Problem) -> tuple[IntArray, IntArray]:
    """Depth of each operator: steps of the longest path to it; and by how much it may be later."""
    depth = np.zeros(len(problem.operators), dtype=np.int64)
    for operator in problem.topological_order:
        for tensor in problem.outgoing[operator]:
            readers = list(problem.tensors[tensor].consumers)
            depth[readers] = np.maximum(depth[readers], depth[operator] + 1)
    latest = np.full(len(depth), depth.max(initial=0))
    for operator in reversed(problem.topological_order):
        for tensor in problem.outgoing[operator]:
            readers = list(problem.tensors[tensor].consumers)
            latest[operator] = min(latest[operator], latest[readers].min() - 1)
    return depth, latest - depth


def _relaxed(problem: Problem, depth: IntArray, slack: IntArray, span: float) -> Cutting:
    """The cutting without what spans more than so many steps."""
    kept = [operator for operator in problem.topological_order if slack[operator] <= span]
    number = {operator: place for place, operator in enumerate(kept)}
    tensors = []
    for tensor in problem.tensors:
        if tensor.producer not in number:
            continue
        near = tuple(
            number[reader]
            for reader in tensor.consumers
            if reader in number and depth[reader] - depth[tensor.producer] <= span
        )
        if near:
            tensors.append(Tensor(number[tensor.producer], near, tensor.time_ns))
    operators = tuple(problem.operators[operator] for operator in kept)
    smaller = replace(problem, operators=operators, tensors=tuple(tensors), colocation=())
    found = cut_at(smaller, clean_cuts(smaller))
    inner = [[kept[operator] for operator in part] for part in found.inner]
    marks = [kept[mark] for mark in found.cuts]
    floats = _place_floats(problem, marks, inner)
    return Cutting(tuple(marks), tuple(map(tuple, inner)), floats, exact=False)


def _place_floats(problem: Problem, marks: list[int], inner: list[list[int]]) -> frozenset[int]:
    """Adds every operator in no block to that of its first reader, or else of its last producer."""
    block = {operator: place for place, part in enumerate(inner) for operator in part}
    block |= {mark: place for place, mark in enumerate(marks)}
    floats = [operator for operator in problem.topological_order if operator not in block]
    for operator in reversed(floats):
        tensors = [problem.tensors[tensor] for tensor in problem.outgoing[operator]]
        known = [block[r] for tensor in tensors for r in tensor.consumers if r in block]
        if known:
            block[operator] = min(known)
    for operator in floats:
        if operator not in block:
            producers = [problem.tensors[tensor].producer for tensor in problem.incoming[operator]]
            block[operator] = max((block[producer] for producer in producers), default=0)
        inner[block[operator]].append(operator)
    return frozenset(floats)

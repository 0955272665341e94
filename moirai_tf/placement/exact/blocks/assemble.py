"""A schedule from one column per block."""

from __future__ import annotations

from collections.abc import Sequence

from moirai_tf.placement.evaluate.events import TransferKey, replay, simulate
from moirai_tf.placement.exact.blocks.block import NOBODY
from moirai_tf.placement.exact.blocks.block_pool import Column, Pool
from moirai_tf.placement.exact.blocks.search import Found
from moirai_tf.placement.problem import PER_EDGE, Problem
from moirai_tf.placement.schedule import Schedule


def assemble(problem: Problem, pool: Pool, columns: Sequence[Column], *, exact: bool) -> Schedule:
    """Plays the blocks' orders one after another.

    The columns say devices and orders; times are worked out anew. Tensors that the blocks do not
    know of are moved as soon as they can be, and operators that may run in an earlier block are
    also tried in the gaps there.
    """
    assignment = [0] * len(problem.operators)
    starts: list[float] = [0.0] * len(problem.operators)
    moves: dict[TransferKey, float] = {}
    begin = 0
    known: dict[Column, Found] = {}
    for block, column in zip(pool.blocks, columns, strict=True):
        if column not in known:
            known[column] = pool.orders(column)
        found = known[column]
        devices, local = column.device, found.start.tolist()
        for place, operator in enumerate(block.operators):
            if place and operator != NOBODY:
                assignment[operator] = devices[place]
                starts[operator] = begin + local[place]
        for tensor, key, start in found.transfers.tolist():
            name = block.tensors[tensor]
            if name != NOBODY:
                last = block.operators[key] if problem.transfers == PER_EDGE else key
                moves[name, last] = begin + start
        begin += column.ticks
    schedule = replay(problem, assignment, starts, moves)
    if exact:
        return schedule
    gaps = simulate(problem, assignment, producers_first(problem, starts))
    return min(schedule, gaps, key=lambda option: option.makespan_ns)


def producers_first(problem: Problem, starts: list[float]) -> list[int]:
    """Operators in order of their starts, but none before what it waits for."""
    for operator in problem.topological_order:
        for tensor in problem.incoming[operator]:
            producer = problem.tensors[tensor].producer
            starts[operator] = max(starts[operator], starts[producer])
    position = problem.topological_position
    return sorted(range(len(starts)), key=lambda operator: (starts[operator], position[operator]))

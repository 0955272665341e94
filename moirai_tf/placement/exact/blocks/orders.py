"""The best order of operators and transfers when every operator has its device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.compiled import compiled, compiled_lean
from moirai_tf.placement.evaluate.channels import NOTHING
from moirai_tf.placement.exact.blocks.jobs import (
    JobGraph,
    JobTable,
    ResourceScratch,
    new_scratch,
    resources_bound,
)
from moirai_tf.placement.problem import IntArray


@compiled_lean
def earliest(graph: JobGraph, finish: IntArray, free: IntArray) -> int:
    """Sets heads of jobs without a finish, beside what has one; a lower bound.

    Args:
      graph: all jobs; their heads are changed.
      finish: (jobs,), in ticks: when each ends; -1 where that is open.
      free: (resources,), in ticks: when each is free.
    """
    bound, table = 0, graph.table
    for job in range(len(table.length)):
        if finish[job] >= 0:
            bound = max(bound, finish[job] + table.tail[job])
            continue
        ready = 0
        for entry in range(graph.first[job], graph.first[job + 1]):
            other = graph.before[entry]
            if finish[other] >= 0:
                ready = max(ready, finish[other] + graph.lag[entry])
            else:
                ready = max(ready, table.head[other] + table.length[other] + graph.lag[entry])
        for side in range(2):
            if table.resources[job, side] != NOTHING:
                ready = max(ready, free[table.resources[job, side]])
        table.head[job] = ready
        bound = max(bound, ready + table.length[job] + table.tail[job])
    return bound


@compiled_lean
def _candidates(table: JobTable, finish: IntArray, found: IntArray) -> int:
    """Jobs of which one comes next in some active schedule (Giffler and Thompson 1960).

    The job that can end first, and those that would delay it: in an active schedule one of
    them is next on its resource. Longest tail first.
    """
    first = -1
    for job in range(len(table.length)):
        if finish[job] >= 0:
            continue
        ends = table.head[job] + table.length[job]
        if first < 0 or ends < table.head[first] + table.length[first]:
            first = job
    limit = table.head[first] + table.length[first]
    count = 0
    for job in range(len(table.length)):
        if finish[job] >= 0 or (job != first and table.head[job] >= limit):
            continue
        if job == first or _share(table.resources, job, first):
            place = count
            rank = table.tail[job] + table.length[job]
            while place and table.tail[found[place - 1]] + table.length[found[place - 1]] < rank:
                found[place] = found[place - 1]
                place -= 1
            found[place] = job
            count += 1
    return count


@compiled_lean
def _share(resources: IntArray, one: int, other: int) -> bool:
    """Whether two jobs occupy a common resource."""
    for side in range(2):
        used = resources[one, side]
        if used != NOTHING and (used == resources[other, 0] or used == resources[other, 1]):
            return True
    return False


class PartialOrder(NamedTuple):
    """What has been put in order so far."""

    finish: IntArray
    """(jobs,), in ticks: when each ends; -1 where that is open."""
    free: IntArray
    """(resources,), in ticks: when each is free."""
    undo: IntArray
    """(levels, 2): when the resources of a level's job were free before."""


@compiled_lean
def _put(graph: JobGraph, progress: PartialOrder, level: int, job: int) -> None:
    """Makes a job the next one on its resources."""
    progress.finish[job] = graph.table.head[job] + graph.table.length[job]
    for side in range(2):
        resource = graph.table.resources[job, side]
        if resource != NOTHING:
            progress.undo[level, side] = progress.free[resource]
            progress.free[resource] = progress.finish[job]


@compiled_lean
def _take_back(graph: JobGraph, progress: PartialOrder, level: int, job: int) -> None:
    """Undoes `_put`."""
    progress.finish[job] = -1
    for side in range(2):
        resource = graph.table.resources[job, side]
        if resource != NOTHING:
            progress.free[resource] = progress.undo[level, side]


class Branching(NamedTuple):
    """The jobs of which one comes next, level by level."""

    options: IntArray
    """(levels, jobs)"""
    size: IntArray
    """(levels,): how many of them there are, and how many were taken."""
    taken: IntArray


@compiled
def _new_order(graph: JobGraph) -> tuple[PartialOrder, Branching]:
    """Nothing is in order yet."""
    count = len(graph.table.length)
    finish = np.full(count, -1, dtype=np.int64)
    free = np.zeros(graph.total, dtype=np.int64)
    progress = PartialOrder(finish, free, np.zeros((count + 1, 2), dtype=np.int64))
    numbers = np.zeros((2, count + 1), dtype=np.int64)
    options = np.empty((count + 1, count), dtype=np.int64)
    return progress, Branching(options, numbers[0], numbers[1])


@compiled_lean
def _open_level(graph: JobGraph, progress: PartialOrder, tree: Branching, level: int) -> None:
    """Notes the jobs that may come next."""
    tree.taken[level] = 0
    tree.size[level] = _candidates(graph.table, progress.finish, tree.options[level])


@compiled_lean
def _next_option(graph: JobGraph, progress: PartialOrder, tree: Branching, level: int) -> int:
    """Takes the last job of a level back; the next one, -1 if there is none left."""
    place = tree.taken[level]
    if place > 0:
        _take_back(graph, progress, level, tree.options[level, place - 1])
    if place == tree.size[level]:
        return -1
    tree.taken[level] = place + 1
    return int(tree.options[level, place])


@compiled_lean
def _bound(graph: JobGraph, order: PartialOrder, scratch: ResourceScratch, enough: int) -> int:
    """Sets earliest starts; a lower bound by paths and, below `enough`, by resources."""
    bound = int(earliest(graph, order.finish, order.free))
    if bound >= enough:
        return bound
    count = len(graph.table.head)
    return resources_bound(graph.table, order.finish, count, scratch, bound)


@compiled
def best_order(
    graph: JobGraph, cutoff: int, enough: int, node_limit: int, best_start: IntArray
) -> tuple[int, int, int]:
    """Branch and bound over active schedules.

    Args:
      graph: what is to be ordered.
      cutoff: only a smaller makespan is of interest.
      enough: a makespan that need not be improved.
      node_limit: nodes after which the search gives up.
      best_start: (jobs,), in ticks: output: the starts of the best schedule found, if any.

    Returns:
      The least makespan found (`cutoff` if none was less), a lower bound on the optimum that is
      at most `cutoff`, and the number of nodes.
    """
    count = len(graph.table.length)
    progress, tree = _new_order(graph)
    scratch = new_scratch(graph.total, count)
    best = open_bound = cutoff
    root = _bound(graph, progress, scratch, cutoff)
    _open_level(graph, progress, tree, 0)
    level, nodes = 0 if root < cutoff else -1, 0
    while level >= 0 and best > max(root, enough):
        job = _next_option(graph, progress, tree, level)
        if job < 0:
            level -= 1
            continue
        nodes += 1
        earliest(graph, progress.finish, progress.free)
        _put(graph, progress, level, job)
        bound = _bound(graph, progress, scratch, best)
        if bound >= best:
            continue
        if level + 1 == count:
            best = bound
            best_start[:count] = progress.finish - graph.table.length
        elif nodes > node_limit:
            open_bound = min(open_bound, bound)
        else:
            level += 1
            _open_level(graph, progress, tree, level)
    if best > root and level >= 0:
        return best, root, nodes
    return best, min(best, max(root, open_bound)), nodes

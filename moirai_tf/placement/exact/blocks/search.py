"""Exact search over the devices of a block's operators, with prices for what they occupy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.exact.blocks.block_arrays import NEVER, OPEN, BlockData
from moirai_tf.placement.exact.blocks.propagation import State, new_state, order_block
from moirai_tf.placement.exact.blocks.search_tree import ORDERS_PER_NODE, expand, hardest, new_tree
from moirai_tf.placement.problem import BoolArray, IntArray

_FIRST_STEP = 64
"""The first goal is above the root's bound by this part of it."""


class Found(NamedTuple):
    """What a block search brought back; the cutoff as value means that nothing was found."""

    value: int
    """Makespan plus prices."""
    bound: int
    """No schedule below the cutoff has less."""
    device: IntArray
    start: IntArray
    """Start of each operator."""
    transfers: IntArray
    """Rows of tensor, target device or (`per_edge`) consumer, start."""
    nodes: int


@compiled
def search_block(
    data: BlockData,
    allowed: BoolArray,
    price: IntArray,
    cutoff: int,
    node_limit: int,
    sequence_limit: int,
) -> Found:
    """Branch and bound over devices; orders are solved exactly once all devices are chosen.

    The search is repeated with goals that rise from the root's bound to the cutoff until it finds
    a value below its goal. Low goals are refuted soon, and a good value is not needed first.

    Args:
      data: the block.
      allowed: (operators, devices); at least one device each, one for entry and exit.
      price: (operators, devices): what an operator pays on a device besides its time; >= 0.
      cutoff: only a smaller value is of interest.
      node_limit: nodes after which the search gives up, with a valid bound.
      sequence_limit: the same for each search over orders.
    """
    state = new_state(data, price)
    nothing = min(0, node_limit)
    found = _search(state, allowed, cutoff, nothing, nothing, sequence_limit)
    value, lower, nodes = found.value, found.bound, found.nodes
    step = 1 + lower // _FIRST_STEP
    done = value < cutoff or lower == cutoff
    while not done and nodes <= node_limit:
        goal = min(cutoff, lower + step)
        left = node_limit - nodes
        patience = left if goal == cutoff else left // 2
        found = _search(state, allowed, goal, patience, left, sequence_limit)
        nodes += found.nodes
        lower = max(lower, found.bound)
        step = 1 + step + step // 4 if found.bound == goal else 4 * step
        done = found.value < goal or goal == cutoff
        value = found.value if found.value < goal else cutoff
    return Found(value, lower, found.device, found.start, found.transfers, nodes)


@compiled
def _nothing(operators: int, goal: int) -> Found:
    return Found(
        goal,
        goal,
        np.zeros(operators, dtype=np.int64),
        np.zeros(operators, dtype=np.int64),
        np.zeros((0, 3), dtype=np.int64),
        0,
    )


@compiled
def _search(
    state: State,
    allowed: BoolArray,
    goal: int,
    patience: int,
    node_limit: int,
    sequence_limit: int,
) -> Found:
    """Depth first; of a node's children the one with the least bound first.

    Args:
      state: the block.
      allowed: (operators, devices).
      goal: only a smaller value is of interest.
      patience: nodes after which the search gives up if it has found nothing yet.
      node_limit: nodes after which it gives up.
      sequence_limit: nodes of each search over orders.
    """
    found = _nothing(len(allowed), goal)
    tree = new_tree(state, allowed, goal)
    best = open_bound = goal
    level, nodes = 0, 1
    while level >= 0:
        place = int(np.argmin(tree.bound[level]))
        bound = tree.bound[level, place]
        if bound >= best:
            level -= 1
            continue
        tree.bound[level, place] = NEVER
        operator = hardest(state.data, tree.domain[level, place])
        if operator == OPEN:
            leaf = _leaf(state, tree.domain[level, place], best, sequence_limit)
            nodes += leaf.nodes // ORDERS_PER_NODE
            open_bound = min(open_bound, max(bound, leaf.bound))
            if leaf.value < best:
                best, found = leaf.value, leaf
        elif nodes > (patience if best == goal else node_limit):
            open_bound = min(open_bound, bound)
        else:
            nodes += expand(tree, state, level, place, operator, best)
            level += 1
    lower = min(best, open_bound)
    return Found(best, lower, found.device, found.start, found.transfers, nodes)


@compiled
def _leaf(state: State, domain: BoolArray, best: int, sequence_limit: int) -> Found:
    """The best orders when all operators have devices; the bound is at most `best`."""
    operators, devices = domain.shape
    device = np.zeros(operators, dtype=np.int64)
    cost = 0
    for operator in range(operators):
        for place in range(devices):
            if domain[operator, place]:
                device[operator] = place
                cost += state.price[operator, place]
    done = order_block(state, domain, best - cost, sequence_limit)
    return Found(
        done.makespan + cost, done.bound + cost, device, done.start, done.transfers, done.nodes
    )

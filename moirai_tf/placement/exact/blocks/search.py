"""Exact search over the devices of a block's operators, with prices for what they occupy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled, compiled_lean
from moirai_tf.placement.exact.blocks.block import NEVER, OPEN, BlockArrays
from moirai_tf.placement.exact.blocks.filter import SearchState, measure, new_state, propagate
from moirai_tf.placement.exact.blocks.jobs import job_graph
from moirai_tf.placement.exact.blocks.orders import best_order
from moirai_tf.placement.problem import BoolArray, IntArray

_FIRST_STEP = 64
"""The first goal is above the root's bound by this part of it."""
_ORDERS_PER_NODE = 10
"""Nodes of a search over orders that take as long as a node of the tree, about."""
_ROOT_STEPS, _STEPS = 20, 2
"""Of the ascent of loads at the root and at every other node."""
_ORDER_NODES = 100
"""Of the search for an order of what has a device already."""


class Found(NamedTuple):
    """What a block search brought back; the cutoff as value means that nothing was found."""

    value: int
    """Makespan plus prices, in ticks."""
    bound: int
    """No schedule below the cutoff has less."""
    device: IntArray
    """(operators,)"""
    start: IntArray
    """(operators,), in ticks."""
    transfers: IntArray
    """Rows of tensor, target device or (`per_edge`) consumer, start."""
    nodes: int


@compiled
def search_block(
    data: BlockArrays,
    allowed: BoolArray,
    price: IntArray,
    cutoff: int,
    node_limit: int,
    order_limit: int,
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
      order_limit: the same for each search over orders.
    """
    state = new_state(data, price)
    nothing = min(0, node_limit)
    found = _search(state, allowed, cutoff, nothing, nothing, order_limit)
    value, lower, nodes = found.value, found.bound, found.nodes
    step = 1 + lower // _FIRST_STEP
    done = value < cutoff or lower == cutoff
    while not done and nodes <= node_limit:
        goal = min(cutoff, lower + step)
        left = node_limit - nodes
        patience = left if goal == cutoff else left // 2
        found = _search(state, allowed, goal, patience, left, order_limit)
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
    state: SearchState,
    allowed: BoolArray,
    goal: int,
    patience: int,
    node_limit: int,
    order_limit: int,
) -> Found:
    """Depth first; of a node's children the one with the least bound first.

    Args:
      state: the block.
      allowed: (operators, devices).
      goal: only a smaller value is of interest.
      patience: nodes after which the search gives up if it has found nothing yet.
      node_limit: nodes after which it gives up.
      order_limit: nodes of each search over orders.
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
            leaf = _order_all(state, tree.domain[level, place], best, order_limit)
            nodes += leaf.nodes // _ORDERS_PER_NODE
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


class Tree(NamedTuple):
    """The nodes on the way from the root to the current one, and their open siblings."""

    domain: BoolArray
    """(levels, devices, operators, devices): what is possible at each child of a level's node."""
    bound: IntArray
    """(levels, devices): of the children; NEVER where there is none, or none any more."""
    weights: FloatArray
    """(levels, devices, resources): of the bound by loads."""


@compiled
def new_tree(state: SearchState, allowed: BoolArray, best: int) -> Tree:
    """A tree whose first level holds only the root, in place 0."""
    operators, devices = allowed.shape
    resources = len(state.loads.weight)
    tree = Tree(
        np.zeros((operators + 1, devices, operators, devices), dtype=np.bool_),
        np.full((operators + 1, devices), NEVER, dtype=np.int64),
        np.zeros((operators + 1, devices, resources)),
    )
    tree.weights[0, 0, :devices] = 1.0 / devices
    tree.domain[0, 0] = allowed
    visit(tree, state, 0, 0, best)
    return tree


@compiled_lean
def visit(tree: Tree, state: SearchState, level: int, place: int, best: int) -> None:
    """Propagates a new node and sets its bound."""
    steps = _STEPS if level else _ROOT_STEPS
    domain, weights = tree.domain[level, place], tree.weights[level, place]
    tree.bound[level, place] = propagate(state, domain, weights, best, steps)


@compiled_lean
def hardest(data: BlockArrays, domain: BoolArray) -> int:
    """The open operator whose shortest time is longest; OPEN if there is none.

    What is long decides most about loads and paths, and its devices are tried first; short
    operators between long ones on one device then have no choice left.
    """
    operators, devices = domain.shape
    chosen, longest = OPEN, -1
    for operator in range(operators):
        count, least = 0, NEVER
        for device in range(devices):
            if domain[operator, device]:
                count += 1
                least = min(least, data.compute[operator, device])
        if count > 1 and least > longest:
            chosen, longest = operator, least
    return chosen


@compiled
def expand(tree: Tree, state: SearchState, level: int, place: int, operator: int, best: int) -> int:
    """Fills the next level with a node's children that may lead below `best`.

    Args:
      tree: changed.
      state: the block.
      level: of the node.
      place: of the node among its siblings.
      operator: whose device is decided.
      best: only a smaller value is of interest.

    Returns:
      How many nodes that took.
    """
    domain = tree.domain[level, place]
    tree.bound[level + 1] = NEVER
    possible, orders = _may_be_ordered(state, domain, best)
    nodes = orders // _ORDERS_PER_NODE
    if not possible:
        return nodes
    for device in range(domain.shape[1]):
        if not domain[operator, device]:
            continue
        nodes += 1
        child = tree.domain[level + 1, device]
        child[:] = domain
        child[operator, :] = False
        child[operator, device] = True
        tree.weights[level + 1, device] = tree.weights[level, place]
        visit(tree, state, level + 1, device, best)
    return nodes


@compiled
def _may_be_ordered(state: SearchState, domain: BoolArray, best: int) -> tuple[bool, int]:
    """Whether what has a device may be ordered so that the value is below `best`.

    Returns:
      False if that is proved impossible; and how many nodes the proof took.
    """
    base, count, _ = measure(state, domain)
    graph = job_graph(state.data, domain, state.jobs, count)
    goal = best - base
    start = np.zeros(count, dtype=np.int64)
    _, bound, nodes = best_order(graph, goal, goal - 1, _ORDER_NODES, start)
    return bound < goal, nodes


@compiled
def _order_all(state: SearchState, domain: BoolArray, cutoff: int, order_limit: int) -> Found:
    """The best orders of a value below a cutoff when all operators have one device."""
    jobs, operators = state.jobs, len(domain)
    cost, count, _ = measure(state, domain)
    graph = job_graph(state.data, domain, jobs, count)
    job_start = np.zeros(count, dtype=np.int64)
    makespan, bound, nodes = best_order(graph, cutoff - cost, 0, order_limit, job_start)
    start = np.zeros(operators, dtype=np.int64)
    transfers = np.zeros((count - operators, 3), dtype=np.int64)
    for place in range(count):
        job = graph.source[place]
        if job < operators:
            start[job] = job_start[place]
        else:
            transfers[job - operators, 0] = jobs.tensor[job]
            transfers[job - operators, 1] = jobs.key[job]
            transfers[job - operators, 2] = job_start[place]
    return Found(makespan + cost, bound + cost, jobs.device.copy(), start, transfers, nodes)


@compiled
def enumerate_block(
    data: BlockArrays,
    allowed: BoolArray,
    price: IntArray,
    limit: int,
    most: int,
    order_limit: int,
) -> tuple[IntArray, IntArray, bool]:
    """Device choices whose makespan plus prices, in ticks, is below a limit.

    Args:
      data: the block.
      allowed: (operators, devices), as `price`.
      price: of each device, >= 0.
      limit: of makespan plus prices.
      most: number of choices and, a hundredfold, of nodes after which the search ends.
      order_limit: nodes of each search over orders.

    Returns:
      (choices, operators) devices, (choices,) makespans, and whether these are surely all.
    """
    state = new_state(data, price)
    tree = new_tree(state, allowed, limit)
    count, nodes, level, whole = 0, 0, 0, True
    chosen, makespans = np.zeros((most, len(data.unit)), np.int64), np.zeros(most, np.int64)
    while level >= 0 and count < most and nodes <= 100 * most:
        place = int(np.argmin(tree.bound[level]))
        if tree.bound[level, place] >= limit:
            level -= 1
            continue
        tree.bound[level, place] = NEVER
        domain = tree.domain[level, place]
        operator = hardest(data, domain)
        if operator != OPEN:
            nodes += expand(tree, state, level, place, operator, limit)
            level += 1
            continue
        found = _order_all(state, domain, limit, order_limit)
        nodes += found.nodes // _ORDERS_PER_NODE
        whole = whole and min(found.value, limit) <= found.bound
        if found.value < limit:
            chosen[count] = found.device
            makespans[count] = found.value - (price * domain).sum()
            count += 1
    return chosen[:count], makespans[:count], whole and level < 0

"""The tree of device choices: each level decides one operator and keeps its open children."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.compiled import compiled, compiled_lean
from moirai_tf.placement.exact.blocks.block_arrays import NEVER, OPEN, BlockData
from moirai_tf.placement.exact.blocks.propagation import State, orderable, propagate
from moirai_tf.placement.problem import BoolArray, IntArray

ORDERS_PER_NODE = 10
"""Nodes of a search over orders that take as long as a node of the tree, about."""
_ROOT_STEPS, _STEPS = 20, 2
"""Of the ascent of loads at the root and at every other node."""


class Tree(NamedTuple):
    """The nodes on the way from the root to the current one, and their open siblings."""

    domain: BoolArray
    """(levels, devices, operators, devices): what is possible at each child of a level's node."""
    bound: IntArray
    """(levels, devices): of the children; NEVER where there is none, or none any more."""
    weights: FloatArray
    """(levels, devices, resources): of the bound by loads."""


@compiled
def new_tree(state: State, allowed: BoolArray, best: int) -> Tree:
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
def visit(tree: Tree, state: State, level: int, place: int, best: int) -> None:
    """Propagates a new node and sets its bound."""
    steps = _STEPS if level else _ROOT_STEPS
    domain, weights = tree.domain[level, place], tree.weights[level, place]
    tree.bound[level, place] = propagate(state, domain, weights, best, steps)


@compiled_lean
def hardest(data: BlockData, domain: BoolArray) -> int:
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
def expand(tree: Tree, state: State, level: int, place: int, operator: int, best: int) -> int:
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
    possible, orders = orderable(state, domain, best)
    nodes = orders // ORDERS_PER_NODE
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

"""All device choices of a block that cost little more than the best at given prices."""

from __future__ import annotations

import numpy as np

from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.exact.blocks.block_arrays import NEVER, OPEN, BlockData
from moirai_tf.placement.exact.blocks.propagation import new_state, order_block
from moirai_tf.placement.exact.blocks.search_tree import ORDERS_PER_NODE, expand, hardest, new_tree
from moirai_tf.placement.problem import BoolArray, IntArray


@compiled
def enumerate_block(
    data: BlockData, allowed: BoolArray, price: IntArray, limit: int, most: int, orders: int
) -> tuple[IntArray, IntArray, int]:
    """Device choices whose makespan plus prices is below a limit.

    Args:
      data: the block.
      allowed: (operators, devices).
      price: (operators, devices), >= 0.
      limit: on makespan plus prices.
      most: number of choices and, a hundredfold, of nodes after which the search ends.
      orders: nodes of each search over orders.

    Returns:
      (choices, operators) devices, (choices,) makespans, and how many choices there are; more
      than `most` if the search was ended, or a search over orders that mattered was.
    """
    state = new_state(data, price)
    tree = new_tree(state, allowed, limit)
    chosen = np.zeros((most, len(data.unit)), dtype=np.int64)
    makespans = np.zeros(most, dtype=np.int64)
    count, nodes, level = 0, 0, 0
    whole = True
    while level >= 0:
        place = int(np.argmin(tree.bound[level]))
        if tree.bound[level, place] >= limit:
            level -= 1
            continue
        tree.bound[level, place] = NEVER
        domain = tree.domain[level, place]
        operator = hardest(data, domain)
        if nodes > 100 * most:
            return chosen[:count], makespans[:count], most + 1
        if operator != OPEN:
            nodes += expand(tree, state, level, place, operator, limit)
            level += 1
            continue
        cost = (price * domain).sum()
        done = order_block(state, domain, limit - cost, orders)
        nodes += done.nodes // ORDERS_PER_NODE
        whole = whole and min(done.makespan, limit - cost) <= done.bound
        if done.makespan + cost >= limit:
            continue
        if count == most:
            return chosen, makespans, most + 1
        chosen[count] = state.work.device
        makespans[count] = done.makespan
        count += 1
    return chosen[:count], makespans[:count], count if whole else most + 1

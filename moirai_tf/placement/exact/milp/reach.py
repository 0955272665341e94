"""Which operators a path connects, and which plain edges other paths imply."""

from __future__ import annotations

import numpy as np

from moirai_tf.placement.problem import BoolArray, Problem


def reachable(problem: Problem) -> BoolArray:
    """(operators, operators): whether a path leads from the first to the second; each to itself.

    Takes n * n bytes.
    """
    reach = np.eye(len(problem.operators), dtype=np.bool_)
    for operator in reversed(problem.topological_order):
        for tensor in problem.outgoing[operator]:
            for consumer in problem.tensors[tensor].consumers:
                reach[operator] |= reach[consumer]
    return reach


def implied(problem: Problem, reach: BoolArray, producer: int, consumer: int) -> bool:
    """Whether another path makes the consumer wait for the producer.

    An edge on which nothing can ever be transferred may then be dropped.
    """
    others = {j for tensor in problem.outgoing[producer] for j in problem.tensors[tensor].consumers}
    return any(bool(reach[other, consumer]) for other in others - {consumer})

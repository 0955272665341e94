"""What is minimised: the makespan, the bottleneck of pipelined requests, or a weighted sum."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from moirai_tf.errors import MoiraiError
from moirai_tf.placement.evaluate.channels import channels_of, resource_count

if TYPE_CHECKING:
    from moirai_tf.placement.problem import IntArray, Problem
    from moirai_tf.placement.schedule import Schedule

LATENCY, THROUGHPUT, WEIGHTED = "latency", "throughput", "weighted"
OBJECTIVES = (LATENCY, THROUGHPUT, WEIGHTED)

_FINEST = 10**4
"""Weights are multiples of one over this, so that models in whole numbers stay within 64 bits."""


@dataclass(frozen=True, slots=True)
class Objective:
    """`w * makespan + (1 - w) * bottleneck` with an exact weight w.

    The bottleneck of a schedule is the largest total time that any device computes or that any
    channel carries, the channels being what the congestion mode says. It is never above the
    makespan, and a pipeline of requests cannot complete more often than once in that time.
    """

    name: str
    latency_weight: Fraction
    """w: 1 for `latency`, 0 for `throughput`."""

    def value_ns(self, makespan_ns: int, bottleneck_ns: int) -> Fraction:
        """The objective of a schedule; of lower bounds it is a lower bound."""
        return self.latency_weight * makespan_ns + (1 - self.latency_weight) * bottleneck_ns


MAKESPAN = Objective(LATENCY, Fraction(1))
BOTTLENECK = Objective(THROUGHPUT, Fraction(0))


def objective_of(name: str, latency_weight: float) -> Objective:
    """The objective of a user's options; the weight is the decimal that the number is written as.

    Raises:
      MoiraiError: the weight is not in [0, 1], or has more than four decimals.
    """
    plain = {LATENCY: MAKESPAN, THROUGHPUT: BOTTLENECK}
    if name in plain:
        return plain[name]
    weight = Fraction(str(float(latency_weight))) if 0 <= latency_weight <= 1 else Fraction(-1)
    if weight < 0 or (weight * _FINEST).denominator != 1:
        raise MoiraiError(
            f"option latency_weight is {latency_weight}",
            why="it is the makespan's share in a weighted sum, and is taken exactly",
            fix="give a value from 0 to 1 with at most four decimals",
        )
    return Objective(WEIGHTED, weight)


def bottleneck_ns(problem: Problem, schedule: Schedule) -> int:
    """The largest total time that a device computes or a channel carries."""
    busy_ns = [0] * resource_count(problem.congestion, len(problem.devices))
    for placed in schedule.placed:
        busy_ns[placed.device] += placed.finish_ns - placed.start_ns
    for transfer in schedule.transfers:
        for channel in channels_of(problem, transfer.source, transfer.target):
            busy_ns[channel] += transfer.finish_ns - transfer.start_ns
    return max(busy_ns, default=0)


def unit_compute_ns(problem: Problem) -> IntArray:
    """Time of all operators of each unit, (units, devices); -1 where the unit cannot be."""
    work = np.zeros((len(problem.units), len(problem.devices)), dtype=np.int64)
    np.add.at(work, list(problem.unit_of), problem.compute_ns)
    return np.where(problem.runnable[[members[0] for members in problem.units]], work, -1)

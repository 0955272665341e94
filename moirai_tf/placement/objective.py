"""What is minimised: the makespan, the bottleneck of pipelined requests, or a weighted sum."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from moirai_tf.errors import MoiraiError

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

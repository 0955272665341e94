"""The load of devices and channels under a schedule."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np

from moirai_tf.placement.objective import Objective
from moirai_tf.placement.problem import LINK, NONE, PORT, IntArray, Problem
from moirai_tf.placement.schedule import Schedule

Resource = tuple[str, int, int]
"""A device, port or link: its kind and the devices it belongs to."""


def channels(congestion: str, source: int, target: int) -> tuple[Resource, ...]:
    """What a transfer between two devices occupies."""
    return {
        PORT: (("send", source, 0), ("receive", target, 0)),
        LINK: (("link", source, target),),
        NONE: (),
    }[congestion]


def bottleneck_ns(problem: Problem, schedule: Schedule) -> int:
    """The largest total time that a device computes or a channel carries."""
    busy: Counter[Resource] = Counter()
    for placed in schedule.placed:
        busy["device", placed.device, 0] += placed.finish_ns - placed.start_ns
    for transfer in schedule.transfers:
        for channel in channels(problem.congestion, transfer.source, transfer.target):
            busy[channel] += transfer.finish_ns - transfer.start_ns
    return max(busy.values(), default=0)


def unit_compute_ns(problem: Problem) -> IntArray:
    """Time of all operators of each unit, (units, devices); -1 where the unit cannot be."""
    work = np.zeros((len(problem.units), len(problem.devices)), dtype=np.int64)
    np.add.at(work, list(problem.unit_of), problem.compute_ns)
    return np.where(problem.runnable[[members[0] for members in problem.units]], work, -1)


def objective_ns(problem: Problem, schedule: Schedule, objective: Objective) -> Fraction:
    """The objective of a schedule."""
    if objective.latency_weight == 1:
        return Fraction(schedule.makespan_ns)
    return objective.value_ns(schedule.makespan_ns, bottleneck_ns(problem, schedule))

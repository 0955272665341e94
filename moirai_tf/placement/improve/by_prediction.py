"""Improves a schedule by what a client will measure, which the exact problem does not weigh.

Record-to-record travel (Dueck 1993): runs of operators that follow each other on one device change
to another; what is not much worse than the best so far is kept as a place to go on from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.evaluate.events import order_by_start, simulate
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule

_WORSE = 0.01
"""Part by which a schedule may be worse than the best one, at first."""
_LONGEST = 12
"""Operators of a run."""
_ORDER_KEPT = 0.5
"""Part of the runs after which the rest goes on in its order."""
_PATIENCE = 500
"""Runs that are tried in vain."""


def improved(
    problem: Problem,
    schedule: Schedule,
    predicted_ns: Callable[[Schedule], int],
    time_limit_s: float,
    seed: int = 0,
) -> Schedule:
    """The schedule, or a better one.

    Args:
      problem: a valid problem.
      schedule: a checked schedule of it.
      predicted_ns: what is to be small.
      time_limit_s: how long it may take.
      seed: of the runs that are tried.
    """
    chance, deadline = random.Random(seed), Deadline(time_limit_s)
    best = here = schedule
    best_ns, tried = predicted_ns(schedule), 0
    while tried < _PATIENCE and deadline.remaining_s():
        tried += 1
        left = deadline.remaining_s() / time_limit_s
        there = _moved(problem, here.assignment, chance)
        if tuple(there) == here.assignment or problem.excess_bytes(problem.used_bytes(there)):
            continue
        # As it was ordered until now, or by the longest paths of the new assignment.
        order = order_by_start(problem, here) if chance.random() < _ORDER_KEPT else None
        played = simulate(problem, there, order)
        ns = predicted_ns(played)
        if ns < best_ns:
            best, best_ns, tried = played, ns, 0
        if ns <= best_ns * (1 + _WORSE * left):
            here = played
    return best


def _moved(problem: Problem, assignment: Sequence[int], chance: random.Random) -> list[int]:
    """With a run of operators, and what is colocated with them, on another device."""
    there = list(assignment)
    operator = chance.randrange(len(there))
    device = chance.choice(problem.unit_devices[problem.unit_of[operator]])
    source = assignment[operator]
    for _ in range(chance.randint(1, _LONGEST)):
        unit = problem.unit_of[operator]
        if device not in problem.unit_devices[unit]:
            break
        for member in problem.units[unit]:
            there[member] = device
        following = [
            consumer
            for tensor in problem.outgoing[operator]
            for consumer in problem.tensors[tensor].consumers
            if there[consumer] == source
        ]
        if not following:
            break
        operator = chance.choice(following)
    return there

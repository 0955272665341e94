"""HEFT: heterogeneous earliest finish time."""

from __future__ import annotations

from moirai_tf.placement.bound.linear_program import FloatArray
from moirai_tf.placement.bound.packing import Packing, Reservation
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.evaluate.events import order_by
from moirai_tf.placement.evaluate.insertion import PartialSchedule
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule


def heft(problem: Problem, packing: Packing, deadline: Deadline) -> Schedule:
    """Operators by upward rank, each to the device of its earliest finish, with insertion.

    Source: Topcuoglu, Hariri and Wu 2002. Adapted to memory and colocation: only devices that
    the reservation allows are tried. Ties go to the first device.
    """
    reservation = Reservation(problem, packing)
    partial = PartialSchedule(problem)
    for operator in order_by(problem, upward_ranks(problem)):
        deadline.check()
        trials = {k: partial.trial(operator, k) for k in reservation.devices(operator)}
        device = min(trials, key=lambda k: (trials[k].finish_ns, k))
        reservation.decide(operator, device)
        partial.place(operator, device)
    return partial.finished()


def upward_ranks(problem: Problem) -> list[float]:
    """Length of the longest path from each operator on, with mean times.

    Means are over the devices that can run an operator, and over all pairs of different devices.
    """
    work = mean_work_ns(problem).tolist()
    pairs = len(problem.devices) * (len(problem.devices) - 1)
    means = {id(time): float(time.sum()) / max(1, pairs) for time in problem.time_ns}
    ranks = [0.0] * len(problem.operators)
    for operator in reversed(problem.topological_order):
        after = 0.0
        for tensor in problem.outgoing[operator]:
            mean = means[id(problem.time_ns[tensor])]
            after = max(after, *(mean + ranks[j] for j in problem.tensors[tensor].consumers))
        ranks[operator] = work[operator] + after
    return ranks


def mean_work_ns(problem: Problem) -> FloatArray:
    """Time of each operator, in the mean of the devices that can run it."""
    able = problem.runnable
    mean: FloatArray = (problem.compute_ns * able).sum(axis=1) / able.sum(axis=1)
    return mean

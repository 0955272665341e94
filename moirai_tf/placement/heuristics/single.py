"""Every operator on one device."""

from __future__ import annotations

import numpy as np

from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule
from moirai_tf.placement.simulate import simulate


def single_device_ns(problem: Problem) -> dict[int, int]:
    """Makespan of each device that can run everything within its memory."""
    need = sum(operator.memory_bytes for operator in problem.operators)
    able = np.all(problem.runnable, axis=0).tolist()
    total = problem.compute_ns.sum(axis=0)
    return {
        device: int(total[device])
        for device in range(len(problem.devices))
        if able[device] and problem.capacity_bytes[device] >= need
    }


def single(problem: Problem) -> Schedule | None:
    """The best schedule on one device, ties to the first; None where no device suffices."""
    makespans = single_device_ns(problem)
    if not makespans:
        return None
    best = min(makespans, key=lambda device: (makespans[device], device))
    assignment = [best] * len(problem.operators)
    return simulate(problem, assignment, problem.topological_order)

"""Everything on one device."""

from __future__ import annotations

from dataclasses import dataclass

from moirai_tf.placement.bound.packing import fits
from moirai_tf.placement.evaluate.events import simulate
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import Schedule


@dataclass(frozen=True)
class OneDevice:
    """A device that can do all the work, and the schedule that lets it."""

    device: int
    schedule: Schedule


def single(problem: Problem) -> OneDevice | None:
    """The best device to do all the work, ties to the first; None where no device suffices."""
    options = single_devices(problem)
    return min(options, key=lambda option: option.schedule.makespan_ns, default=None)


def single_devices(problem: Problem) -> list[OneDevice]:
    """Every device that can do all the work alone, with its schedule.

    Units that can run on the device run there. A unit that cannot, say a feed pinned to the
    client, may stay where it takes no time, on the first such device; what is transferred to and
    from it counts, and so does its memory. A unit that cannot and takes time everywhere else
    rules the device out.
    """
    options = []
    for device in range(len(problem.devices)):
        packing = _packing(problem, device)
        if packing is not None and fits(problem, packing):
            assignment = [packing[unit] for unit in problem.unit_of]
            options.append(OneDevice(device, simulate(problem, assignment)))
    return options


def _packing(problem: Problem, device: int) -> list[int] | None:
    """Device of each unit when `device` does all the work, or None where it cannot."""
    packing = []
    for unit, allowed in enumerate(problem.unit_devices):
        idle = (k for k in allowed if not problem.compute_ns[list(problem.units[unit]), k].any())
        chosen = device if device in allowed else next(idle, None)
        if chosen is None:
            return None
        packing.append(chosen)
    return packing

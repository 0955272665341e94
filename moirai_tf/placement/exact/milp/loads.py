"""Loads of devices and channels as rows, and the model that needs nothing else.

The bottleneck depends on the assignment alone, so where only it is minimised there are no times
and no orders: the program is a generalised assignment with a transfer for every crossing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moirai_tf.placement.bound.linear_program import (
    FloatArray,
    LinearModel,
    ModelBuilder,
    largest,
    time_unit_ns,
)
from moirai_tf.placement.bound.packing import Choices, assignment_columns
from moirai_tf.placement.evaluate.channels import channels_of
from moirai_tf.placement.evaluate.events import simulate
from moirai_tf.placement.exact.milp.transfers import Route, Routes
from moirai_tf.placement.objective import unit_compute_ns
from moirai_tf.placement.problem import NONE, PER_EDGE, Problem
from moirai_tf.placement.schedule import Schedule


@dataclass(frozen=True)
class LoadModel:
    """The program of the least bottleneck."""

    problem: Problem
    linear: LinearModel
    choices: Choices


def build_loads(problem: Problem, ceiling_ns: int, *, crossing: bool = True) -> LoadModel:
    """The model of all assignments whose bottleneck is at most `ceiling_ns`.

    Args:
      problem: a valid problem.
      ceiling_ns: a bottleneck that some schedule reaches, or that none needs to exceed.
      crossing: whether channels count; without them the minimum is a lower bound.
    """
    builder = ModelBuilder()
    bottleneck = builder.column(0, ceiling_ns, unit=time_unit_ns(ceiling_ns))
    work = unit_compute_ns(problem)
    choices = assignment_columns(
        problem, builder, lambda unit, device: bool(work[unit, device] <= ceiling_ns)
    )
    routes: list[Route] = []
    if crossing and problem.congestion != NONE:
        ways = Routes(problem, builder, choices)
        routes = [route for tensor in range(len(problem.tensors)) for route in ways.of(tensor)]
    add_load_rows(problem, builder, choices, routes, bottleneck)
    return LoadModel(problem, builder.build(bottleneck), choices)


def size_estimate(problem: Problem) -> int:
    """How many columns `build_loads` makes at most: choices, and ways of what may cross."""
    devices, unit_of = len(problem.devices), problem.unit_of
    pairs: set[tuple[int, int]] = set()
    shared = 0
    for tensor in problem.tensors if problem.congestion != NONE else ():
        source = unit_of[tensor.producer]
        targets = {unit_of[consumer] for consumer in tensor.consumers} - {source}
        pairs.update((source, target) for target in targets)
        shared += len(targets) > 1 and problem.transfers != PER_EDGE
    return 1 + len(problem.units) * devices + (len(pairs) + shared) * devices**2


def add_load_rows(
    problem: Problem,
    builder: ModelBuilder,
    choices: Choices,
    routes: Iterable[Route],
    bottleneck: int,
) -> None:
    """`B >= sum_i compute[i, k] x[i, k]` per device, `B >= sum time[way] y[way]` per channel."""
    loads: dict[int, list[tuple[int, int]]] = {}
    work = unit_compute_ns(problem)
    for unit, choice in enumerate(choices):
        for device, column in choice.items():
            terms = loads.setdefault(device, [])
            terms.append((-int(work[unit, device]), column))
    for route in routes:
        table = problem.time_ns[route.tensor]
        for way, column in route.ways.items():
            for channel in channels_of(problem, *way) if table[way] else ():
                loads.setdefault(channel, []).append((-int(table[way]), column))
    for load in loads.values():
        builder.at_least([(1, bottleneck), *load], 0)


def load_start(model: LoadModel, schedule: Schedule) -> dict[int, int]:
    """The integer columns of a schedule within the model's ceiling."""
    units = model.problem.units
    device = [schedule.placed[members[0]].device for members in units]
    return {
        column: int(k == device[unit])
        for unit, choice in enumerate(model.choices)
        for k, column in choice.items()
    }


def load_decoded(model: LoadModel, values: FloatArray) -> Schedule:
    """The list schedule of the devices in a solver's column values."""
    chosen = [largest(choice, values) for choice in model.choices]
    return simulate(model.problem, [chosen[unit] for unit in model.problem.unit_of])

"""The published mixed integer program in a tight form, free of any solver.

Source: the reference program of "Moirai: Towards Optimal Placement for Distributed Inference on
Heterogeneous Devices" (arXiv 2312.04025). Kept are its decisions: devices, ways of tensors, orders
on devices and ports, times. Tightened are its relaxation and its size:

- every start has a window from heads, tails and the horizon, and every row its own M;
- orders only between items that no path connects and whose windows meet, each pair once;
- ways of tensors are tied to devices as flows, so they need no binaries;
- edges that never transfer and that other paths imply are dropped;
- the load of each device between consecutive cuts is a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from moirai_tf.placement.bound.linear_program import (
    FloatArray,
    LinearModel,
    ModelBuilder,
    largest,
    time_unit_ns,
)
from moirai_tf.placement.bound.packing import Choices, assignment_columns
from moirai_tf.placement.bound.paths import blocks, heads_ns, tails_ns
from moirai_tf.placement.evaluate.events import TransferKey, replay
from moirai_tf.placement.exact.milp.loads import add_load_rows
from moirai_tf.placement.exact.milp.transfers import (
    Carrier,
    Communication,
    Core,
    Item,
    Route,
    add_orders,
)
from moirai_tf.placement.objective import MAKESPAN, WEIGHTED, Objective
from moirai_tf.placement.problem import PER_EDGE, BoolArray, Problem
from moirai_tf.placement.schedule import Schedule, Transfer


@dataclass(frozen=True)
class PlacementModel:
    """The program and the meaning of its columns."""

    problem: Problem
    linear: LinearModel
    choices: Choices
    starts: tuple[int, ...]
    """Start column of each operator."""
    carriers: tuple[Carrier, ...]
    operator_orders: dict[tuple[int, int], int]
    """(i, j) -> column: i finishes before j starts."""
    carrier_orders: dict[tuple[int, int], int]
    """The same for positions in `carriers`."""


def build(problem: Problem, horizon_ns: int, objective: Objective = MAKESPAN) -> PlacementModel:
    """The model of all schedules whose makespan is at most `horizon_ns`.

    Args:
      problem: a valid problem.
      horizon_ns: a makespan that some schedule reaches, or that none needs to exceed.
      objective: what is minimised, the makespan or a weighted sum; a sum is counted in units of
        1 ns over the denominator of its weight.
    """
    core = _core(problem, horizon_ns)
    _window_rows(core)
    _load_rows(core)
    carriers = Communication(core).add()
    operators = [_operator_item(core, operator) for operator in range(len(problem.operators))]
    operator_orders = add_orders(core.builder, operators, _unrelated(core.reach))
    carrier_orders = add_orders(
        core.builder,
        [carrier.item for carrier in carriers],
        _unrelated_carriers(problem, core.reach, carriers),
    )
    cost = _cost(core, objective, [carrier.route for carrier in carriers])
    return PlacementModel(
        problem=problem,
        linear=core.builder.build_with(cost),
        choices=core.choices,
        starts=core.starts,
        carriers=tuple(carriers),
        operator_orders=operator_orders,
        carrier_orders=carrier_orders,
    )


def row_estimate(problem: Problem) -> int:
    """About how many rows `build` would make, from the pairs that no path connects."""
    operators, devices = len(problem.operators), len(problem.devices)
    reach = reachable(problem)
    pairs = (operators * (operators + 1)) // 2 - int(reach.sum())
    edges = [(t.producer, consumer) for t in problem.tensors for consumer in t.consumers]
    outgoing = [0] * operators
    for producer, _ in edges:
        outgoing[producer] += 1
    ordered = reach @ outgoing
    crossing = len(edges) * (len(edges) - 1) // 2 - sum(int(ordered[j]) for _, j in edges)
    return operators + (2 + devices) * pairs + 2 * (1 + devices) * (len(edges) + crossing)


def _core(problem: Problem, horizon_ns: int) -> Core:
    builder = ModelBuilder()
    unit = time_unit_ns(horizon_ns)
    heads, tails = heads_ns(problem), tails_ns(problem)
    possible = heads + tails <= horizon_ns
    makespan = builder.column(0, horizon_ns, unit=unit)
    starts = tuple(
        builder.column(int(low), horizon_ns - int(tail), unit=unit)
        for low, tail in zip(heads.min(axis=1), tails.min(axis=1), strict=True)
    )
    choices = assignment_columns(
        problem,
        builder,
        lambda unit, device: bool(possible[list(problem.units[unit]), device].all()),
    )
    return Core(
        problem, builder, horizon_ns, heads, tails, reachable(problem), makespan, starts, choices
    )


def _window_rows(core: Core) -> None:
    """`S_i >= sum_k head[i, k] x[i, k]` and `T >= S_i + sum_k tail[i, k] x[i, k]`."""
    for operator, start in enumerate(core.starts):
        choice = core.choice(operator)
        heads = [(-int(core.heads[operator, k]), column) for k, column in choice.items()]
        tails = [(-int(core.tails[operator, k]), column) for k, column in choice.items()]
        if len({ns for ns, _ in heads}) > 1:
            core.builder.at_least([(1, start), *heads], 0)
        core.builder.at_least([(1, core.makespan), (-1, start), *tails], 0)


def _load_rows(core: Core) -> None:
    """`S_b >= S_a + duration_a + load_k` for consecutive cuts a, b and each device k."""
    for first, inside, end in blocks(core.problem):
        if len(inside) < 2:
            continue
        after = [(1, core.makespan if end is None else core.starts[end])]
        if first is not None:
            after.append((-1, core.starts[first]))
            after += [(-ns, column) for ns, column in core.duration(first)]
        for device in range(len(core.problem.devices)):
            load = [
                (-int(core.problem.compute_ns[i, device]), core.choice(i)[device])
                for i in inside
                if device in core.choice(i)
            ]
            core.builder.at_least([*after, *load], 0)


def _cost(core: Core, objective: Objective, routes: list[Route]) -> dict[int, int]:
    """The makespan T; or `p T + (q - p) B` for a weight p / q, with B from loads and `T >= B`."""
    if objective.name != WEIGHTED:
        return {core.makespan: 1}
    builder, weight = core.builder, objective.latency_weight
    bottleneck = builder.column(0, core.horizon_ns, unit=builder.unit[core.makespan])
    add_load_rows(core.problem, builder, core.choices, routes, bottleneck)
    builder.at_least([(1, core.makespan), (-1, bottleneck)], 0)
    return {
        core.makespan: weight.numerator,
        bottleneck: weight.denominator - weight.numerator,
    }


def _operator_item(core: Core, operator: int) -> Item:
    choice, row = core.choice(operator), core.problem.compute_ns[operator]
    devices = list(choice)
    finish = core.horizon_ns - core.tails[operator] + row
    return Item(
        start=core.starts[operator],
        duration=core.duration(operator),
        uses={k: (column,) for k, column in choice.items() if row[k]},
        earliest_start=int(core.heads[operator].min()),
        earliest_finish=core.earliest_finish(operator),
        latest_start=core.latest_start(operator),
        latest_finish=int(finish[devices].max()),
    )


def _unrelated(reach: BoolArray) -> Iterator[tuple[int, int]]:
    """Pairs of operators that no path connects."""
    for first, second in combinations(range(len(reach)), 2):
        if not reach[first, second] and not reach[second, first]:
            yield first, second


def _unrelated_carriers(
    problem: Problem, reach: BoolArray, carriers: list[Carrier]
) -> Iterator[tuple[int, int]]:
    """Pairs of carriers of which neither ends before the other's producer starts."""

    def before(first: Carrier, second: Carrier) -> bool:
        producer = problem.tensors[second.route.tensor].producer
        return all(bool(reach[consumer, producer]) for consumer in first.route.consumers)

    for (i, first), (j, second) in combinations(enumerate(carriers), 2):
        if not before(first, second) and not before(second, first):
            yield i, j


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


def start_values(model: PlacementModel, schedule: Schedule) -> dict[int, int]:
    """The integer columns of a schedule within the model's horizon.

    An order is 1 only where both items occupy a common resource; the other rows then hold for
    any start, and the solver completes the rest.
    """
    problem, values = model.problem, {}
    for unit, choice in enumerate(model.choices):
        device = schedule.placed[problem.units[unit][0]].device
        values.update({column: int(k == device) for k, column in choice.items()})
    for (i, j), column in model.operator_orders.items():
        first, second = schedule.placed[i], schedule.placed[j]
        together = first.device == second.device
        values[column] = int(together and first.finish_ns <= second.start_ns)
    moved = {_key(problem.transfers, transfer): transfer for transfer in schedule.transfers}
    carried = [_carried(model, schedule, carrier.route, moved) for carrier in model.carriers]
    for (i, j), column in model.carrier_orders.items():
        before, after = carried[i], carried[j]
        values[column] = int(
            before is not None and after is not None and before.finish_ns <= after.start_ns
        )
    return values


def decoded(model: PlacementModel, values: FloatArray) -> Schedule:
    """The exact schedule of the discrete decisions in a solver's column values.

    Devices are read off; starts are used only for the orders they show, and the times are made
    anew in whole numbers.
    """
    problem = model.problem
    chosen = [largest(choice, values) for choice in model.choices]
    assignment = [chosen[unit] for unit in problem.unit_of]
    starts = [float(values[column]) for column in model.starts]
    transfers = {
        key: float(values[carrier.item.start])
        for carrier in model.carriers
        for key in _keys(problem.transfers, carrier.route, assignment)
    }
    return replay(problem, assignment, starts, transfers)


def _key(mode: str, transfer: Transfer) -> TransferKey:
    last = transfer.consumer if mode == PER_EDGE else transfer.target
    return transfer.tensor, -1 if last is None else last


def _keys(mode: str, route: Route, assignment: list[int]) -> Iterator[TransferKey]:
    """The transfers that a route may stand for under an assignment."""
    if route.target is not None:
        yield route.tensor, route.target
    elif mode == PER_EDGE:
        yield route.tensor, route.consumers[0]
    else:
        yield route.tensor, assignment[route.consumers[0]]


def _carried(
    model: PlacementModel,
    schedule: Schedule,
    route: Route,
    moved: dict[TransferKey, Transfer],
) -> Transfer | None:
    """The schedule's transfer that a route stands for, if there is one."""
    keys = _keys(model.problem.transfers, route, list(schedule.assignment))
    return next((moved[key] for key in keys if key in moved), None)

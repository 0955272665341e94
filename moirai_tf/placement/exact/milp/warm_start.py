"""Schedules into a model's integer columns and back."""

from __future__ import annotations

from collections.abc import Iterator

from moirai_tf.placement.bound.linear_program import FloatArray, largest
from moirai_tf.placement.evaluate.events import TransferKey, replay
from moirai_tf.placement.exact.milp.formulation import PlacementModel
from moirai_tf.placement.exact.milp.routes import Route
from moirai_tf.placement.problem import PER_EDGE
from moirai_tf.placement.schedule import Schedule, Transfer


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

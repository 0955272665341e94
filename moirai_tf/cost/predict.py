"""What a client will measure: the schedule as the runtime plays it, and the step around it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moirai_tf.cost.coarse_problem import tensor_bytes
from moirai_tf.cost.table import CostTable, Handling
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.placement import Problem, Schedule, Tensor, Transfer, ready_queue
from moirai_tf.placement.evaluate.execution import execution_ns
from moirai_tf.placement.schedule import planned_orders

_NOTHING = Handling(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One inference, from the call of the Session to its return, in parts."""

    planned_ns: int
    """Operators and transfers in the planned order."""
    queued_ns: int
    """The same in the order of TensorFlow's own ready queue."""
    step_ns: int
    """The rest: Session, feeds, fetches, and every worker that takes part."""

    def latency_ns(self, *, order_kept: bool) -> int:
        """The whole, for a model that does or does not carry the planned order."""
        return self.step_ns + (self.planned_ns if order_kept else self.queued_ns)


def predict(
    problem: Problem, schedule: Schedule, coarse: CoarseGraph, table: CostTable, client: str
) -> Prediction:
    """Predicts the latency of a schedule.

    Args:
      problem: the problem that the schedule is for; its devices bear the cluster's names.
      schedule: a checked schedule.
      coarse: the fused operators that the problem was built from.
      table: the costs, with what handling tensors and a step cost where that was measured.
      client: the device of feeds and fetches.
    """
    step_ns = _step_ns(problem, schedule, table, client)
    planned_ns, queued_ns = (
        _played_ns(problem, schedule, coarse, table, order_kept=kept) for kept in (True, False)
    )
    return Prediction(planned_ns, queued_ns, step_ns)


def kept_latency_ns(
    problem: Problem, schedule: Schedule, coarse: CoarseGraph, table: CostTable, client: str
) -> int:
    """The latency that `predict` gives a model that carries the order of a schedule."""
    planned_ns = _played_ns(problem, schedule, coarse, table, order_kept=True)
    return _step_ns(problem, schedule, table, client) + planned_ns


def _step_ns(problem: Problem, schedule: Schedule, table: CostTable, client: str) -> int:
    used = {problem.devices[device].name for device in schedule.assignment}
    return table.step.total_ns(client, used)


def _played_ns(
    problem: Problem,
    schedule: Schedule,
    coarse: CoarseGraph,
    table: CostTable,
    *,
    order_kept: bool,
) -> int:
    """What operators and transfers take as the runtime plays them."""
    if not table.moving_interferes:
        played = schedule if order_kept else ready_queue(problem, schedule.assignment)
        return played.makespan_ns

    def handling(transfer: Transfer) -> tuple[int, int]:
        nbytes = tensor_bytes(coarse.tensors[transfer.tensor])
        return _handling_ns(problem, table, nbytes, transfer.source, transfer.target)

    orders = planned_orders(schedule) if order_kept else None
    gpus = _gpus(problem, table)
    alone_ns = execution_ns(problem, schedule.assignment, handling, orders, gpus)
    if not table.slowdown:
        return alone_ns
    slower = _slowed(problem, schedule, table, alone_ns)
    return execution_ns(slower, schedule.assignment, handling, orders, gpus)


def _slowed(problem: Problem, schedule: Schedule, table: CostTable, makespan_ns: int) -> Problem:
    """The problem with times that devices take while others compute, as far as they do."""
    busy: dict[int, int] = {}
    for placed in schedule.placed:
        busy[placed.device] = busy.get(placed.device, 0) + placed.finish_ns - placed.start_ns
    used = sum(busy_ns > 0 for busy_ns in busy.values())
    if used < 2 or not makespan_ns:
        return problem
    overlap = min(1.0, max(0.0, (sum(busy.values()) / makespan_ns - 1) / (used - 1)))
    factors = [1 + (table.slowdown.get(d.name, 1.0) - 1) * overlap for d in problem.devices]
    return replace(
        problem,
        operators=tuple(
            replace(
                operator,
                compute_ns=tuple(
                    None if ns is None else round(ns * factor)
                    for ns, factor in zip(operator.compute_ns, factors, strict=True)
                ),
            )
            for operator in problem.operators
        ),
    )


def with_handling(problem: Problem, coarse: CoarseGraph, table: CostTable) -> Problem:
    """The problem with transfers as dear as they are when both of their ends are busy.

    The exact problem knows that a transfer takes time, not that it keeps its ends from computing;
    a schedule of this one moves less, and may be the faster one in fact. A GPU that receives has
    mostly done all that it was given (see `placement.evaluate.execution`), and waits.
    """
    count = range(len(problem.devices))
    gpus = _gpus(problem, table)

    def dearer_ns(index: int, tensor: Tensor, source: int, target: int) -> int:
        moved_ns = tensor.time_ns[source][target]
        if source == target:
            return 0
        nbytes = tensor_bytes(coarse.tensors[index])
        handled_ns = sum(_handling_ns(problem, table, nbytes, source, target))
        return moved_ns * (1 + (target in gpus)) + handled_ns

    tensors = tuple(
        replace(
            tensor, time_ns=tuple(tuple(dearer_ns(i, tensor, a, b) for b in count) for a in count)
        )
        for i, tensor in enumerate(problem.tensors)
    )
    return replace(problem, tensors=tensors)


def _gpus(problem: Problem, table: CostTable) -> frozenset[int]:
    names = table.gpus
    return frozenset(k for k, device in enumerate(problem.devices) if device.name in names)


def _handling_ns(
    problem: Problem, table: CostTable, nbytes: int, source: int, target: int
) -> tuple[int, int]:
    sender, receiver = (
        table.handling.get(problem.devices[k].name, _NOTHING) for k in (source, target)
    )
    return sender.sending_ns(nbytes), receiver.receiving_ns(nbytes)

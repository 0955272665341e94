"""Every way in which the data of a problem can be wrong, each as a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from moirai_tf.errors import MoiraiError
from moirai_tf.placement.problem import (
    CONGESTION_MODES,
    TRANSFER_MODES,
    Problem,
)

_EXACT_IN_A_FLOAT = 2**53


def violations(problem: Problem) -> list[str]:
    """All faults of a problem; empty when it can be handed to a solver.

    A fault starts with the field it is in, as in `ops[3].compute: ...`. Memory that is merely
    too small is not a fault of the data: solvers answer it with `infeasible`.
    """
    faults = [
        *_modes(problem),
        *_names(problem),
        *_operators(problem),
        *_tensors(problem),
        *_totals(problem),
    ]
    if not faults:
        faults = [*_colocation(problem), *_cycles(problem)]
    return faults


def require_valid(problem: Problem) -> None:
    """Refuses a problem with faults.

    Raises:
      MoiraiError: listing the violations, at most the first twenty.
    """
    faults = violations(problem)
    if not faults:
        return
    listed = "\n  ".join(faults[:20])
    raise MoiraiError(
        f"problem {problem.name!r} has {len(faults)} fault(s):\n  {listed}",
        why="a schedule is checked exactly against this data, so the data must make sense",
        fix="correct the named fields and try again",
    )


def _modes(problem: Problem) -> Iterator[str]:
    if problem.transfers not in TRANSFER_MODES:
        yield f"transfers: {problem.transfers!r} is none of {', '.join(TRANSFER_MODES)}"
    if problem.congestion not in CONGESTION_MODES:
        yield f"congestion: {problem.congestion!r} is none of {', '.join(CONGESTION_MODES)}"
    if not problem.devices:
        yield "devices: there are none"


def _names(problem: Problem) -> Iterator[str]:
    for field, named in (("devices", problem.devices), ("ops", problem.operators)):
        counts = Counter(value.name for value in named)
        for name, count in counts.items():
            if count > 1:
                yield f"{field}: the name {name!r} is used {count} times"
            if not name:
                yield f"{field}: a name is empty"
    for index, device in enumerate(problem.devices):
        if device.memory_bytes is not None and device.memory_bytes < 0:
            yield f"devices[{index}].memory: {device.memory_bytes} is negative"


def _operators(problem: Problem) -> Iterator[str]:
    for index, operator in enumerate(problem.operators):
        field = f"ops[{index}]"
        times = [time for time in operator.compute_ns if time is not None]
        if len(operator.compute_ns) != len(problem.devices):
            yield (
                f"{field}.compute: operator {operator.name!r} has {len(operator.compute_ns)} "
                f"times for {len(problem.devices)} devices"
            )
        elif not times:
            yield f"{field}.compute: no device can run operator {operator.name!r}"
        if any(time < 0 for time in times):
            yield f"{field}.compute: operator {operator.name!r} has a negative time"
        if operator.memory_bytes < 0:
            yield f"{field}.memory: {operator.memory_bytes} is negative"


def _tensors(problem: Problem) -> Iterator[str]:
    known = range(len(problem.operators))
    checked: dict[int, list[str]] = {}
    for index, tensor in enumerate(problem.tensors):
        field = f"tensors[{index}]"
        if tensor.producer not in known:
            yield f"{field}.producer: there is no operator {tensor.producer}"
        if not tensor.consumers:
            yield f"{field}.consumers: there are none"
        if len(set(tensor.consumers)) != len(tensor.consumers):
            yield f"{field}.consumers: an operator is named twice"
        for consumer in tensor.consumers:
            if consumer not in known:
                yield f"{field}.consumers: there is no operator {consumer}"
        if id(tensor.time_ns) not in checked:
            checked[id(tensor.time_ns)] = list(_matrix(tensor.time_ns, len(problem.devices)))
        yield from (f"{field}.time: {fault}" for fault in checked[id(tensor.time_ns)])


def _matrix(time_ns: tuple[tuple[int, ...], ...], devices: int) -> Iterator[str]:
    if len(time_ns) != devices or any(len(row) != devices for row in time_ns):
        yield f"not a {devices} x {devices} matrix"
    if any(time < 0 for row in time_ns for time in row):
        yield "a time is negative"
    if any(row[k] for k, row in enumerate(time_ns) if k < len(row)):
        yield "moving to the same device must take 0"


def _totals(problem: Problem) -> Iterator[str]:
    """Solvers in floating point must hold every sum exactly."""
    work = sum(
        max((time for time in operator.compute_ns if time is not None), default=0)
        for operator in problem.operators
    )
    matrices = {id(tensor.time_ns): tensor.time_ns for tensor in problem.tensors}
    slowest = {
        key: max((time for row in matrix for time in row), default=0)
        for key, matrix in matrices.items()
    }
    moves = sum(slowest[id(tensor.time_ns)] * len(tensor.consumers) for tensor in problem.tensors)
    if work + moves >= _EXACT_IN_A_FLOAT:
        yield f"ops, tensors: the times add up to {work + moves} ns, 2**53 or more"
    memory = sum(operator.memory_bytes for operator in problem.operators)
    if memory >= _EXACT_IN_A_FLOAT:
        yield f"ops: the memory adds up to {memory} bytes, 2**53 or more"


def _colocation(problem: Problem) -> Iterator[str]:
    known = range(len(problem.operators))
    outside = False
    for index, group in enumerate(problem.colocation):
        strangers = [member for member in group if member not in known]
        if strangers:
            outside = True
            yield f"colocate[{index}]: there is no operator {strangers[0]}"
        if not group:
            yield f"colocate[{index}]: the group is empty"
    if outside or any(not group for group in problem.colocation):
        return
    for members, devices in zip(problem.units, problem.unit_devices, strict=True):
        if not devices:
            yield (
                f"colocate: no device can run all of {problem.operator_names(members)}, "
                "which must share one"
            )


def _cycles(problem: Problem) -> Iterator[str]:
    if len(problem.topological_order) == len(problem.operators):
        return
    import networkx as nx  # Takes as long as a small problem does.

    cycle = [source for source, _ in nx.find_cycle(problem.to_networkx())]
    yield f"tensors: a cycle: {' -> '.join([*cycle, cycle[0]])}"

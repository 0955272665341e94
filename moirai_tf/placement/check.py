"""The exact checker: every rule of the placement problem that a schedule breaks, as a sentence.

It knows the values only and shares no code with solvers, simulator or bounds. It sorts, so
100,000 operators take about a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction

from moirai_tf.placement.problem import LINK, PER_EDGE, PORT, Problem
from moirai_tf.placement.schedule import FEASIBLE, OPTIMAL, Schedule, Transfer

_Span = tuple[int, int, str]
"""Start, finish and what it is."""


def check(problem: Problem, schedule: Schedule) -> list[str]:
    """All faults of a schedule and of its claims; empty when it is feasible and they are true."""
    if len(schedule.placed) != len(problem.operators):
        return [
            f"assignment: {len(schedule.placed)} operators are placed, the problem has "
            f"{len(problem.operators)}"
        ]
    nowhere = list(_nowhere(problem, schedule))
    if nowhere:
        return nowhere
    return [
        *_assignment(problem, schedule),
        *_colocation(problem, schedule),
        *_overlap(problem, schedule),
        *_transfers(problem, schedule),
        *_communication(problem, schedule),
        *_congestion(problem, schedule),
        *_memory(problem, schedule),
        *_claims(problem, schedule),
    ]


def _nowhere(problem: Problem, schedule: Schedule) -> Iterator[str]:
    devices, tensors = range(len(problem.devices)), range(len(problem.tensors))
    operators = range(len(problem.operators))
    for operator, placed in zip(problem.operators, schedule.placed, strict=True):
        if placed.device not in devices:
            yield f"assignment: {operator.name} is on device {placed.device}, which does not exist"
    for number, transfer in enumerate(schedule.transfers):
        if transfer.tensor not in tensors:
            yield f"communication: transfer {number} moves an unknown tensor {transfer.tensor}"
        if transfer.source not in devices or transfer.target not in devices:
            yield f"communication: transfer {number} uses a device that does not exist"
        if transfer.consumer is not None and transfer.consumer not in operators:
            yield f"communication: transfer {number} is for an unknown operator"


def _assignment(problem: Problem, schedule: Schedule) -> Iterator[str]:
    for operator, placed in zip(problem.operators, schedule.placed, strict=True):
        device = problem.devices[placed.device].name
        duration = operator.compute_ns[placed.device]
        if placed.start_ns < 0:
            yield f"duration: {operator.name} starts at {placed.start_ns}, before 0"
        if duration is None:
            yield f"assignment: {operator.name} is on {device}, which cannot run it"
        elif placed.finish_ns - placed.start_ns != duration:
            yield (
                f"duration: {operator.name} takes {placed.finish_ns - placed.start_ns} on "
                f"{device}, it should take {duration}"
            )


def _colocation(problem: Problem, schedule: Schedule) -> Iterator[str]:
    for group in problem.colocation:
        for member in group[1:]:
            if schedule.placed[member].device != schedule.placed[group[0]].device:
                first, other = (problem.operators[i].name for i in (group[0], member))
                yield f"colocation: {first} and {other} must share a device and do not"


def _overlap(problem: Problem, schedule: Schedule) -> Iterator[str]:
    busy: list[list[_Span]] = [[] for _ in problem.devices]
    for operator, placed in zip(problem.operators, schedule.placed, strict=True):
        busy[placed.device].append((placed.start_ns, placed.finish_ns, operator.name))
    for device, spans in zip(problem.devices, busy, strict=True):
        for first, second in _overlapping(spans):
            yield f"overlap: {first} and {second} run at the same time on {device.name}"


def _overlapping(spans: Iterable[_Span]) -> Iterator[tuple[str, str]]:
    """Pairs that share time; a span of no length shares none."""
    latest_finish, latest = 0, ""
    for start, finish, what in sorted(span for span in spans if span[0] < span[1]):
        if latest and start < latest_finish:
            yield latest, what
        if not latest or finish > latest_finish:
            latest_finish, latest = finish, what


def _name(problem: Problem, transfer: Transfer) -> str:
    producer = problem.operators[problem.tensors[transfer.tensor].producer].name
    source, target = (problem.devices[k].name for k in (transfer.source, transfer.target))
    reader = ""
    if transfer.consumer is not None:
        reader = f" for {problem.operators[transfer.consumer].name}"
    return f"tensor {transfer.tensor} of {producer} from {source} to {target}{reader}"


def _edge(problem: Problem, producer: int, consumer: int) -> str:
    return f"{problem.operators[producer].name} -> {problem.operators[consumer].name}"


def _transfers(problem: Problem, schedule: Schedule) -> Iterator[str]:
    """Each transfer by itself: from the right place, at the right time, for the right length."""
    seen = set()
    for transfer in schedule.transfers:
        name = _name(problem, transfer)
        tensor = problem.tensors[transfer.tensor]
        producer = schedule.placed[tensor.producer]
        needed = tensor.time_ns[transfer.source][transfer.target]
        if transfer.source != producer.device:
            yield f"communication: {name} does not start where its producer is"
        if transfer.start_ns < producer.finish_ns:
            yield f"communication: {name} starts before its producer finishes"
        if transfer.finish_ns - transfer.start_ns != needed:
            taken = transfer.finish_ns - transfer.start_ns
            yield f"communication: {name} takes {taken}, it should take {needed}"
        key = (transfer.tensor, transfer.target, transfer.consumer)
        if key in seen:
            yield f"communication: {name} is transferred twice"
        seen.add(key)


def _communication(problem: Problem, schedule: Schedule) -> Iterator[str]:
    """Every consumer against the arrival of its tensors, and no transfer without a consumer."""
    arrivals = {(t.tensor, t.target, t.consumer): t.finish_ns for t in schedule.transfers}
    used = set()
    for index, tensor in enumerate(problem.tensors):
        producer = schedule.placed[tensor.producer]
        for consumer in tensor.consumers:
            placed = schedule.placed[consumer]
            pair = _edge(problem, tensor.producer, consumer)
            arrival: int | None = producer.finish_ns
            if placed.device != producer.device:
                reader = consumer if problem.transfers == PER_EDGE else None
                used.add((index, placed.device, reader))
                arrival = arrivals.get((index, placed.device, reader))
            if arrival is None:
                where = problem.devices[placed.device].name
                yield f"communication: {pair} has no transfer of tensor {index} to {where}"
            elif placed.start_ns < arrival:
                yield (
                    f"communication: {pair}: the consumer starts at {placed.start_ns}, tensor "
                    f"{index} is there at {arrival}"
                )
    for transfer in schedule.transfers:
        if (transfer.tensor, transfer.target, transfer.consumer) not in used:
            yield f"communication: {_name(problem, transfer)} serves no consumer"


def _congestion(problem: Problem, schedule: Schedule) -> Iterator[str]:
    channels: dict[str, list[_Span]] = {}
    for transfer in schedule.transfers:
        span = (transfer.start_ns, transfer.finish_ns, _name(problem, transfer))
        for channel in _channels(problem, transfer):
            channels.setdefault(channel, []).append(span)
    for channel, spans in channels.items():
        for first, second in _overlapping(spans):
            yield f"congestion: {channel} two tensors at the same time: {first}; {second}"


def _channels(problem: Problem, transfer: Transfer) -> tuple[str, ...]:
    """What carries one tensor at a time, as the beginning of a sentence."""
    source, target = (problem.devices[k].name for k in (transfer.source, transfer.target))
    if problem.congestion == PORT:
        return f"{source} sends", f"{target} receives"
    return (f"the link {source} -> {target} carries",) if problem.congestion == LINK else ()


def _memory(problem: Problem, schedule: Schedule) -> Iterator[str]:
    used = [0] * len(problem.devices)
    for operator, placed in zip(problem.operators, schedule.placed, strict=True):
        used[placed.device] += operator.memory_bytes
    for index, device in enumerate(problem.devices):
        if device.memory_bytes is None or used[index] <= device.memory_bytes:
            continue
        here = [i for i, placed in enumerate(schedule.placed) if placed.device == index]
        here.sort(key=lambda i: -problem.operators[i].memory_bytes)
        yield (
            f"memory: {device.name} holds {used[index]} bytes of {device.memory_bytes}; the "
            f"largest are {problem.operator_names(here)}"
        )


def _claims(problem: Problem, schedule: Schedule) -> Iterator[str]:
    latest, bound = max((p.finish_ns for p in schedule.placed), default=0), schedule.lower_bound_ns
    if schedule.makespan_ns != latest:
        yield f"makespan: claimed {schedule.makespan_ns}, the latest finish is {latest}"
    if bound > latest:
        yield f"bound: {bound} is above the makespan {latest}"
    claim = schedule.claim
    if claim is None:
        yield from _status(schedule, "makespan", Fraction(latest), Fraction(bound))
        return
    largest, weight = _largest_load(problem, schedule), claim.objective.latency_weight
    if claim.bottleneck_ns != largest:
        yield f"bottleneck: claimed {claim.bottleneck_ns}, the largest load is {largest}"
    value = weight * latest + (1 - weight) * largest
    if claim.lower_bound_ns > value:
        yield f"bound: {claim.lower_bound_ns} is above the objective {value}"
    yield from _status(schedule, "objective", value, claim.lower_bound_ns)


def _largest_load(problem: Problem, schedule: Schedule) -> int:
    """The longest total time of a device, and of a port or link where there are any."""
    loads: Counter[int | str] = Counter()
    for placed in schedule.placed:
        loads[placed.device] += placed.finish_ns - placed.start_ns
    for transfer in schedule.transfers:
        for channel in _channels(problem, transfer):
            loads[channel] += transfer.finish_ns - transfer.start_ns
    return max(loads.values(), default=0)


def _status(schedule: Schedule, noun: str, value: Fraction, bound: Fraction) -> Iterator[str]:
    if schedule.status not in (OPTIMAL, FEASIBLE):
        yield f"status: {schedule.status!r} is neither optimal nor feasible"
    if not 0 <= schedule.allowed_gap < 1:
        yield f"status: the allowed gap {schedule.allowed_gap!r} is not in [0, 1)"
    elif schedule.status == OPTIMAL and value - bound > Fraction(schedule.allowed_gap) * value:
        yield (
            f"status: optimal is claimed, but {noun} {value} and bound {bound} are further apart "
            f"than the allowed gap {schedule.allowed_gap:g}"
        )

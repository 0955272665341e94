"""How much memory a schedule really needs: weights, tensors while they are alive, scratch space.

The placement problem keeps every output for the whole step, which is safe and simple. Here a tensor
takes memory on its producer's device from the producer's start until the last local reader and the
last transfer of it are done, and on another device from the start of its transfer until its last
reader there is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moirai_tf.cost.fused import is_weight
from moirai_tf.cost.table import CostTable
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.placement import Problem, Schedule

_Change = tuple[int, int, int, int]
"""(ns, 0 for a tensor that goes or 1 for a new one, device, bytes more)."""


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """One device's memory in one step, in bytes."""

    weight_bytes: int
    tensor_bytes: int
    """The most that tensors take at one time."""
    scratch_bytes: int
    """The most that a kernel took for itself while it was measured; 0 if it was not."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.tensor_bytes + self.scratch_bytes


def peak_memory(
    coarse: CoarseGraph, problem: Problem, schedule: Schedule, table: CostTable
) -> tuple[PeakMemory, ...]:
    """Peak memory of every device of a problem.

    Args:
      coarse: the fused operators that the problem was built from.
      problem: its operators and tensors are those of `coarse`, in the same order.
      schedule: a checked schedule of the problem.
      table: the measured costs.
    """
    count = len(problem.devices)
    weights = weight_bytes(coarse, schedule, count)
    used = tensor_bytes(coarse, schedule, count)
    return tuple(
        PeakMemory(
            weights[device],
            max(nbytes for _, nbytes in used[device]),
            _scratch(table, problem.devices[device].name),
        )
        for device in range(count)
    )


def weight_bytes(coarse: CoarseGraph, schedule: Schedule, devices: int) -> list[int]:
    """Bytes of weights on each device."""
    weights = [0] * devices
    for fused, placed in zip(coarse.operators, schedule.placed, strict=True):
        weights[placed.device] += sum(coarse.fine.operators[m].weight_bytes for m in fused.members)
    return weights


def _scratch(table: CostTable, device: str) -> int:
    column = table.columns.get(device)
    found = None if column is None else table.devices[column].measurement
    return 0 if found is None else found.scratch_bytes


def tensor_bytes(
    coarse: CoarseGraph, schedule: Schedule, devices: int
) -> list[list[tuple[int, int]]]:
    """For each device (ns, bytes that tensors take from then on), from nothing at 0 on."""
    used = [[(0, 0)] for _ in range(devices)]
    for time_ns, _, device, nbytes in sorted(_changes(coarse, schedule)):
        used[device].append((time_ns, used[device][-1][1] + nbytes))
    return used


def _changes(coarse: CoarseGraph, schedule: Schedule) -> Iterator[_Change]:
    """When tensors take memory and give it back, in no particular order."""
    arrivals: dict[tuple[int, int], int] = {}
    departures: dict[int, int] = {}
    for transfer in schedule.transfers:
        key = transfer.tensor, transfer.target
        arrivals[key] = min(transfer.start_ns, arrivals.get(key, transfer.start_ns))
        departures[transfer.tensor] = max(
            transfer.finish_ns, departures.get(transfer.tensor, transfer.finish_ns)
        )
    for index, tensor in enumerate(coarse.tensors):
        if tensor.source.port < 0:
            continue
        producer = schedule.placed[tensor.producer]
        last = _last_readers(schedule, tensor.consumers)
        end_ns = max(
            producer.finish_ns, departures.get(index, 0), last.pop(producer.device, 0)
        )  # fmt: skip
        if not is_weight(coarse.fine, tensor.source):
            yield from _alive(producer.device, tensor.nbytes, producer.start_ns, end_ns)
        for device, until_ns in last.items():
            yield from _alive(device, tensor.nbytes, arrivals[index, device], until_ns)


def _last_readers(schedule: Schedule, consumers: Sequence[int]) -> dict[int, int]:
    """Device -> when its last reader is done."""
    last: dict[int, int] = {}
    for consumer in consumers:
        placed = schedule.placed[consumer]
        last[placed.device] = max(placed.finish_ns, last.get(placed.device, 0))
    return last


def _alive(device: int, nbytes: int, start_ns: int, end_ns: int) -> Iterator[_Change]:
    yield start_ns, 1, device, nbytes
    yield end_ns, 0, device, -nbytes

"""Memory: why a problem cannot fit, a packing that does, and reservations heuristics follow."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence

from moirai_tf.placement.bound.linear_program import ModelBuilder, largest
from moirai_tf.placement.exact.milp.backends import NO_SOLUTION, Limits, solve_with_highs
from moirai_tf.placement.problem import Problem

Packing = tuple[int, ...]
"""Device of each unit, within every device's memory."""
Choices = tuple[dict[int, int], ...]
"""Unit -> device -> column: 1 where the unit is on the device."""

_CANDIDATES = 64
"""Units looked at when room must be made; every placement may pay for it."""


def shortage(problem: Problem) -> str | None:
    """Why the operators cannot fit, in bytes and names, if counting alone proves it.

    Units that can only be on some set of devices must fit there together (Hall's condition). The
    sets looked at are each unit's own, and all devices.
    """
    groups: dict[tuple[int, ...], None] = dict.fromkeys(problem.unit_devices)
    groups[tuple(range(len(problem.devices)))] = None
    for devices in sorted(groups, key=len):
        confined = [u for u, own in enumerate(problem.unit_devices) if set(own) <= set(devices)]
        room = sum(problem.capacity_bytes[device] for device in devices)
        need = sum(problem.unit_memory_bytes[unit] for unit in confined)
        largest = max(problem.capacity_bytes[device] for device in devices)
        for unit in confined:
            if problem.unit_memory_bytes[unit] > largest:
                return (
                    f"{problem.operator_names(problem.units[unit])} must share a device and need "
                    f"{problem.unit_memory_bytes[unit]} bytes; of {problem.device_names(devices)} "
                    f"none holds more than {largest}"
                )
        if need > room:
            confined.sort(key=lambda unit: -problem.unit_memory_bytes[unit])
            members = [operator for unit in confined for operator in problem.units[unit]]
            return (
                f"{len(members)} operators that can only be on {problem.device_names(devices)} "
                f"need {need} bytes, and these hold {room}; the largest are "
                f"{problem.operator_names(members)}"
            )
    return None


class InfeasibleError(Exception):
    """No schedule exists; the text says why, in bytes and operator names."""


def pack(problem: Problem, limits: Limits) -> Packing | None:
    """A packing of the units: best fit, largest first, then an exact search by HiGHS.

    Returns:
      The packing; None when none was found in time, nor proved impossible.

    Raises:
      InfeasibleError: when no packing exists.
    """
    reason = shortage(problem)
    if reason:
        raise InfeasibleError(reason)
    packing = _best_fit(problem)
    return _search(problem, limits) if packing is None else packing


def _best_fit(problem: Problem) -> Packing | None:
    free = list(problem.capacity_bytes)
    packing = [0] * len(problem.units)
    need = problem.unit_memory_bytes
    for unit in sorted(range(len(need)), key=lambda u: (-need[u], len(problem.unit_devices[u]), u)):
        fitting = [k for k in problem.unit_devices[unit] if free[k] >= need[unit]]
        if not fitting:
            return None
        packing[unit] = min(fitting, key=lambda device: (free[device], device))
        free[packing[unit]] -= need[unit]
    return tuple(packing)


def _search(problem: Problem, limits: Limits) -> Packing | None:
    """The packing as an integer program."""
    builder = ModelBuilder()
    objective = builder.column(0, 0)
    chosen = assignment_columns(problem, builder)
    outcome = solve_with_highs(builder.build(objective), {}, limits)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.state == NO_SOLUTION:
        devices = problem.device_names(range(len(problem.devices)))
        raise InfeasibleError(
            f"{problem.operator_names(range(len(problem.operators)))} need "
            f"{sum(problem.unit_memory_bytes)} bytes, of which {devices} hold "
            f"{sum(problem.capacity_bytes)}, but an exact search found no way to divide them"
        )
    packings = (
        tuple(largest(columns, values) for columns in chosen)
        for _, values in reversed(outcome.incumbents)
    )
    return next((packing for packing in packings if fits(problem, packing)), None)


def assignment_columns(
    problem: Problem,
    builder: ModelBuilder,
    possible: Callable[[int, int], bool] = lambda _unit, _device: True,
    *,
    integer: bool = True,
) -> Choices:
    """Columns x[u, k] with `sum_k x[u, k] = 1` and `sum_u memory[u] x[u, k] <= capacity[k]`.

    Args:
      problem: a valid problem.
      builder: of the model.
      possible: whether a unit may be on one of its devices.
      integer: whether it is there or not; otherwise columns are shares.
    """
    choices = tuple(
        {k: builder.column(0, 1, integer=integer) for k in devices if possible(unit, k)}
        for unit, devices in enumerate(problem.unit_devices)
    )
    for choice in choices:
        builder.equal([(1, column) for column in choice.values()], 1)
    for device, capacity in enumerate(problem.capacity_bytes):
        able = [
            (problem.unit_memory_bytes[u], c[device]) for u, c in enumerate(choices) if device in c
        ]
        step = math.gcd(*(size for size, _ in able)) or 1
        if sum(size for size, _ in able) > capacity:
            builder.at_most([(size // step, column) for size, column in able], capacity // step)
    return choices


def fits(problem: Problem, packing: Sequence[int]) -> bool:
    """Whether every device's memory suffices for its units."""
    free = list(problem.capacity_bytes)
    for unit, device in enumerate(packing):
        free[device] -= problem.unit_memory_bytes[unit]
    return min(free, default=0) >= 0


class Reservation:
    """A packing that gives way to a heuristic's decisions, so that none is a dead end.

    At any time every undecided unit has room reserved somewhere. A decision is allowed when the
    reservations can be moved to make room for it; if a bounded search finds no way, it is
    refused, and the unit's reserved device is always allowed.
    """

    def __init__(self, problem: Problem, packing: Packing) -> None:
        self.problem = problem
        self._device = list(packing)
        self._decided = [False] * len(packing)
        self._free = list(problem.capacity_bytes)
        self._undecided: list[list[tuple[int, int]]] = [[] for _ in problem.devices]
        for unit, device in enumerate(packing):
            self._free[device] -= problem.unit_memory_bytes[unit]
            self._undecided[device].append((problem.unit_memory_bytes[unit], unit))
        for units in self._undecided:
            units.sort()

    def devices(self, operator: int) -> list[int]:
        """Where an operator may be placed now."""
        unit = self.problem.unit_of[operator]
        if self._decided[unit]:
            return [self._device[unit]]
        options = self.problem.unit_devices[unit]
        return [device for device in options if self._moves(unit, device) is not None]

    def decide(self, operator: int, device: int) -> None:
        """Fixes the device of an operator's unit to one of `devices`."""
        unit = self.problem.unit_of[operator]
        if self._decided[unit]:
            return
        moves = self._moves(unit, device)
        if moves is None:
            raise ValueError(f"unit {unit} has no room on device {device}")
        for other, target in moves:
            self._leave(other, target)
            insort(self._undecided[target], (self.problem.unit_memory_bytes[other], other))
        self._leave(unit, device)
        self._decided[unit] = True

    def _leave(self, unit: int, target: int) -> None:
        """Moves a reservation; the unit is in no list of undecided ones afterwards."""
        size = self.problem.unit_memory_bytes[unit]
        source = self._device[unit]
        del self._undecided[source][bisect_left(self._undecided[source], (size, unit))]
        self._free[source] += size
        self._free[target] -= size
        self._device[unit] = target

    def _moves(self, unit: int, device: int) -> list[tuple[int, int]] | None:
        """Reservations to move so that `unit` fits on `device`; None if none were found."""
        size = self.problem.unit_memory_bytes[unit]
        if self._device[unit] == device or self._free[device] >= size:
            return []
        free = list(self._free)
        free[self._device[unit]] += size
        missing = size - free[device]
        if sum(free) - free[device] < missing:
            return None
        moves = []
        for amount, other in self._leaving(device, missing):
            target = self._elsewhere(other, device, amount, free)
            if target is None:
                continue
            moves.append((other, target))
            free[target] -= amount
            missing -= amount
            if missing <= 0:
                return moves
        return None

    def _leaving(self, device: int, missing: int) -> Iterator[tuple[int, int]]:
        """Candidates to leave: the smallest that suffice alone, then the largest of the others."""
        entries = self._undecided[device]
        enough = bisect_left(entries, (missing, -1))
        yield from entries[enough : enough + _CANDIDATES]
        yield from reversed(entries[max(0, enough - _CANDIDATES) : enough])

    def _elsewhere(self, unit: int, leaving: int, size: int, free: list[int]) -> int | None:
        options = [
            device
            for device in self.problem.unit_devices[unit]
            if device != leaving and free[device] >= size
        ]
        return max(options, key=lambda device: (free[device], -device), default=None)

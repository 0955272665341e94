"""GETF: generalised earliest task first on devices grouped by speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moirai_tf.placement.bound.linear_program import ModelBuilder, time_unit_ns
from moirai_tf.placement.bound.packing import Packing
from moirai_tf.placement.clock import Deadline
from moirai_tf.placement.construct.etf import earliest_first
from moirai_tf.placement.exact.milp.backends import solved_vertex
from moirai_tf.placement.problem import IntArray, Problem
from moirai_tf.placement.schedule import Schedule

_FEW = 1e-9
"""Beside a half, for sums of shares in floating point."""


def getf(problem: Problem, packing: Packing, deadline: Deadline) -> Schedule:
    """A linear program gives every operator a group of devices of like speed; then ETF in groups.

    Source: Su, Ren, Vardi and Wierman 2019, for related machines: work over speed. Devices slower
    than the fastest by more than their number are left out (`Machines`); `_shares` and `group_of`
    choose groups; of the ready operators and devices of their groups the pair that starts first is
    run, transfers included.

    Adapted to unrelated times: the speed of a device is the geometric mean of how much faster than
    the mean device it runs what both can run, the work of an operator the geometric mean of time
    times speed. To memory, colocation and operators that a group cannot run: the operator goes to
    the next group that the reservation allows, by total speed, at last to what was left out.
    Transfers: as in ETF.
    """
    machines = machines_of(problem)
    shares = _shares(problem, machines, deadline)
    groups = [machines.group_of(row) for row in shares]

    def choose(operator: int, allowed: list[int]) -> list[int]:
        for group in machines.by_preference(groups[operator]):
            found = [device for device in group if device in allowed]
            if found:
                return found
        return allowed

    return earliest_first(problem, packing, deadline, choose)


@dataclass(frozen=True)
class Machines:
    """Devices by speed."""

    speed: tuple[float, ...]
    """Of each device."""

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """Devices that are no slower than the fastest over their number."""
        least = max(self.speed) / len(self.speed)
        return tuple(k for k, speed in enumerate(self.speed) if speed >= least)

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Kept devices, slow ones first; g has speeds in [G**g, G**(g + 1)) of the slowest.

        G = log m / log log m for m devices. With at most e devices that is no number above 1, and
        there is one group.
        """
        count = len(self.speed)
        if count <= math.e:
            return (self.kept,)
        base = math.log(count) / math.log(math.log(count))
        least = min(self.speed[k] for k in self.kept)
        numbers = {k: math.floor(math.log(self.speed[k] / least, base)) for k in self.kept}
        found = sorted(set(numbers.values()))
        return tuple(tuple(k for k in self.kept if numbers[k] == g) for g in found)

    def total(self, group: int) -> float:
        """Sum of a group's speeds."""
        return sum(self.speed[k] for k in self.groups[group])

    def group_of(self, shares: Sequence[float]) -> int:
        """The group of an operator with shares of its work on all devices.

        Let l be the highest group so that at least half is on groups l and above; of these it is
        the one of largest total speed, ties to the faster.
        """
        above = 0.0
        for lowest in reversed(range(len(self.groups))):
            above += sum(shares[k] for k in self.groups[lowest])
            if above >= 0.5 - _FEW:
                break
        return max(range(lowest, len(self.groups)), key=lambda group: (self.total(group), group))

    def by_preference(self, chosen: int) -> list[tuple[int, ...]]:
        """Groups in the order in which room is looked for: the chosen one, others by total."""
        others = sorted(set(range(len(self.groups))) - {chosen}, key=self.total, reverse=True)
        return [self.groups[group] for group in (chosen, *others)]


def machines_of(problem: Problem) -> Machines:
    """The devices' speeds, where 1 is the geometric mean."""
    times = np.where(problem.runnable & (problem.compute_ns > 0), problem.compute_ns, 0)
    known = times > 0
    logarithms = np.log(np.where(known, times, 1).astype(np.float64))
    compared = known & (known.sum(axis=1) > 1)[:, np.newaxis]
    means = logarithms.sum(axis=1) / np.maximum(1, known.sum(axis=1))
    gains = (means[:, np.newaxis] - logarithms) * compared
    mean_gains = gains.sum(axis=0) / np.maximum(1, compared.sum(axis=0))
    return Machines(tuple(np.exp(mean_gains).tolist()))


def work_ns(problem: Problem, machines: Machines) -> IntArray:
    """Work of each operator: its time on a device of speed 1."""
    known = problem.runnable & (problem.compute_ns > 0)
    scaled = np.log(np.where(known, problem.compute_ns * np.array(machines.speed), 1.0))
    means = (scaled * known).sum(axis=1) / np.maximum(1, known.sum(axis=1))
    work: IntArray = np.where(known.any(axis=1), np.rint(np.exp(means)), 0).astype(np.int64)
    return work


def _shares(problem: Problem, machines: Machines, deadline: Deadline) -> list[list[float]]:
    """Shares of the operators on devices: with one group there is nothing to choose.

    With work p, speeds s and shares x, without devices that cannot run an operator: minimise T,
    where `sum_k x[i, k] = 1`, `sum_i p[i] / s[k] x[i, k] <= T`, completion times C have
    `C[j] >= C[i] + sum_k p[j] / s[k] x[j, k]` for producers i of j, and `C[i] <= T`.
    """
    if len(machines.groups) == 1:
        return [[0.0] * len(problem.devices)] * len(problem.operators)
    kept = set(machines.kept)
    work = work_ns(problem, machines).tolist()
    times = [[round(p / speed) for speed in machines.speed] for p in work]
    horizon_ns = 1 + sum(map(max, times))
    builder, unit_ns = ModelBuilder(), time_unit_ns(horizon_ns)
    columns = []
    for able in problem.runnable.tolist():
        devices = [k for k, can in enumerate(able) if can]
        devices = [k for k in devices if k in kept] or devices
        columns.append({k: builder.column(0, 1) for k in devices})
    completion = [builder.column(0, horizon_ns, unit=unit_ns) for _ in work]
    whole = builder.column(0, horizon_ns, unit=unit_ns)
    for row in columns:
        builder.equal([(1, column) for column in row.values()], 1)
    for k in range(len(problem.devices)):
        load = [(-times[i][k], row[k]) for i, row in enumerate(columns) if k in row]
        builder.at_least([(1, whole), *load], 0)
    for j, row in enumerate(columns):
        own = [(-times[j][k], column) for k, column in row.items()]
        producers = {problem.tensors[tensor].producer for tensor in problem.incoming[j]}
        for i in sorted(producers):
            builder.at_least([(1, completion[j]), (-1, completion[i]), *own], 0)
        if not producers:
            builder.at_least([(1, completion[j]), *own], 0)
        builder.at_least([(1, whole), (-1, completion[j])], 0)
    values, count = solved_vertex(builder.build(whole), deadline), len(problem.devices)
    return [[float(values[row[k]]) if k in row else 0.0 for k in range(count)] for row in columns]

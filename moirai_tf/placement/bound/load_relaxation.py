"""Relaxations of the least bottleneck: bounds by prices and duals, an assignment by rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray, dual_bound
from moirai_tf.placement.bound.packing import Packing, Reservation
from moirai_tf.placement.bound.paths import Bound
from moirai_tf.placement.exact.milp import highs
from moirai_tf.placement.exact.milp.loads import LoadModel, build_loads
from moirai_tf.placement.exact.milp.outcome import Limits
from moirai_tf.placement.objective import unit_compute_ns
from moirai_tf.placement.problem import Problem

_PRICE = 1000
"""Of the dearest device; prices are whole numbers."""
_ROUNDS = 100
_STEP = 0.1


@dataclass(frozen=True)
class Relaxed:
    """What the relaxation tells."""

    bound: Bound
    """On the bottleneck."""
    model: LoadModel
    shares: FloatArray | None
    """Column values; None if the solver had none."""


def priced_work(problem: Problem) -> Bound:
    """A bound from the work alone, for instances of any size.

    For any prices l_k >= 0 of the devices every assignment has
    `bottleneck * sum_k l_k >= sum_k l_k load_k >= sum_u min_k l_k work[u, k]`. Good prices come
    from multiplicative weights: what is overloaded at the cheapest choices becomes dearer
    (Plotkin, Shmoys and Tardos 1995). Whole numbers throughout the last sum.
    """
    work, units = unit_compute_ns(problem), np.arange(len(problem.units))
    banned, largest = work < 0, np.iinfo(np.int64).max
    weights, best = np.ones(len(problem.devices)), 0
    for _ in range(_ROUNDS):
        prices = np.ceil(_PRICE * weights / weights.max()).astype(np.int64)
        priced = np.where(banned, largest, work * prices)
        chosen = priced.argmin(axis=1)
        best = max(best, -(-int(priced[units, chosen].sum()) // int(prices.sum())))
        loads = np.bincount(chosen, work[units, chosen], len(weights))
        weights *= 1 + _STEP * loads / max(1.0, float(loads.max()))
    return Bound(best, "work at prices of devices")


def relax_loads(problem: Problem, ceiling_ns: int, limits: Limits, *, crossing: bool) -> Relaxed:
    """Solves the load model without integrality; its duals prove the bound in whole numbers.

    Args:
      problem: a valid problem.
      ceiling_ns: a bottleneck that some schedule reaches.
      limits: for the solver.
      crossing: whether channels count, which takes a column for every way of every tensor.
    """
    model = build_loads(problem, ceiling_ns, crossing=crossing)
    linear = replace(model.linear, integer=np.zeros_like(model.linear.integer))
    outcome = highs.solve(linear, {}, limits)
    if outcome.interrupted:
        raise KeyboardInterrupt
    value = 0 if outcome.row_duals is None else dual_bound(linear, outcome.row_duals)
    what = "devices and channels" if crossing else "devices"
    bound = Bound(max(0, min(value, ceiling_ns)), f"linear relaxation of the loads of {what}")
    return Relaxed(bound, model, outcome.solution)


def rounded(problem: Problem, packing: Packing, relaxed: Relaxed) -> list[int] | None:
    """Each unit to the device with its largest share, within memory; the clearest cases first.

    Returns:
      The device of each operator; None without shares.
    """
    if relaxed.shares is None:
        return None
    shares = [
        {device: float(relaxed.shares[column]) for device, column in choice.items()}
        for choice in relaxed.model.choices
    ]
    reservation = Reservation(problem, packing)
    assignment = [0] * len(problem.operators)
    for unit in sorted(range(len(shares)), key=lambda u: (-max(shares[u].values()), u)):
        members, share = problem.units[unit], shares[unit]
        allowed = reservation.devices(members[0])
        device = max(allowed, key=lambda k: share.get(k, -1.0))
        reservation.decide(members[0], device)
        for operator in members:
            assignment[operator] = device
    return assignment

"""An answer to a placement problem: where and when every operator runs and every tensor moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from moirai_tf.placement.objective import Objective

OPTIMAL, FEASIBLE, INFEASIBLE, ERROR = "optimal", "feasible", "infeasible", "error"


@dataclass(frozen=True, slots=True)
class Placed:
    """One operator's device (by index) and times."""

    device: int
    start_ns: int
    finish_ns: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor moved from device `source` to device `target`."""

    tensor: int
    source: int
    target: int
    start_ns: int
    finish_ns: int
    consumer: int | None = None
    """The operator it is for, in mode `per_edge`; None in mode `per_tensor`."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What is claimed of a schedule when more than its makespan counts."""

    objective: Objective
    bottleneck_ns: int
    lower_bound_ns: Fraction
    """On the objective."""


@dataclass(frozen=True)
class Schedule:
    """A schedule and what is claimed of it; `check.check` tells whether it is true."""

    placed: tuple[Placed, ...]
    """One per operator, in the problem's order."""
    transfers: tuple[Transfer, ...]
    makespan_ns: int
    status: str = FEASIBLE
    """`optimal` or `feasible`, for the objective."""
    lower_bound_ns: int = 0
    """On the makespan, whatever the objective."""
    allowed_gap: float = 0.0
    """Relative gap within which `optimal` was asked for."""
    claim: Claim | None = None
    """None where the makespan is the objective."""

    @property
    def objective_ns(self) -> Fraction:
        """The objective, by the schedule's own claims."""
        if self.claim is None:
            return Fraction(self.makespan_ns)
        return self.claim.objective.value_ns(self.makespan_ns, self.claim.bottleneck_ns)

    @property
    def objective_bound_ns(self) -> Fraction:
        """The proved lower bound on the objective."""
        return Fraction(self.lower_bound_ns) if self.claim is None else self.claim.lower_bound_ns

    @property
    def assignment(self) -> tuple[int, ...]:
        """Device of each operator."""
        return tuple(placed.device for placed in self.placed)


def schedule_of(placed: Iterable[Placed], transfers: Iterable[Transfer]) -> Schedule:
    """A schedule that claims its own latest finish as makespan; transfers sorted by time."""
    placed = tuple(placed)
    ordered = sorted(transfers, key=lambda t: (t.start_ns, t.tensor, t.target, t.consumer or 0))
    return Schedule(placed, tuple(ordered), max((p.finish_ns for p in placed), default=0))


def relative_gap(value_ns: int | Fraction, lower_bound_ns: int | Fraction) -> float:
    """Share of a makespan or another objective that is not proved necessary."""
    return 0.0 if value_ns == 0 else float((value_ns - lower_bound_ns) / value_ns)


def planned_orders(schedule: Schedule) -> tuple[tuple[int, ...], ...]:
    """For each device that is used, its operators of positive duration by start."""
    orders: dict[int, list[int]] = {}
    placed = schedule.placed
    for operator in sorted(range(len(placed)), key=lambda i: (placed[i].start_ns, i)):
        if placed[operator].finish_ns > placed[operator].start_ns:
            orders.setdefault(placed[operator].device, []).append(operator)
    return tuple(tuple(orders[device]) for device in sorted(orders))

"""What a linear or integer solver reports, the same for every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from moirai_tf.placement.bound.linear_program import FloatArray, LinearModel

SOLVED, STOPPED, NO_SOLUTION = "solved", "stopped", "no solution"


@dataclass(frozen=True)
class Outcome:
    """End of one solver run."""

    state: str
    """`solved`: to the gap asked for; `stopped`: a limit or Ctrl-C; `no solution`: infeasible."""
    bound: float
    """Lower bound on the objective in the model's own units; -inf if there is none."""
    incumbents: tuple[tuple[float, FloatArray], ...] = ()
    """(seconds since the start, column values) of every improvement, best last."""
    row_duals: FloatArray | None = None
    """Duals of the unscaled rows, for a linear program."""
    solution: FloatArray | None = None
    """Column values of a linear program."""
    interrupted: bool = False
    """Ctrl-C was pressed."""


@dataclass(frozen=True)
class Limits:
    """When a run stops and how it is seeded."""

    time_s: float
    mip_gap: float = 0.0
    threads: int = 1
    seed: int = 0
    cutoff: float | None = None
    """Only a smaller objective is of interest; the search may end once there is none."""
    proof: bool = False
    """Whether it is all about the bound."""


class BackendRefusalError(Exception):
    """A solver is missing, has no licence, or its licence is too small for the model."""


class Backend(Protocol):
    """An integer solver."""

    def __call__(self, model: LinearModel, start: Mapping[int, int], limits: Limits) -> Outcome:
        """Solves a model from the known values of some integer columns.

        Raises:
          BackendRefusalError: when it cannot solve this model here.
        """

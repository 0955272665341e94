"""Placing by a user's wishes: what a problem file or a pipeline is solved with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moirai_tf.errors import MoiraiError
from moirai_tf.options import option
from moirai_tf.placement.blackboard import Incumbent
from moirai_tf.placement.constraints import Limit, restrict
from moirai_tf.placement.problem import CONGESTION_MODES, TRANSFER_MODES, Problem
from moirai_tf.placement.schedule import INFEASIBLE
from moirai_tf.placement.solve import Result, SolveOptions, solve
from moirai_tf.progress import note


@dataclass(frozen=True)
class Wishes:
    """What a user says of devices."""

    pin: tuple[str, ...] = option((), "regex=device: operators that must run on a device")
    forbid: tuple[str, ...] = option((), "device that must run no operator")
    memory_limit: tuple[str, ...] = option((), "device=bytes: less memory than the device has")


@dataclass(frozen=True)
class PlaceOptions(Wishes, SolveOptions):
    """What is to be placed where, how long to look for it, and by what strategy."""

    transfers: str = option(
        "per_tensor",
        "a tensor crosses once per destination device, or once per reading operator",
        choices=TRANSFER_MODES,
    )
    congestion: str = option(
        "port",
        "what carries one tensor at a time: a device's port, a directed link, or nothing",
        choices=CONGESTION_MODES,
    )

    def solve(
        self, problem: Problem, pins: Sequence[str] = (), limits: Sequence[Limit] = ()
    ) -> tuple[Problem, Result]:
        """Narrows a problem by the user's wishes and solves it.

        Raises:
          MoiraiError: a wish cannot be met, or there is no feasible placement.
        """
        problem = restrict(
            problem,
            pins=pins,
            forbidden=self.forbid,
            memory_limits=self.memory_limit,
            limits=limits,
        )
        result = solve(problem, self, tell_progress)
        if result.schedule is None:
            raise MoiraiError(
                f"no placement was found: {'; '.join(result.messages)}",
                why=f"the answer of the solver is {result.status!r}",
                fix=self._way_out(result),
            )
        return problem, result

    def _way_out(self, result: Result) -> str:
        """What helps when there is no placement, of what was asked for here."""
        if result.status != INFEASIBLE:
            return "allow more time (time_limit_s), or try another solver"
        wishes = {"memory_limit": self.memory_limit, "pin": self.pin, "forbid": self.forbid}
        given = [name for name, wish in wishes.items() if wish]
        more = f", or leave out {' or '.join(given)}" if given else ""
        return f"give devices more memory or the cluster more devices{more}"


def tell_progress(incumbent: Incumbent, lower_bound_ns: int) -> None:
    """Tells of an improvement."""
    note(
        f"{math.ceil(incumbent.objective_ns) / 1e6:.3f} ms by {incumbent.found_by}, "
        f"bound {lower_bound_ns / 1e6:.3f} ms"
    )

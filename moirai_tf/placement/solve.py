"""`solve(problem, options) -> Result`: one entrance to every strategy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from moirai_tf.errors import MoiraiError
from moirai_tf.options import check_options, option
from moirai_tf.placement import bounds
from moirai_tf.placement.check import check
from moirai_tf.placement.deadline import Deadline, OutOfTimeError
from moirai_tf.placement.heuristics import OneDevice, single
from moirai_tf.placement.memory import InfeasibleError, Packing, pack
from moirai_tf.placement.milp.outcome import Limits
from moirai_tf.placement.problem import Problem
from moirai_tf.placement.schedule import (
    ERROR,
    FEASIBLE,
    INFEASIBLE,
    OPTIMAL,
    Schedule,
    relative_gap,
)
from moirai_tf.placement.simulate import simulate
from moirai_tf.placement.strategies import STRATEGIES, Incumbent, Progress, Search
from moirai_tf.placement.validation import require_valid


@dataclass(frozen=True)
class SolveOptions:
    """How to look for a schedule, and when to stop."""

    solver: str = option("auto", "strategy that looks for a placement", choices=tuple(STRATEGIES))
    time_limit_s: float = option(60.0, "seconds after which the best placement so far is taken")
    mip_gap: float = option(1e-4, "relative gap to the proved bound that counts as optimal")
    threads: int = option(1, "threads of the solver")
    seed: int = option(0, "seed of solver and local search")
    min_gain: float = option(
        0.0, "share by which a placement must beat the best single device to be preferred to it"
    )

    def __post_init__(self) -> None:
        check_options(self)
        for name, value, good, range_text in (
            ("time_limit_s", self.time_limit_s, self.time_limit_s > 0, "above 0"),
            ("mip_gap", self.mip_gap, 0 <= self.mip_gap < 1, "at least 0 and below 1"),
            ("threads", self.threads, self.threads >= 1, "at least 1"),
            ("seed", self.seed, 0 <= self.seed < 2**31, "at least 0 and below 2**31"),
            ("min_gain", self.min_gain, 0 <= self.min_gain < 1, "at least 0 and below 1"),
        ):
            if not good:
                raise MoiraiError(
                    f"option {name} is {value}",
                    why="no search can follow such a limit",
                    fix=f"give a value {range_text}",
                )


@dataclass(frozen=True)
class Result:
    """The answer to a problem, and how it came about."""

    status: str
    """`optimal` (the bound is the makespan, or within the gap that was asked for, which a message
    then states), `feasible`, `infeasible` or `error`."""
    schedule: Schedule | None = None
    """Checked; None when infeasible or in error."""
    lower_bound_ns: int = 0
    messages: tuple[str, ...] = ()
    """How schedule and bound were found, and what else a user should know."""
    history: tuple[Incumbent, ...] = ()
    baselines: tuple[tuple[str, int], ...] = ()
    """(heuristic, makespan) of those that were run."""
    single_device: str | None = None
    """Name of the best device that could do all the work alone, if any; operators that take no
    time and cannot be there, as pinned feeds and fetches, stay on a device of their own."""
    single_device_ns: int | None = None
    """Its makespan, with the transfers to and from such operators."""

    @property
    def makespan_ns(self) -> int | None:
        """Makespan of the schedule."""
        return None if self.schedule is None else self.schedule.makespan_ns

    @property
    def gap(self) -> float | None:
        """(makespan - bound) / makespan."""
        if self.schedule is None:
            return None
        return relative_gap(self.schedule.makespan_ns, self.lower_bound_ns)


def solve(
    problem: Problem,
    options: SolveOptions = SolveOptions(),
    progress: Progress | None = None,
) -> Result:
    """Places a problem's operators.

    At the time limit, or on Ctrl-C, the best schedule so far comes back. Equal problem, seed and
    threads give an equal answer unless the time limit ends the search.

    Args:
      problem: what to place.
      options: strategy and limits.
      progress: called with each improvement.

    Raises:
      MoiraiError: when the problem's data is faulty.
    """
    require_valid(problem)
    deadline = Deadline(options.time_limit_s)
    limits = Limits(options.time_limit_s, 0.0, options.threads, options.seed)
    try:
        packing = pack(problem, limits)
        if packing is None:
            return Result(ERROR, messages=("no way to fit the operators into memory was found",))
        alone = single(problem)
        search = _started(problem, packing, alone, deadline, options, progress)
    except InfeasibleError as error:
        return Result(INFEASIBLE, messages=(str(error),))
    except KeyboardInterrupt:
        return Result(ERROR, messages=("interrupted before there was a first schedule",))
    try:
        for bound in (bounds.critical_path, bounds.blockwise):
            search.prove(bound(problem))
        STRATEGIES[options.solver].run(search)
    except OutOfTimeError:
        search.notes.append(f"the time limit of {options.time_limit_s:g} s ended the search")
    except KeyboardInterrupt:
        search.notes.append("the search was interrupted")
    return _result(search, alone, options)


def _started(
    problem: Problem,
    packing: Packing,
    alone: OneDevice | None,
    deadline: Deadline,
    options: SolveOptions,
    progress: Progress | None,
) -> Search:
    """A search that has an answer already: one device, or else the packing in list order."""
    packed = [packing[unit] for unit in problem.unit_of]
    first = alone.schedule if alone else simulate(problem, packed)
    search = Search(
        problem=problem,
        packing=packing,
        deadline=deadline,
        mip_gap=options.mip_gap,
        threads=options.threads,
        seed=options.seed,
        best=first,
        progress=progress,
    )
    search.offer(first, "single" if alone else "packing")
    if alone:
        search.baselines["single"] = first.makespan_ns
    return search


def _result(search: Search, alone: OneDevice | None, options: SolveOptions) -> Result:
    """The claims that can be made, checked once more."""
    problem, bound = search.problem, search.bound
    schedule, notes = _preferred(search, alone, options)
    within = schedule.makespan_ns - bound.value_ns <= (
        Fraction(options.mip_gap) * schedule.makespan_ns
    )
    loose = within and bound.value_ns < schedule.makespan_ns
    schedule = replace(
        schedule,
        status=OPTIMAL if within else FEASIBLE,
        lower_bound_ns=bound.value_ns,
        allowed_gap=options.mip_gap if loose else 0.0,
    )
    if loose:
        notes.append(f"optimal within the requested gap of {options.mip_gap:g}")
    wrong = check(problem, schedule)
    if wrong:
        return Result(ERROR, messages=(*search.faults, *wrong))
    return Result(
        status=schedule.status,
        schedule=schedule,
        lower_bound_ns=bound.value_ns,
        messages=(*notes, f"bound: {bound.how}", *search.faults),
        history=tuple(search.history),
        baselines=tuple(search.baselines.items()),
        single_device=None if alone is None else problem.devices[alone.device].name,
        single_device_ns=None if alone is None else alone.schedule.makespan_ns,
    )


def _preferred(
    search: Search, alone: OneDevice | None, options: SolveOptions
) -> tuple[Schedule, list[str]]:
    """The best schedule, or the best single device where the gain is too small."""
    best = search.best
    found_by = [f"schedule: {incumbent.found_by}" for incumbent in search.history[-1:]]
    if alone is None:
        return best, [*found_by, *search.notes]
    alone_ns = alone.schedule.makespan_ns
    gain_ns = alone_ns - best.makespan_ns
    if gain_ns > 0 and gain_ns >= Fraction(options.min_gain) * alone_ns:
        return best, [*found_by, *search.notes]
    kept = f"schedule: one device; no placement was found that beats it by {options.min_gain:.1%}"
    return alone.schedule, [kept, *search.notes]

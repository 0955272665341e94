"""`solve(problem, options) -> Result`: one entrance to every strategy, with a user's wishes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from moirai_tf.errors import MoiraiError
from moirai_tf.options import check_options, option
from moirai_tf.placement.blackboard import Episode, Incumbent, Made, Progress, Search, Strategy
from moirai_tf.placement.bound import paths
from moirai_tf.placement.bound.packing import InfeasibleError, pack
from moirai_tf.placement.check import check
from moirai_tf.placement.clock import Deadline, OutOfTimeError
from moirai_tf.placement.constraints import Limit, restrict
from moirai_tf.placement.construct import single
from moirai_tf.placement.evaluate.events import simulate
from moirai_tf.placement.exact.milp.backends import Limits
from moirai_tf.placement.objective import (
    LATENCY,
    OBJECTIVES,
    Objective,
    bottleneck_ns,
    objective_of,
)
from moirai_tf.placement.portfolio import STRATEGIES, strategy_for
from moirai_tf.placement.problem import CONGESTION_MODES, TRANSFER_MODES, Problem
from moirai_tf.placement.reductions import Reduction, reduce
from moirai_tf.placement.schedule import (
    ERROR,
    FEASIBLE,
    INFEASIBLE,
    OPTIMAL,
    Claim,
    Schedule,
    relative_gap,
)
from moirai_tf.placement.validation import require_valid
from moirai_tf.progress import note

_INTERRUPTED = "the search was interrupted"


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
    objective: str = option(
        LATENCY,
        "what is minimised: the makespan of one request, the largest load of any device or "
        "channel when requests are pipelined, or a weighted sum of the two",
        choices=OBJECTIVES,
    )
    latency_weight: float = option(0.5, "share of the makespan in the weighted objective")
    episodes: int = option(1000, "most episodes of the solver that learns, placeto")

    def __post_init__(self) -> None:
        check_options(self)
        self.minimised()
        self.strategy()
        for name, value, good, range_text in (
            ("time_limit_s", self.time_limit_s, self.time_limit_s > 0, "above 0"),
            ("mip_gap", self.mip_gap, 0 <= self.mip_gap < 1, "at least 0 and below 1"),
            ("threads", self.threads, self.threads >= 1, "at least 1"),
            ("episodes", self.episodes, self.episodes >= 1, "at least 1"),
            ("seed", self.seed, 0 <= self.seed < 2**31, "at least 0 and below 2**31"),
            ("min_gain", self.min_gain, 0 <= self.min_gain < 1, "at least 0 and below 1"),
        ):
            if not good:
                raise MoiraiError(
                    f"option {name} is {value}",
                    why="no search can follow such a limit",
                    fix=f"give a value {range_text}",
                )

    def minimised(self) -> Objective:
        """The objective with its exact weight."""
        return objective_of(self.objective, self.latency_weight)

    def strategy(self) -> Strategy:
        """What looks for a schedule with this objective."""
        return strategy_for(self.objective, self.solver)


@dataclass(frozen=True)
class Result:
    """The answer to a problem, and how it came about."""

    status: str
    """`optimal` (the bound is the objective's value, or within the gap that was asked for, which a
    message then states), `feasible`, `infeasible` or `error`."""
    schedule: Schedule | None = None
    """Checked; None when infeasible or in error."""
    lower_bound_ns: int = 0
    """On the makespan."""
    messages: tuple[str, ...] = ()
    """How schedule and bound were found, and what else a user should know."""
    because: str = ""
    """Why one device is best, if it is, as a part of a sentence."""
    history: tuple[Incumbent, ...] = ()
    baselines: tuple[tuple[str, int], ...] = ()
    """(heuristic, objective in ns, rounded up) of those that were run."""
    single_device: str | None = None
    """Name of the best device that could do all the work alone, if any; operators that take no
    time and cannot be there, as pinned feeds and fetches, stay on a device of their own."""
    single_device_ns: int | None = None
    """Its makespan, with the transfers to and from such operators."""
    single_schedule: Schedule | None = None
    """The schedule of that device, with the same bound."""
    learned: tuple[Episode, ...] = ()
    """The learning curve, if the solver learns."""

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

    @property
    def objective_ns(self) -> Fraction | None:
        """Objective of the schedule; the makespan, if that is the objective."""
        return None if self.schedule is None else self.schedule.objective_ns

    @property
    def objective_bound_ns(self) -> Fraction | None:
        """Proved lower bound on the objective."""
        return None if self.schedule is None else self.schedule.objective_bound_ns

    @property
    def objective_gap(self) -> float | None:
        """(objective - bound) / objective."""
        if self.schedule is None:
            return None
        return relative_gap(self.schedule.objective_ns, self.schedule.objective_bound_ns)


def solve(
    problem: Problem,
    options: SolveOptions = SolveOptions(),
    progress: Progress | None = None,
) -> Result:
    """Places a problem's operators.

    At the time limit, or on Ctrl-C, the best schedule so far comes back. What is compiled to
    machine code meanwhile, once on a machine, takes none of that time. Equal problem, seed and
    threads give an equal answer unless the time limit, or a part's share of it, ends a search.

    Args:
      problem: what to place.
      options: strategy and limits.
      progress: called with each improvement.

    Raises:
      MoiraiError: when the problem's data is faulty.
    """
    require_valid(problem)
    deadline = Deadline(options.time_limit_s)
    reduced = reduce(problem)
    try:
        search = _started(reduced.problem, deadline, options, progress)
    except InfeasibleError as error:
        return Result(INFEASIBLE, messages=(str(error),))
    except KeyboardInterrupt:
        return Result(ERROR, messages=("interrupted before there was a first schedule",))
    if search is None:
        return Result(ERROR, messages=("no way to fit the operators into memory was found",))
    try:
        for bound in (paths.critical_path, paths.blockwise):
            search.prove(bound(search.problem))
        options.strategy().run(search)
    except OutOfTimeError:
        search.notes.append(f"the time limit of {options.time_limit_s:g} s ended the search")
    except KeyboardInterrupt:
        search.notes.append(_INTERRUPTED)
    return _result(reduced, search, options)


def make(problem: Problem, options: SolveOptions) -> tuple[Made, tuple[Episode, ...]] | None:
    """What a method that compares makes by itself: no bound, no other method's schedule.

    Args:
      problem: what to place.
      options: the method as `solver`, and its budget.

    Returns:
      Its schedule, as the exact checker accepts it, and its learning curve; None if the method
      has none, as where no single device suffices.

    Raises:
      MoiraiError: the problem's data is faulty.
      OutOfTimeError: the method was not done within the time limit.
      InfeasibleError: nothing fits.
    """
    require_valid(problem)
    reduced = reduce(problem)
    search = _started(reduced.problem, Deadline(options.time_limit_s), options, None)
    if search is None:
        return None
    options.strategy().construct(search)  # type: ignore[attr-defined]
    made = search.made.get(options.solver)
    if made is None:
        return None
    schedule = reduced.invert(made.schedule)
    faults = check(problem, schedule)
    if faults:
        raise AssertionError(f"{options.solver}: {faults[0]}")
    return Made(schedule, made.time_s), tuple(search.learned)


def _started(
    problem: Problem, deadline: Deadline, options: SolveOptions, progress: Progress | None
) -> Search | None:
    """A search that has an answer already: one device, or else the packing in list order."""
    packing = pack(problem, Limits(options.time_limit_s, 0.0, options.threads, options.seed))
    if packing is None:
        return None
    alone = single(problem)
    search = Search(
        problem=problem,
        packing=packing,
        deadline=deadline,
        mip_gap=options.mip_gap,
        threads=options.threads,
        seed=options.seed,
        episodes=options.episodes,
        best=alone.schedule if alone else simulate(problem, [packing[u] for u in problem.unit_of]),
        alone=alone,
        progress=progress,
        objective=options.minimised(),
    )
    if alone:
        search.baseline(search.best, "single", deadline.elapsed_s())
    else:
        search.offer(search.best, "packing")
    return search


def _result(reduced: Reduction, search: Search, options: SolveOptions) -> Result:
    """The claims that can be made of the problem as it was given, checked once more."""
    alone = search.alone
    best, because, notes = _preferred(search, options)
    schedule = _claimed(reduced, search, best)
    if schedule.allowed_gap:
        notes.append(f"optimal within the requested gap of {options.mip_gap:g}")
    if schedule.claim:
        notes.append(
            f"objective: {schedule.claim.objective.name}, {math.ceil(search.value_ns(best))} ns, "
            f"proved to be at least {math.ceil(search.lower_bound_ns)} ns ({schedule.status})"
        )
    by_one = None if alone is None else _claimed(reduced, search, alone.schedule)
    wrong = [fault for s in (schedule, by_one) if s for fault in check(reduced.original, s)]
    if wrong:
        return Result(ERROR, messages=(*search.faults, *wrong))
    return Result(
        status=schedule.status,
        schedule=schedule,
        lower_bound_ns=search.bound.value_ns,
        because=because,
        messages=(*notes, f"bound: {search.how_bounded}", *search.faults),
        history=tuple(search.history),
        baselines=tuple(
            (name, math.ceil(search.value_ns(made.schedule))) for name, made in search.made.items()
        ),
        learned=tuple(search.learned),
        single_device=None if alone is None else reduced.original.devices[alone.device].name,
        single_device_ns=None if alone is None else alone.schedule.makespan_ns,
        single_schedule=by_one,
    )


def _claimed(reduced: Reduction, search: Search, schedule: Schedule) -> Schedule:
    """A schedule of the problem as it was given, with what is proved of it."""
    claim, bound_ns, value_ns = None, search.lower_bound_ns, search.value_ns(schedule)
    if search.objective.name != LATENCY:
        claim = Claim(search.objective, bottleneck_ns(search.problem, schedule), bound_ns)
    within = value_ns - bound_ns <= Fraction(search.mip_gap) * value_ns
    return replace(
        reduced.invert(schedule),
        status=OPTIMAL if within else FEASIBLE,
        lower_bound_ns=search.bound.value_ns,
        allowed_gap=search.mip_gap if within and bound_ns < value_ns else 0.0,
        claim=claim,
    )


def _preferred(search: Search, options: SolveOptions) -> tuple[Schedule, str, list[str]]:
    """The best schedule, or the best single device where the gain is too small; and why."""
    best, alone = search.best, search.alone
    found_by = [f"schedule: {incumbent.found_by}" for incumbent in search.history[-1:]]
    if alone is None:
        return best, "", [*found_by, *search.notes]
    alone_ns = search.value_ns(alone.schedule)
    gain_ns = alone_ns - search.value_ns(best)
    if gain_ns > 0 and gain_ns >= Fraction(options.min_gain) * alone_ns:
        return best, "", [*found_by, *search.notes]
    least = f" by {options.min_gain:.1%}" if options.min_gain else ""
    because = f"no placement was found that beats it{least}"
    return alone.schedule, because, [f"schedule: one device; {because}", *search.notes]


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

"""Which schedule to keep: of a few good ones the one that is predicted to be fastest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from moirai_tf.cluster.units import milliseconds
from moirai_tf.cost.predict import Prediction, kept_latency_ns, predict, with_handling
from moirai_tf.cost.table import CostTable
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.pipeline import need
from moirai_tf.placement import Operator, Problem, Result, Schedule, check, simulate
from moirai_tf.placement.evaluate.events import order_by_start
from moirai_tf.placement.improve.by_prediction import improved
from moirai_tf.placement.reductions import keep_chains

LEAST_GAIN = 0.10
"""Predicted gain from which measured costs are good enough to leave the best single device."""
COMPUTED_LEAST_GAIN = 0.30
"""The same for computed costs, which miss published latencies by a quarter in the median, in the
table of docs/costs.md; devices that differ differ in that, too."""
HOST_LEAST_GAIN = 0.30
"""The same for computing on a CPU that launches kernels: such steps of four GPUs took up to 25 %
longer than predicted."""
_MOVES_LESS = "moves less than the fastest schedule, since moving keeps devices from computing"
_IMPROVED = (
    "is the fastest in a search by predicted latency: the shortest schedule does not know that "
    "moving keeps devices from computing"
)
_SPARES_HOSTS = (
    "spares the CPUs that launch kernels: the fastest schedule gains less than "
    f"{HOST_LEAST_GAIN:.0%} by computing on them, and kernels would start later"
)


@dataclass(frozen=True)
class Chooser:
    """Compares schedules by what a client will measure.

    The exact problem weighs operators and transfers. That moving a tensor keeps its ends from
    computing, and that every worker costs a step something, is weighed here.
    """

    coarse: CoarseGraph
    costs: CostTable
    client: str

    @cached_property
    def _hosts(self) -> frozenset[str]:
        """CPUs whose server has GPUs, whose kernels they launch; none where no step was timed."""
        if not self.costs.step.client_ns:
            return frozenset()
        devices = [profile.device for profile in self.costs.devices]
        tasks = {device.task for device in devices if device.type == "GPU"}
        return frozenset(d.name for d in devices if d.type == "CPU" and d.task in tasks)

    @property
    def shares_of_time(self) -> tuple[float, float]:
        """Shares of the time limit: of the exact problem, and of each further search."""
        others = 3 * self.costs.moving_interferes + bool(self._hosts)
        return (0.5, 0.5 / others) if others else (1.0, 0.0)

    def fastest(
        self,
        problem: Problem,
        result: Result,
        solve: Callable[[Problem], Result],
        search_s: float,
    ) -> Result:
        """The answer, or one that moves less or spares hosts if that is predicted to be faster.

        Its bound is that of the problem, whose transfers do not keep devices from computing. A host
        that computes launches the kernels of its GPUs later, which no cost tells: its part must
        make a step faster by what predictions may be off.

        Args:
          problem: what was solved.
          result: the answer.
          solve: finds an answer to another problem.
          search_s: seconds to improve the best of these answers.
        """
        best, note = need(result.schedule), ""
        within = self._sparing_hosts(problem) if self._hosts else problem
        if self._hosts_work(within, best):
            spared = self._better(problem, best, solve(within), 1 / (1 - HOST_LEAST_GAIN))
            if spared is None:
                within = problem
            else:
                best, note = spared, _SPARES_HOSTS
        if self.costs.moving_interferes:
            dearer = with_handling(within, self.coarse, self.costs)
            chained = keep_chains(dearer)
            for other in [dearer] if chained is dearer else [dearer, chained]:
                moving_less = self._better(problem, best, solve(other))
                if moving_less is not None:
                    best, note = moving_less, _MOVES_LESS
            searched = improved(within, best, lambda one: self._kept_ns(problem, one), search_s)
            if searched.assignment != best.assignment and not check(problem, searched):
                best, note = searched, _IMPROVED
        if best is result.schedule:
            return result
        return replace(
            result,
            schedule=replace(best, lower_bound_ns=result.lower_bound_ns),
            status=best.status,
            because="",
            messages=(note, *result.messages),
        )

    def _better(
        self, problem: Problem, best: Schedule, found: Result, allowed: float = 1.0
    ) -> Schedule | None:
        """The schedule that was found, if it is predicted to be less than so many times as slow."""
        schedule = found.schedule
        if schedule is None or schedule.assignment == best.assignment:
            return None
        played = simulate(problem, schedule.assignment, order_by_start(problem, schedule))
        faster = self._kept_ns(problem, played) < allowed * self._kept_ns(problem, best)
        return played if faster and not check(problem, played) else None

    def worth_it(self, problem: Problem, result: Result) -> Result:
        """The answer, or the best single device if the predicted gain is too small."""
        single = result.single_schedule
        if single is None or result.schedule == single:
            return result
        several_ns = self._kept_ns(problem, need(result.schedule))
        alone_ns = self.predicted(problem, single).latency_ns(order_kept=False)
        least_gain = self._least_gain(problem, need(result.schedule), single)
        if several_ns <= alone_ns * (1 - least_gain):
            return result
        computed = " where costs are computed" if least_gain == COMPUTED_LEAST_GAIN else ""
        because = (
            f"with several a step is predicted to take {milliseconds(several_ns)}, with it "
            f"{milliseconds(alone_ns)}, and less than {least_gain:.0%} is no gain to count on"
            f"{computed}"
        )
        return replace(result, schedule=single, status=single.status, because=because)

    def _least_gain(self, problem: Problem, *schedules: Schedule) -> float:
        """Part of a latency that a gain must be, by how well its costs are known."""
        computed = set(self.costs.computed)
        names = [device.name for device in problem.devices]
        for schedule in schedules:
            for placed in schedule.placed:
                if placed.finish_ns > placed.start_ns and names[placed.device] in computed:
                    return COMPUTED_LEAST_GAIN
        return LEAST_GAIN if self.costs.step.client_ns else 0.0

    def predicted(self, problem: Problem, schedule: Schedule) -> Prediction:
        """What a client will measure of a schedule."""
        return predict(problem, schedule, self.coarse, self.costs, self.client)

    def _kept_ns(self, problem: Problem, schedule: Schedule) -> int:
        return kept_latency_ns(problem, schedule, self.coarse, self.costs, self.client)

    def _sparing_hosts(self, problem: Problem) -> Problem:
        """The problem without hosts for operators that another device can run."""
        hosts = [k for k, device in enumerate(problem.devices) if device.name in self._hosts]
        spared = {
            operator
            for unit, members in enumerate(problem.units)
            if not set(problem.unit_devices[unit]) <= set(hosts)
            for operator in members
        }

        def without(operator: Operator) -> Operator:
            times = ((k in hosts and bool(ns), ns) for k, ns in enumerate(operator.compute_ns))
            return replace(operator, compute_ns=tuple(None if out else ns for out, ns in times))

        operators = enumerate(problem.operators)
        return replace(
            problem, operators=tuple(without(o) if i in spared else o for i, o in operators)
        )

    def _hosts_work(self, sparing: Problem, schedule: Schedule) -> bool:
        """Whether a host runs an operator that the problem which spares hosts takes from it."""
        pairs = zip(sparing.operators, schedule.assignment, strict=True)
        return any(operator.compute_ns[device] is None for operator, device in pairs)

"""Which schedule to keep: of a few good ones the one that is predicted to be fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from moirai_tf.cost.predict import Prediction, predict, with_handling
from moirai_tf.cost.table import CostTable
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.pipeline import need
from moirai_tf.placement import Problem, Result, Schedule, check, simulate
from moirai_tf.placement.evaluate.events import order_by_start
from moirai_tf.placement.reductions import keep_chains
from moirai_tf.summary import milliseconds

LEAST_GAIN = 0.10
"""Predicted gain from which measured costs are good enough to leave the best single device."""
COMPUTED_LEAST_GAIN = 0.30
"""The same for computed costs, which miss published latencies by a quarter in the median, in the
table of docs/costs.md; devices that differ differ in that, too."""


@dataclass(frozen=True)
class Chooser:
    """Compares schedules by what a client will measure.

    The exact problem weighs operators and transfers. That moving a tensor keeps its ends from
    computing, and that every worker costs a step something, is weighed here.
    """

    coarse: CoarseGraph
    costs: CostTable
    client: str

    @property
    def share_of_time(self) -> float:
        """Share of the time limit that the exact problem gets; the rest is for `fastest`."""
        return 0.5 if self.costs.handling else 1.0

    def fastest(
        self, problem: Problem, result: Result, solve: Callable[[Problem], Result]
    ) -> Result:
        """The answer, or one that moves less if it is predicted to be faster.

        Its bound is that of the problem, whose transfers do not keep devices from computing.

        Args:
          problem: what was solved.
          result: the answer.
          solve: finds an answer to another problem.
        """
        best = need(result.schedule)
        least_ns = self._kept_ns(problem, best)
        for other in self._moving_less(problem):
            found = solve(other).schedule
            if found is None or found.assignment == best.assignment:
                continue
            played = simulate(problem, found.assignment, order_by_start(problem, found))
            schedule = replace(played, lower_bound_ns=result.lower_bound_ns)
            predicted_ns = self._kept_ns(problem, schedule)
            if predicted_ns < least_ns and not check(problem, schedule):
                best, least_ns = schedule, predicted_ns
        if best is result.schedule:
            return result
        note = "moves less than the fastest schedule, since moving keeps devices from computing"
        return replace(result, schedule=best, status=best.status, messages=(note, *result.messages))

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
        note = (
            f"one device is best: with several a step is predicted to take "
            f"{milliseconds(several_ns)}, with it {milliseconds(alone_ns)}, and less than "
            f"{least_gain:.0%} is no gain to count on{computed}"
        )
        messages = (note, *result.messages)
        return replace(result, schedule=single, status=single.status, messages=messages)

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
        return self.predicted(problem, schedule).latency_ns(order_kept=True)

    def _moving_less(self, problem: Problem) -> Iterator[Problem]:
        """Problems whose answers move less; none where handling a tensor costs nothing."""
        if not self.costs.handling:
            return
        dearer = with_handling(problem, self.coarse, self.costs)
        yield dearer
        chained = keep_chains(dearer)
        if chained is not dearer:
            yield chained

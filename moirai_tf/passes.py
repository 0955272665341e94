"""The passes of moirai_tf, each a frozen dataclass whose fields are its options."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from moirai_tf.choice import Chooser
from moirai_tf.cost.coarse_problem import build_problem
from moirai_tf.cost.memory import peak_memory
from moirai_tf.cost.options import ANALYTICAL, MEASURE, ProfileOptions
from moirai_tf.cost.profile import profile
from moirai_tf.division import divided
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.graph.importer import import_graph, shape_options
from moirai_tf.graph.kernels import require_gpu_kernels
from moirai_tf.graph.options import ImportOptions
from moirai_tf.graph.prune import prune
from moirai_tf.model.op_libraries import load_op_libraries
from moirai_tf.model.output import check_apart, check_output, publish, real_path
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.options import option
from moirai_tf.pipeline import MoiraiItem, Pass, Pipeline, configured, need
from moirai_tf.placement import json_text, schedule_to_json, solve
from moirai_tf.placement.objective import LATENCY
from moirai_tf.placement.schedule import planned_orders
from moirai_tf.placement.solve import PlaceOptions, Wishes, tell_progress
from moirai_tf.progress import stage
from moirai_tf.rewrite.directory import stage_placed, unplaced
from moirai_tf.rewrite.kept_order import Order, plan_order
from moirai_tf.rewrite.make_plan import make_plan, plan_of_nothing
from moirai_tf.rewrite.plan import Plan
from moirai_tf.split.options import OFF, SplitOptions
from moirai_tf.summary import result_summary
from moirai_tf.verify import VerifyOptions, verify
from moirai_tf.wishes import limits_of, only_device

AUTO, PLANNED, RUNTIME = "auto", "planned", "runtime"


@dataclass(frozen=True)
class Import(ImportOptions, Pass):
    """Reads the SavedModel and flattens its signature; executes nothing.

    A model that was placed before is taken back to its original devices first.
    """

    name: ClassVar[str] = "import"
    requires: ClassVar[tuple[str, ...]] = ()

    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """Fills in `model` and `graph`."""
        load_op_libraries(self.op_library)
        model = unplaced(read_saved_model(item.source))
        return replace(item, model=model, graph=import_graph(model, self))


@dataclass(frozen=True)
class Prune(Pass):
    """Drops operators and control edges that one inference does not need."""

    name: ClassVar[str] = "prune"
    requires: ClassVar[tuple[str, ...]] = ("graph",)

    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """Replaces `graph`."""
        return replace(item, graph=prune(need(item.graph)))


@dataclass(frozen=True)
class Fuse(FuseOptions, Pass):
    """Merges operators that the backends fuse, and those that must share a device."""

    name: ClassVar[str] = "fuse"
    requires: ClassVar[tuple[str, ...]] = ("graph",)

    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """Fills in `coarse` and `expansion`."""
        types = sorted({device.type for device in item.cluster.devices})
        coarse, expansion = coarsen(need(item.graph), self, types)
        return replace(item, coarse=coarse, expansion=expansion)


@dataclass(frozen=True)
class Alone(Wishes, Pass):
    """Sees whether there is a choice: where one device alone can work, nothing is measured.

    The model then comes out as it was, with a plan that places nothing.
    """

    name: ClassVar[str] = "alone"
    requires: ClassVar[tuple[str, ...]] = ("graph", "coarse")

    profile_anyway: bool = option(
        False, "measure and place also where one device alone can run the model"
    )

    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """Fills in `alone` and `plan` if there is no choice."""
        wishes = (self.pin, self.forbid, self.memory_limit)
        if self.profile_anyway or any(wishes):
            return item
        alone = only_device(need(item.coarse), item.cluster)
        if not alone:
            return item
        return replace(item, alone=alone, plan=plan_of_nothing(need(item.graph), item.cluster))


@dataclass(frozen=True)
class Profile(ProfileOptions, Pass):
    """Finds what every operator costs on every device: measured, computed, or from a file."""

    name: ClassVar[str] = "profile"
    chooses: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("model", "coarse")

    def precheck(self, item: MoiraiItem) -> None:
        """Refuses GPUs that TensorFlow knows nothing of, unless a table does."""
        if not self.costs or self.refresh:
            require_gpu_kernels([d.name for d in item.cluster.devices if d.type == "GPU"])

    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """Fills in `costs`.

        Raises:
          MoiraiError: what has no weights is to be measured.
        """
        costs = profile(need(item.model), need(item.coarse), item.cluster, self._options(item))
        return replace(item, costs=costs)

    def _options(self, item: MoiraiItem) -> ProfileOptions:
        """The options, without measuring where nothing can run."""
        if not need(item.model).weightless or (self.costs and not self.refresh):
            return self
        if self.source == MEASURE or self.refresh:
            raise MoiraiError(
                f"{item.source} has no weights, so it cannot be measured",
                why="its variables have a shape and a type, but no values anywhere",
                fix="compute its costs with source=analytical, or give a table (--costs)",
            )
        return replace(self, source=ANALYTICAL)


@dataclass(frozen=True)
class Place(PlaceOptions, Pass):
    """Decides which device runs which operator, and proves how good that is."""

    name: ClassVar[str] = "place"
    chooses: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("coarse", "expansion", "costs")

    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """Fills in `problem`, `result` and `plan`."""
        coarse = need(item.coarse)
        problem = build_problem(
            coarse,
            item.cluster,
            need(item.costs),
            transfers=self.transfers,
            congestion=self.congestion,
        )
        chooser = Chooser(coarse, need(item.costs), item.cluster.client)
        limits = limits_of(coarse, item.cluster, problem, self.pin)
        if self.objective == LATENCY:
            share, other_share = chooser.shares_of_time
            with stage("search for the fastest schedule"):
                problem, result = self._within(share).solve(problem, limits=limits)
            with stage("look for schedules that move less"):
                result = chooser.fastest(
                    problem,
                    result,
                    lambda other: solve(other, self._within(other_share), tell_progress),
                    self.time_limit_s * other_share,
                )
            result = chooser.worth_it(problem, result)
        else:
            problem, result = self.solve(problem, limits=limits)
        schedule, single = need(result.schedule), result.single_schedule
        summary = result_summary(
            problem,
            result,
            chooser.predicted(problem, schedule),
            None if single is None else chooser.predicted(problem, single),
            need(item.costs).computed,
            [peak.total_bytes for peak in peak_memory(coarse, problem, schedule, need(item.costs))],
        )
        plan = make_plan(
            need(item.graph), need(item.expansion), item.cluster, problem, schedule, summary
        )
        return replace(item, problem=problem, result=result, plan=plan)

    def _within(self, share: float) -> Place:
        """The same with a share of the time."""
        return replace(self, time_limit_s=self.time_limit_s * share)


@dataclass(frozen=True)
class Split(SplitOptions, Pass):
    """Divides the batch of a request over devices where that is faster.

    It stands behind `Place`, since only a placement of both models can tell: the passes before it
    run once more on the model that divides, with the options that they had.
    """

    name: ClassVar[str] = "split"
    chooses: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("model", "graph", "costs", "problem", "plan")

    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """Replaces everything from `model` on by what the divided model gives, or nothing."""
        if self.split == OFF:
            return item
        again = (Fuse, Profile, Place)
        values = {k: v for step in again for k, v in item.options.get(step.name, {}).items()}
        if self.split == AUTO and (values.get("costs") or values.get("objective") != LATENCY):
            return item
        pipeline = Pipeline(configured(again, values))
        return divided(item, self, pipeline.run)


@dataclass(frozen=True)
class Rewrite(Pass):
    """Writes the plan into a copy of the SavedModel, complete, beside its final place."""

    name: ClassVar[str] = "rewrite"
    requires: ClassVar[tuple[str, ...]] = ("model", "graph", "plan")

    output_dir: str = option("", "directory to write; empty: the input's name with _moirai")
    overwrite: bool = option(False, "replace the output directory if it exists")
    order: str = option(
        "auto",
        "whose order a device follows: the planned one, written as control edges, the runtime's, "
        "or auto: the planned one where several devices have work",
        choices=(AUTO, PLANNED, RUNTIME),
    )

    def precheck(self, item: MoiraiItem) -> None:
        """Refuses an output that exists or overlaps the input."""
        check_apart(item.source, self._output(item))
        check_output(self._output(item), overwrite=self.overwrite)

    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """Fills in `staged`, and the plan's order and edits."""
        order = self._order(item)
        plan = _promised(need(item.plan), order)
        staged, plan = stage_placed(
            need(item.model), need(item.graph), replace(plan, options=_recorded(item)),
            self._output(item), overwrite=self.overwrite, order=order,
            schedule=_schedule_text(item), split=item.split,
        )  # fmt: skip
        return replace(item, plan=plan, staged=staged)

    def _order(self, item: MoiraiItem) -> Order | None:
        """The order to write; None leaves it to TensorFlow.

        Raises:
          MoiraiError: the planned order is asked for, but nothing planned one.
        """
        schedule = None if item.result is None else item.result.schedule
        if item.alone:
            return None
        if self.order == PLANNED and (schedule is None or item.coarse is None):
            raise MoiraiError(
                "order is 'planned', but no pass before this one made a schedule",
                why="a placement alone does not say in which order a device runs its operators",
                fix="use the pass Place, or order='runtime'",
            )
        if self.order == RUNTIME or schedule is None or item.coarse is None:
            return None
        orders = planned_orders(schedule)
        if self.order == AUTO and len(orders) < 2:
            return None
        return plan_order(need(item.model), item.coarse, orders, need(item.plan).placement)

    def _output(self, item: MoiraiItem) -> Path:
        return Path(self.output_dir or default_output(item.source))


@dataclass(frozen=True)
class Verify(VerifyOptions, Pass):
    """Runs original and placed model and proves values, placement and transfers."""

    name: ClassVar[str] = "verify"
    requires: ClassVar[tuple[str, ...]] = ("model", "staged", "plan")

    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """Fills in `report`; without weights there is nothing to run."""
        if need(item.model).weightless:
            return item
        return replace(
            item, report=verify(item.source, need(item.staged).directory, self, item.cluster)
        )


@dataclass(frozen=True)
class Publish(Pass):
    """Puts the staged model in its place: only what was verified is ever seen there."""

    name: ClassVar[str] = "publish"
    requires: ClassVar[tuple[str, ...]] = ("staged",)

    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """Fills in `output`; nothing is staged any more."""
        return replace(item, output=publish(need(item.staged)), staged=None)


PASSES = (Import, Prune, Fuse, Alone, Profile, Place, Split, Rewrite, Verify, Publish)


def _promised(plan: Plan, order: Order | None) -> Plan:
    """The plan with the latency of the order that its devices will follow."""
    summary = plan.summary
    if summary is None:
        return plan
    if order is not None:
        return replace(plan, summary=replace(summary, order=order.summary))
    predicted_ns = summary.queued_ns + summary.step_ns
    return replace(plan, summary=replace(summary, predicted_ns=predicted_ns))


def _schedule_text(item: MoiraiItem) -> str:
    """The schedule behind the plan as the text of a file; empty if nothing made one."""
    schedule = None if item.result is None else item.result.schedule
    return "" if schedule is None else json_text(schedule_to_json(need(item.problem), schedule))


def _recorded(item: MoiraiItem) -> dict[str, dict[str, Any]]:
    """The options that shaped the plan, in plain JSON types."""
    recorded: dict[str, dict[str, Any]] = json.loads(json.dumps(item.options))
    imported = recorded.get(Import.name, {})
    if imported.pop("inputs", ""):
        imported["input_shapes"] = shape_options(need(item.graph))
    return recorded


def default_output(source: Path) -> Path:
    """`model` -> `model_moirai`, beside it."""
    source = real_path(source)
    return source.with_name(f"{source.name}_moirai")

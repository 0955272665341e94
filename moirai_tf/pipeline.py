"""Passes from item to item, and pipelines of them that can be printed, cut, reordered, extended."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from moirai_tf.errors import MoiraiError, file_errors
from moirai_tf.options import check_options, options_of
from moirai_tf.progress import stage
from moirai_tf.runtime.nursery import nursery

if TYPE_CHECKING:
    from moirai_tf.cluster import Cluster
    from moirai_tf.cost.table import CostTable
    from moirai_tf.fusion.coarse import CoarseGraph, Expansion
    from moirai_tf.graph.graph import Graph
    from moirai_tf.model.output import Staged
    from moirai_tf.model.saved_model import SavedModel
    from moirai_tf.placement import Problem, Result
    from moirai_tf.rewrite.plan import Plan
    from moirai_tf.split.record import SplitEdit
    from moirai_tf.verify import VerifyReport

T = TypeVar("T")


@dataclass(frozen=True)
class MoiraiItem:
    """What flows through a pipeline; every pass fills in one more stage.

    It is to a pipeline what `GrapplerItem` is to Grappler's optimizers.
    """

    source: Path
    """Directory of the input SavedModel; only ever read."""
    cluster: Cluster
    model: SavedModel | None = None
    graph: Graph | None = None
    coarse: CoarseGraph | None = None
    expansion: Expansion | None = None
    costs: CostTable | None = None
    alone: str = ""
    """The device that alone can work, and why, if there is nothing to choose; else empty."""
    problem: Problem | None = None
    result: Result | None = None
    plan: Plan | None = None
    staged: Staged | None = None
    """The placed model, complete but not yet in its place."""
    output: Path | None = None
    report: VerifyReport | None = None
    split: SplitEdit | None = None
    """How the batch of `model` was divided."""
    undivided: str = ""
    """Why it was not, if that was considered."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Pass -> option -> value, for the passes that have run."""


class Pass(ABC):
    """A frozen dataclass whose fields are its options, called with an item."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    """Fields of the item that must be there."""
    chooses: ClassVar[bool] = False
    """Whether the pass is for choosing among devices, and is left out where one is alone."""

    def precheck(self, item: MoiraiItem) -> None:  # noqa: B027  most passes have nothing to check
        """Refuses, before any pass runs, what is bound to fail later."""

    @abstractmethod
    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """The item with one more stage."""


Hook = Callable[[Pass, MoiraiItem], MoiraiItem | None]
"""Called after every pass with its result; may return another item to go on with."""


def need(value: T | None) -> T:
    """A value that must be there: a stage that `requires` guarantees, a schedule that was found."""
    assert value is not None
    return value


@dataclass(frozen=True)
class Pipeline:
    """Passes that run one after the other."""

    passes: tuple[Pass, ...]

    def run(self, item: MoiraiItem, hook: Hook | None = None) -> MoiraiItem:
        """Runs every pass.

        Raises:
          MoiraiError: a pass needs a stage that no pass before it made, or a pass failed.
        """
        for step in self.passes:
            with file_errors(f"pass {step.name!r} cannot use a file"):
                step.precheck(item)
        try:
            with nursery():
                for step in self.passes:
                    item = self._step(step, item, hook)
        except BaseException:
            if item.staged is not None:
                from moirai_tf.model.output import discard

                discard(item.staged)
            raise
        return item

    @staticmethod
    def _step(step: Pass, item: MoiraiItem, hook: Hook | None) -> MoiraiItem:
        if step.chooses and item.alone:
            return item
        _check_requirements(step, item)
        with stage(step.name), file_errors(f"pass {step.name!r} cannot use a file"):
            item = step(item)
        item = replace(item, options={**item.options, step.name: pass_options(step)})
        return (hook(step, item) if hook is not None else None) or item

    def until(self, name: str) -> Pipeline:
        """The passes up to and including the named one."""
        return Pipeline(self.passes[: self._position(name) + 1])

    def after(self, name: str, *more: Pass) -> Pipeline:
        """With more passes behind the named one."""
        at = self._position(name) + 1
        return Pipeline((*self.passes[:at], *more, *self.passes[at:]))

    def without(self, name: str) -> Pipeline:
        """Without the named pass."""
        at = self._position(name)
        return Pipeline((*self.passes[:at], *self.passes[at + 1 :]))

    def replaced(self, step: Pass) -> Pipeline:
        """With another pass in the place of the one of the same name."""
        at = self._position(step.name)
        return Pipeline((*self.passes[:at], step, *self.passes[at + 1 :]))

    def __str__(self) -> str:
        return "\n".join(
            f"{step.name}({', '.join(f'{k}={v!r}' for k, v in pass_options(step).items())})"
            for step in self.passes
        )

    def _position(self, name: str) -> int:
        names = [step.name for step in self.passes]
        if name in names:
            return names.index(name)
        raise MoiraiError(
            f"the pipeline has no pass {name!r}",
            why="passes are found by name",
            fix=f"use one of {', '.join(names)}",
        )


def pass_options(step: Pass) -> dict[str, Any]:
    """Option -> value of one pass."""
    return {known.name: getattr(step, known.name) for known in options_of(type(step))}


def configured(passes: Sequence[type[T]], values: dict[str, Any]) -> tuple[T, ...]:
    """Makes each pass with those of the values that are options of it.

    Raises:
      MoiraiError: a value is an option of no pass, or outside its choices.
    """
    known = {o.name for cls in passes for o in options_of(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise MoiraiError(
            f"there is no option {unknown[0]!r}",
            why="a misspelt option would silently change nothing",
            fix=f"use one of {', '.join(sorted(known))}",
        )
    made = []
    for cls in passes:
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        made.append(cls(**{k: v for k, v in values.items() if k in names}))
        check_options(made[-1])
    return tuple(made)


def _check_requirements(step: Pass, item: MoiraiItem) -> None:
    missing = [field for field in step.requires if getattr(item, field) is None]
    if missing:
        raise MoiraiError(
            f"pass {step.name!r} needs {missing[0]!r}, which no pass before it made",
            why="data flows one way: model, graph, coarse graph, costs, schedule, plan, model",
            fix="put the pass that makes it earlier in the pipeline",
        )

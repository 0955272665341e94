"""Whole directories: write a placed model, take the plan out of one, rename its devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moirai_tf.errors import MoiraiError, file_errors
from moirai_tf.graph.graph import Graph
from moirai_tf.model.load import SESSION_CONFIG_FILE, session_config_text
from moirai_tf.model.output import (
    Staged,
    check_apart,
    discard,
    read_fingerprint,
    stage,
    whole_directory,
    write_saved_model,
)
from moirai_tf.model.saved_model import SavedModel, read_saved_model
from moirai_tf.model.validate import violations
from moirai_tf.rewrite.apply import apply_placement
from moirai_tf.rewrite.diff import disordered, misplaced, unplanned_changes
from moirai_tf.rewrite.kept_order import Order
from moirai_tf.rewrite.plan import Edits, Plan
from moirai_tf.rewrite.plan_file import (
    PLAN_FILE,
    SCHEDULE_FILE,
    plan_to_json,
    read_plan,
    renamed_schedule,
)
from moirai_tf.rewrite.restore import split_restore
from moirai_tf.rewrite.undo import rename_devices, revert
from moirai_tf.split.divide import join
from moirai_tf.split.record import SplitEdit


def has_plan(directory: str | Path) -> bool:
    """Whether a SavedModel was placed by moirai_tf."""
    return (Path(directory) / PLAN_FILE).is_file()


def unplaced(model: SavedModel) -> SavedModel:
    """The model as it was before it was placed; the same model if it never was.

    Raises:
      MoiraiError: the plan does not fit the model.
    """
    if not has_plan(model.path):
        return model
    plan = read_plan(model.path)
    divided = before_placement(model, plan)
    join(divided.meta_graph(plan.tags), plan.edits.split)
    return divided


def before_placement(model: SavedModel, plan: Plan) -> SavedModel:
    """A placed model without devices and order; if its batch was divided, it is so still.

    Raises:
      MoiraiError: the plan does not fit the model.
    """
    reverted = model.copied()
    meta_graph = reverted.meta_graph(plan.tags)
    revert(meta_graph, plan.edits)
    _check_undone(meta_graph, model.meta_graph(plan.tags), plan)
    return reverted


@file_errors("the placed model cannot be written")
def stage_placed(
    model: SavedModel,
    graph: Graph,
    plan: Plan,
    output: Path,
    *,
    overwrite: bool,
    order: Order | None = None,
    schedule: str = "",
    split: SplitEdit | None = None,
) -> tuple[Staged, Plan]:
    """Writes the model with the plan's placement beside the output; `publish` puts it there.

    Args:
      model: the model without a placement (see `unplaced`); divided if there is a split.
      graph: the flat graph of the plan's signature.
      plan: placement and summary; its edits are made here.
      output: the directory to make.
      overwrite: whether it may replace an existing one.
      order: the control edges to write; None leaves the order to TensorFlow.
      schedule: text of the schedule file behind the plan; empty if there is none.
      split: how the batch of the model was divided; None if it was not.

    Returns:
      The staged directory, and the plan with its edits.

    Raises:
      MoiraiError: the output exists, overlaps the input, or the written model differs from the
        original in more than the plan says.
    """
    check_apart(model.path, output)
    written = model.copied()
    meta_graph, order = written.meta_graph(plan.tags), order or Order()
    edits = _placed(meta_graph, graph, plan, order) if plan.placement else Edits()
    edits = replace(edits, fingerprint=_original_fingerprint(model).hex(), split=split)
    plan = replace(plan, order=order.promises, edits=edits)
    _check(model, meta_graph, plan)
    staged = stage(output, overwrite=overwrite)
    try:
        write_saved_model(model, written.proto, staged.directory, _plan_files(plan, schedule))
    except BaseException:
        discard(staged)
        raise
    return staged, plan


def _placed(meta_graph: Any, graph: Graph, plan: Plan, order: Order) -> Edits:
    edits = apply_placement(meta_graph, graph, plan.placement, plan.client, order)
    return replace(edits, restore=split_restore(meta_graph, plan))


@file_errors("the model cannot be written")
def strip(placed: str | Path, output: str | Path, *, overwrite: bool = False) -> None:
    """Writes a placed model with exactly the devices that it had before.

    Raises:
      MoiraiError: the model holds no plan, was changed since, or the output cannot be written.
    """
    plan = read_plan(placed)
    model = read_saved_model(placed)
    check_apart(model.path, Path(output))
    original = unplaced(model)
    without_plan = {PLAN_FILE: "", SCHEDULE_FILE: "", SESSION_CONFIG_FILE: ""}
    with whole_directory(Path(output), overwrite=overwrite) as work:
        write_saved_model(
            model, original.proto, work, without_plan, bytes.fromhex(plan.edits.fingerprint) or None
        )


@file_errors("the model cannot be written")
def remap(
    placed: str | Path, output: str | Path, names: Mapping[str, str], *, overwrite: bool = False
) -> Plan:
    """Writes a placed model whose devices have other names; returns its plan.

    Args:
      placed: a model that was placed.
      output: the directory to make.
      names: old device -> new device.
      overwrite: whether the output may replace an existing one.

    Raises:
      MoiraiError: as `strip`, or a device that is not in the plan.
    """
    plan = read_plan(placed)
    model = read_saved_model(placed)
    check_apart(model.path, Path(output))
    original = before_placement(model, plan).meta_graph(plan.tags)
    renamed = model.copied()
    meta_graph = renamed.meta_graph(plan.tags)
    plan = rename_devices(meta_graph, plan, names)
    _check_undone(original, meta_graph, plan)
    schedule = renamed_schedule(placed, names)
    with whole_directory(Path(output), overwrite=overwrite) as work:
        write_saved_model(model, renamed.proto, work, _plan_files(plan, schedule))
    return plan


def _plan_files(plan: Plan, schedule: str) -> dict[Path, str]:
    config = session_config_text(d.name for d in plan.devices) if plan.servable else ""
    return {
        PLAN_FILE: plan_to_json(plan),
        SCHEDULE_FILE: schedule,
        SESSION_CONFIG_FILE: config,
    }


def _original_fingerprint(model: SavedModel) -> bytes:
    if has_plan(model.path):
        return bytes.fromhex(read_plan(model.path).edits.fingerprint)
    return read_fingerprint(model)


def _check(model: SavedModel, placed: Any, plan: Plan) -> None:
    broken = _faults(model.meta_graph(plan.tags), placed, plan)
    if broken:
        raise MoiraiError(
            f"the rewritten model breaks its plan: {broken[0]} ({len(broken)} in all)",
            why="a model that differs from the plan could compute or run something else",
            fix="report this model; nothing was written",
        )


def _faults(original: Any, placed: Any, plan: Plan) -> list[str]:
    """What the checker says of a placed model and its plan."""
    return [
        *unplanned_changes(original, placed, plan),
        *misplaced(placed, plan),
        *disordered(placed, plan),
    ]


def _check_undone(original: Any, placed: Any, plan: Plan) -> None:
    """Refuses a plan that leads from no sound model to the placed one: it was changed."""
    broken = [*violations(original), *_faults(original, placed, plan)]
    if broken:
        raise MoiraiError(
            f"the plan does not fit the model: {broken[0]} ({len(broken)} in all)",
            why="a plan that was changed would take other things out than were put in",
            fix="optimise the original model again",
        )

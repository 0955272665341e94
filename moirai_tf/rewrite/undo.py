"""Takes a plan out of a MetaGraph again, or renames its devices."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from moirai_tf.cluster.cluster import Device, device_type
from moirai_tf.errors import MoiraiError
from moirai_tf.model.validate import function_attrs
from moirai_tf.rewrite.apply import rename_function
from moirai_tf.rewrite.plan import Edits, Plan, PlanDevice
from moirai_tf.rewrite.restore import join_restore, misfit_restore, split_restore


def revert(meta_graph: Any, edits: Edits) -> None:
    """Gives a placed MetaGraph its original devices and functions back, in place.

    Raises:
      MoiraiError: the model is not the one that the edits were made to.
    """
    _check(meta_graph, edits)
    join_restore(meta_graph, edits.restore)
    bodies = _bodies(meta_graph)
    for wait in edits.order:
        if wait.function not in edits.clones:
            bodies[wait.function][wait.node].input.remove(f"^{wait.before}")
    for call in edits.calls:
        if call.function not in edits.clones:
            node = bodies[call.function][call.node]
            rename_function(node, call.attr, call.index, call.before)
    for edit in edits.nodes:
        if edit.function not in edits.clones:
            bodies[edit.function][edit.node].device = edit.before
    functions = meta_graph.graph_def.library.function
    _remove(meta_graph.graph_def.node, {r.node for r in edits.relays if not r.function})
    for function in functions:
        name = function.signature.name
        _remove(function.node_def, {r.node for r in edits.relays if r.function == name})
    for i in reversed(range(len(functions))):
        if functions[i].signature.name in edits.clones:
            del functions[i]
    for change in edits.objects:
        holder = meta_graph.object_graph_def.nodes[change.node_id]
        getattr(holder, change.kind).device = change.before


def rename_devices(meta_graph: Any, plan: Plan, names: Mapping[str, str]) -> Plan:
    """Renames the devices of a plan in a placed MetaGraph, in place; returns the renamed plan.

    Args:
      meta_graph: the placed `MetaGraphDef`; it is changed.
      plan: its plan.
      names: old device -> new device.

    Raises:
      MoiraiError: a device is not in the plan, or two would become one.
    """
    _check_names(plan, names)
    _check(meta_graph, plan.edits)
    join_restore(meta_graph, plan.edits.restore)
    bodies = _bodies(meta_graph)
    nodes = tuple(replace(e, after=names.get(e.after, e.after)) for e in plan.edits.nodes)
    objects = tuple(replace(e, after=names.get(e.after, e.after)) for e in plan.edits.objects)
    for edit in nodes:
        bodies[edit.function][edit.node].device = edit.after
    for change in objects:
        holder = meta_graph.object_graph_def.nodes[change.node_id]
        getattr(holder, change.kind).device = change.after
    renamed = replace(
        plan,
        devices=tuple(_renamed(d, names.get(d.name, d.name)) for d in plan.devices),
        client=names.get(plan.client, plan.client),
        placement={name: names.get(d, d) for name, d in plan.placement.items()},
        transfers=tuple(
            replace(t, source=names.get(t.source, t.source), target=names.get(t.target, t.target))
            for t in plan.transfers
        ),
        edits=replace(plan.edits, nodes=nodes, objects=objects),
    )
    restore = split_restore(meta_graph, renamed)
    return replace(renamed, edits=replace(renamed.edits, restore=restore))


def _renamed(device: PlanDevice, name: str) -> PlanDevice:
    """The device under another name: a GPU stays one of its model, unless it becomes a CPU."""
    kind = device_type(name)
    model = device.model if kind == device.type else ""
    return replace(device, name=name, type=kind, model=model)


def _remove(body: Any, names: Collection[str]) -> None:
    for i in reversed(range(len(body) if names else 0)):
        if body[i].name in names:
            del body[i]


def _bodies(meta_graph: Any) -> dict[str, dict[str, Any]]:
    bodies = {"": {n.name: n for n in meta_graph.graph_def.node}}
    for function in meta_graph.graph_def.library.function:
        bodies[function.signature.name] = {n.name: n for n in function.node_def}
    return bodies


def _check(meta_graph: Any, edits: Edits) -> None:
    for misfit in _misfits(meta_graph, edits):
        raise MoiraiError(
            f"{misfit}, as the plan says",
            why="the model was changed after it was placed, so the plan no longer fits it",
            fix="optimise the original model again",
        )


def _misfits(meta_graph: Any, edits: Edits) -> Iterator[str]:
    """Edits of the plan that are not in the model."""
    bodies = _bodies(meta_graph)
    yield from (f"there is no function {name!r}" for name in edits.clones if name not in bodies)
    for made in (edits.nodes, edits.calls, edits.objects, edits.relays, edits.order):
        if len(set(made)) < len(made):
            yield "not every edit was made once"
    for edit in edits.nodes:
        node = bodies.get(edit.function, {}).get(edit.node)
        if node is None or node.device != edit.after:
            where = edit.function or "the main graph"
            yield f"node {edit.node!r} of {where} is not on {edit.after}"
    for call in edits.calls:
        node = bodies.get(call.function, {}).get(call.node)
        named = () if node is None else function_attrs(node)
        if (call.attr, call.index, call.after) not in [(a, i, f.name) for a, i, f in named]:
            yield f"node {call.node!r} does not call {call.after!r}"
    for wait in edits.order:
        node = bodies.get(wait.function, {}).get(wait.node)
        if node is None or f"^{wait.before}" not in node.input:
            yield f"node {wait.node!r} does not wait for {wait.before!r}"
    yield from _misfit_relays(bodies, edits)
    yield from misfit_restore(meta_graph, edits.restore)
    objects = meta_graph.object_graph_def.nodes
    for change in edits.objects:
        known = 0 <= change.node_id < len(objects)
        kind = objects[change.node_id].WhichOneof("kind") if known else None
        if kind != change.kind or getattr(objects[change.node_id], kind).device != change.after:
            yield f"object {change.node_id} is not a {change.kind} on {change.after}"


def _misfit_relays(bodies: Mapping[str, Mapping[str, Any]], edits: Edits) -> Iterator[str]:
    for relay in edits.relays:
        node = bodies.get(relay.function, {}).get(relay.node)
        if node is None or node.op != "Identity" or list(node.input) != [relay.source]:
            yield f"node {relay.node!r} does not pass on {relay.source!r}"


def _check_names(plan: Plan, names: Mapping[str, str]) -> None:
    known = {d.name for d in plan.devices}
    unknown = sorted(set(names) - known)
    if unknown:
        raise MoiraiError(
            f"the plan has no device {unknown[0]!r}",
            why="only devices of the plan can be renamed",
            fix=f"use one of {', '.join(sorted(known))}",
        )
    for name in names.values():
        try:
            Device(name, device_type(name))
        except MoiraiError as error:
            raise MoiraiError(
                f"{name!r} is no new name of a device: {error.rule}",
                why="TensorFlow runs an operator on a device that it does not know elsewhere",
                fix="give names such as /device:CPU:1 or /job:worker/replica:0/task:0/device:GPU:0",
            ) from error
    renamed = [names.get(d, d) for d in sorted(known)]
    if len(set(renamed)) < len(renamed):
        raise MoiraiError(
            "two devices of the plan would get the same name",
            why="the plan's transfers and memory limits hold for separate devices",
            fix="give every device a name of its own",
        )

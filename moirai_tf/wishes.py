"""Pins on operators, and what the model itself rules out, as limits of a placement problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moirai_tf.cluster import Cluster
from moirai_tf.cluster.names import short_devices
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.graph.graph import CLIENT_OPS
from moirai_tf.placement import Problem
from moirai_tf.placement.constraints import Limit, pinned
from moirai_tf.runtime.devices import local_devices


def limits_of(
    coarse: CoarseGraph, cluster: Cluster, problem: Problem, pins: Sequence[str]
) -> list[Limit]:
    """Why fused operators cannot be on every device, said of the operators in them.

    Args:
      coarse: the fused operators.
      cluster: the devices.
      problem: made of both.
      pins: `regex=device`; an operator is fused into what it is pinned with.

    Raises:
      MoiraiError: a pin is not of that form, or names no device or no operator.
    """
    held = [limit for pin in pins for limit in _pinned(coarse, problem, pin)]
    return [*_natural(coarse, cluster), *held]


def only_device(coarse: CoarseGraph, cluster: Cluster) -> str:
    """The device that alone can run the model as it is, and why; empty if there is a choice.

    That is a CPU of this process, with room for the model, where nothing else has a kernel for any
    operator that computes, and where the model asks for nothing else.
    """
    (client,) = (device for device in cluster.devices if device.name == cluster.client)
    asked = {operator.node.device for operator in coarse.fine.operators}
    here = {device.name for device in local_devices() if device.type != "CPU"}
    if not client.local or client.type != "CPU" or here - _names(cluster):
        return ""
    if any(device and not device.lower().endswith("cpu:0") for device in asked):
        return ""
    if client.memory_bytes is not None and _needed_bytes(coarse) > client.memory_bytes:
        return ""
    name = short_devices(_names(cluster))[client.name]
    others = [device for device in cluster.devices if device.name != client.name]
    if not others:
        return f"{name}, the only one there is; nothing was measured"
    able = {
        device_type
        for operator in coarse.fine.operators
        if operator.op not in CLIENT_OPS | _MERE
        for device_type in operator.device_types
    }
    if able & {device.type for device in others}:
        return ""
    return f"{name}, the only one that has kernels for what computes; nothing was measured"


_MERE = frozenset({"Const", "Identity", "NoOp"})
"""Operators that are nothing to have a device for."""


def _names(cluster: Cluster) -> set[str]:
    return {device.name for device in cluster.devices}


def _needed_bytes(coarse: CoarseGraph) -> int:
    """Weights, and all outputs of a step at once."""
    operators = coarse.fine.operators
    return sum(o.weight_bytes + sum(spec.nbytes for spec in o.outputs) for o in operators)


def _natural(coarse: CoarseGraph, cluster: Cluster) -> Iterator[Limit]:
    """Feeds and fetches are with the client, and not every op has a kernel everywhere."""
    types = {device.type for device in cluster.devices}
    for index, fused in enumerate(coarse.operators):
        for member in fused.members:
            operator = coarse.fine.operators[member]
            shown = f"{operator.name!r} ({operator.op})"
            if operator.op in CLIENT_OPS:
                here = {k for k, d in enumerate(cluster.devices) if d.name == cluster.client}
                reason = f"{shown} is fed or fetched by the client, {cluster.client}"
            elif types <= set(operator.device_types):
                continue
            else:
                able = set(operator.device_types)
                here = {k for k, d in enumerate(cluster.devices) if d.type in able}
                reason = f"{shown} has kernels for {', '.join(sorted(able)) or 'no device'} only"
            yield Limit(index, frozenset(here), reason)


def _pinned(coarse: CoarseGraph, problem: Problem, pin: str) -> Iterator[Limit]:
    fine = coarse.fine
    names = [[fine.operators[m].name for m in fused.members] for fused in coarse.operators]
    for index, name, devices in pinned(problem, pin, names):
        reason = f"pin {pin!r} holds {name!r}{_inside(coarse, index, fine.index[name])}"
        yield Limit(index, devices, reason, f"pin {pin!r}")


def _inside(coarse: CoarseGraph, index: int, member: int) -> str:
    """What holds a member together with the rest of its fused operator."""
    fused, fine = coarse.operators[index], coarse.fine
    if len(fused.members) == 1:
        return ""
    groups = [g.reason for g in fine.colocation if member in g.members]
    ties = [f"shares a device with others ({', '.join(groups)})"] if groups else []
    if fused.rule != "colocation":
        own = fine.operators[member].name == fused.name
        ties.append(f"is fused {'with others' if own else f'into {fused.name!r}'} ({fused.rule})")
    return f", which {' and '.join(ties)}" if ties else ""

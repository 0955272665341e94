"""Makes a model runnable and comparable here, in a temporary copy if it must be changed.

Two things are changed: devices that this machine lacks become logical CPUs, one for one, and
random operators without a seed get one, the same in original and placed model.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorflow.python.framework import device as device_lib
from tensorflow.python.framework import op_def_registry

from moirai_tf.model.op_types import attr_of
from moirai_tf.model.output import written
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.rewrite.directory import has_plan
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.undo import rename_devices
from moirai_tf.runtime.devices import check_models, local_devices
from moirai_tf.verify.partition import local_device

_CLIENT = "/device:CPU:0"
"""Where a process feeds and fetches."""


def stand_ins(plan: Plan, gpus: int) -> dict[str, str]:
    """Device of the plan -> device of this machine.

    Devices stand for themselves if all of them are here: logical CPUs of this process, with the
    client on the first, and as many GPUs as there are. Otherwise each is a logical CPU of its own.

    Args:
      plan: the plan.
      gpus: how many GPUs this process has.
    """
    names = [device.name for device in plan.devices]
    if all(_is_here(name, gpus) for name in names) and local_device(plan.client) == "CPU:0":
        return {name: name for name in names}
    order = sorted(names, key=lambda name: name != plan.client)
    return {name: f"/device:CPU:{i}" for i, name in enumerate(order)}


def stand_ins_here(plan: Plan) -> dict[str, str]:
    """The same for the devices that there are.

    Raises:
      MoiraiError: the plan's own devices are here, but a GPU is of another model.
    """
    here = local_devices()
    devices = stand_ins(plan, gpus=sum(device.type == "GPU" for device in here))
    if all(name == local for name, local in devices.items()):
        check_models(plan, here, "this process")
    return devices


def stand_in_original(model: SavedModel, tags: Sequence[str], work: Path) -> Path:
    """The directory to run instead of the original: itself, or a copy if it must be changed.

    Args:
      model: the original without a placement (see `unplaced`).
      tags: which of its MetaGraphs runs.
      work: where a copy goes.
    """
    if not (_unseeded(model.meta_graph(tags)) or has_plan(model.path)):
        return model.path
    seeded = model.copied()
    _seed(seeded.meta_graph(tags))
    return written(seeded, work)


def stand_in_placed(model: SavedModel, plan: Plan, devices: Mapping[str, str], work: Path) -> Path:
    """The same for the placed model, with its devices renamed.

    Raises:
      MoiraiError: a node is not on the device that the plan gave it.
    """
    renamed = any(name != local for name, local in devices.items())
    if not (_unseeded(model.meta_graph(plan.tags)) or renamed):
        return model.path
    here = model.copied()
    _seed(here.meta_graph(plan.tags))
    if renamed:
        rename_devices(here.meta_graph(plan.tags), plan, devices)
    return written(here, work)


def _is_here(name: str, gpus: int) -> bool:
    spec = device_lib.DeviceSpec.from_string(name)
    if (spec.job or "localhost") != "localhost":
        return False
    return spec.device_type == "CPU" or (
        spec.device_type == "GPU" and (spec.device_index or 0) < gpus
    )


def _seed(meta_graph: Any) -> None:
    """Seeds every random operator that has no seed."""
    for node in _unseeded(meta_graph):
        node.attr["seed"].i = 1
        node.attr["seed2"].i = 1 + zlib.crc32(node.name.encode())


def _unseeded(meta_graph: Any) -> list[Any]:
    return [
        node
        for node in _nodes(meta_graph.graph_def)
        if _is_random(node.op) and not (attr_of(node, "seed").i or attr_of(node, "seed2").i)
    ]


def _is_random(op: str) -> bool:
    definition = op_def_registry.get(op)
    names = {attr.name for attr in definition.attr} if definition is not None else set()
    return {"seed", "seed2"} <= names


def _nodes(graph_def: Any) -> Iterator[Any]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def

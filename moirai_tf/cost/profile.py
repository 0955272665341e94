"""Makes a cost table: measured where a device can be reached, computed elsewhere, or read."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import tensorflow as tf

from moirai_tf.cluster import Cluster, Device
from moirai_tf.cost.analytical import Column, Counts, analytical
from moirai_tf.cost.device_times import measure_devices
from moirai_tf.cost.gpu_steps import with_rests
from moirai_tf.cost.handling import measured_handling
from moirai_tf.cost.inputs import chosen_inputs
from moirai_tf.cost.link_times import measured_links
from moirai_tf.cost.measure import measure
from moirai_tf.cost.options import ANALYTICAL, MEASURE, ProfileOptions
from moirai_tf.cost.pooled import pooled
from moirai_tf.cost.steps import measured_slowdown, measured_step_cost
from moirai_tf.cost.table import (
    CostTable,
    DeviceProfile,
    MeasuredLink,
    StepCost,
    by_operator,
    described_inputs,
    fingerprint,
)
from moirai_tf.cost.table_files import merged, read_table
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.graph.graph import Graph
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.options import check_options
from moirai_tf.progress import stage
from moirai_tf.runtime.child import Child
from moirai_tf.runtime.devices import has_gpus_here
from moirai_tf.runtime.identity import worker_facts

_CHILD = Child(
    "profiling",
    timeout_s=7200.0,
    longer="use smaller inputs or fewer runs (--repeats), or --source=analytical",
)


def profile(
    model: SavedModel,
    coarse: CoarseGraph,
    cluster: Cluster,
    options: ProfileOptions | None = None,
) -> CostTable:
    """What every operator of a graph costs on every device of a cluster.

    Logical CPUs of one process are the same hardware: they are measured once, and each takes its
    declared speed from the cluster file. A server's devices, and those of a machine with GPUs, are
    measured one by one; GPUs of this machine in a process of its own, which leaves their memory to
    this one.

    Args:
      model: the SavedModel that the graph was imported from; loaded only to be measured.
      coarse: its fused operators: costs are of the operators in them, and what is fused is timed
        together.
      cluster: the devices.
      options: where the costs come from.

    Raises:
      MoiraiError: an option is wrong, a worker is missing or dies, the model cannot be run, a
        device that cannot be reached lacks a property, or the given table does not fit.
    """
    options = options or ProfileOptions()
    check_options(options)
    _check(options, cluster)
    if not options.costs:
        return _in_a_process(model, coarse, cluster, cluster.devices, options)
    table = read_table(options.costs)
    table.require_graph(coarse.fine)
    stale = _to_refresh(table, cluster, options)
    if stale:
        table = merged([table, _in_a_process(model, coarse, cluster, stale, options)])
    table.require_fit(coarse.fine, cluster)
    return table


def _to_refresh(table: CostTable, cluster: Cluster, options: ProfileOptions) -> list[Device]:
    changed = table.changed_devices(cluster) if "changed" in options.refresh else {}
    return [d for d in cluster.devices if d.name in changed or d.name in options.refresh]


def _in_a_process(
    model: SavedModel,
    coarse: CoarseGraph,
    cluster: Cluster,
    devices: Sequence[Device],
    options: ProfileOptions,
) -> CostTable:
    """A table of some devices of a cluster, made in the right process."""
    profiled = partial(_profiled, model, coarse, cluster, devices, options)
    in_child = _measures_sessions(cluster, options) and not cluster.remote
    return _CHILD.call(profiled) if in_child else profiled()


def _profiled(
    model: SavedModel,
    coarse: CoarseGraph,
    cluster: Cluster,
    devices: Sequence[Device],
    options: ProfileOptions,
) -> CostTable:
    """A table of some devices of a cluster."""
    graph = coarse.fine
    columns: dict[str, Column] = {}
    profiles: dict[str, DeviceProfile] = {}
    in_sessions = _measures_sessions(cluster, options)
    with stage("ask the workers what they are"):
        facts = worker_facts(cluster) if in_sessions else {}
    measures_links = _measures_links(cluster, options)
    with stage("time the links"):
        links = measured_links(cluster) if measures_links else ()
        handling = measured_handling(cluster) if measures_links else {}
    step = StepCost()
    slowdown: dict[str, float] = {}
    if in_sessions:
        step, slowdown, measured = _in_sessions(
            model, coarse, cluster, devices, facts, links, options
        )
        for device in devices:
            times, profiles[device.name] = measured[device.name]
            columns[device.name] = _measured_column(graph, device, times)
    else:
        _here_or_computed(model, graph, devices, options, columns, profiles)
    return CostTable(
        signature=graph.signature,
        inputs=described_inputs(graph),
        fingerprint=fingerprint(graph),
        versions=_versions(),
        machine=_machine(),
        devices=tuple(profiles[device.name] for device in devices),
        operators=by_operator(graph, [columns[device.name] for device in devices]),
        links=links,
        step=step,
        handling=handling,
        slowdown=slowdown,
        options={name: str(getattr(options, name)) for name in ("source", "repeats", "warmup",
                                                                "inputs", "seed", "trip_count")},
    )  # fmt: skip


def _in_sessions(
    model: SavedModel,
    coarse: CoarseGraph,
    cluster: Cluster,
    devices: Sequence[Device],
    facts: Mapping[str, Mapping[str, str]],
    links: Sequence[MeasuredLink],
    options: ProfileOptions,
) -> tuple[StepCost, dict[str, float], dict[str, tuple[list[int | None], DeviceProfile]]]:
    """A step's cost, slow-downs, and times of every operator on devices that Sessions reach."""
    graph = coarse.fine
    inputs = chosen_inputs(graph, options.inputs, options.seed)
    with stage("time a step that does nothing"):
        step = measured_step_cost(graph, cluster, inputs)
    with ExitStack() as sessions:
        measured = measure_devices(
            model, coarse, cluster, [device.name for device in devices], inputs, step, links,
            sessions, repeats=options.repeats, warmup=options.warmup,
        )  # fmt: skip
        ready = {name: found.step for name, found in measured.items() if found.step}
        with stage("time all devices together"):
            slowdown = measured_slowdown(
                model, coarse, cluster, inputs, ready, repeats=options.repeats
            )
    notes = {name: found.measurement for name, found in measured.items()}
    step = with_rests(step, cluster.client, notes)
    profiles = {
        device.name: DeviceProfile(device, MEASURE, notes[device.name], facts[device.name])
        for device in devices
    }
    shared = pooled({name: found.times_ns for name, found in measured.items()}, facts)
    return step, slowdown, {name: (shared[name], profiles[name]) for name in profiles}


def _here_or_computed(
    model: SavedModel,
    graph: Graph,
    devices: Sequence[Device],
    options: ProfileOptions,
    columns: dict[str, Column],
    profiles: dict[str, DeviceProfile],
) -> None:
    """Fills in the devices of this process, measured once for all, and those that are nowhere."""
    times: list[int] = []
    counts: Counts = {}
    measurement = None
    if any(_is_measured(device, options) for device in devices):
        times, measurement = measure(
            model,
            graph,
            chosen_inputs(graph, options.inputs, options.seed),
            repeats=options.repeats,
            warmup=options.warmup,
        )
    for device in devices:
        if _is_measured(device, options):
            columns[device.name] = _measured_column(graph, device, times)
            profiles[device.name] = DeviceProfile(device, MEASURE, measurement)
        else:
            columns[device.name] = _computed_column(graph, device, options, counts)
            profiles[device.name] = DeviceProfile(device, ANALYTICAL)


def _check(options: ProfileOptions, cluster: Cluster) -> None:
    for name, least in (("repeats", 1), ("warmup", 0), ("trip_count", 0)):
        if getattr(options, name) < least:
            raise _bad_option(name, getattr(options, name), f"give {least} or more")
    if options.source == "file" and not options.costs:
        raise _bad_option("source", "file", "give the table with costs=... (--costs)")
    if options.source in (MEASURE, ANALYTICAL) and options.costs:
        raise _bad_option("costs", options.costs, "drop it, or use source=file")
    known = {device.name for device in cluster.devices} | {"changed"}
    for name in options.refresh:
        if name not in known or not options.costs:
            raise _bad_option("refresh", name, "name a device of the cluster, and give --costs")
    away = [d.name for d in cluster.devices if not d.local and not d.address]
    if options.source == MEASURE and away and not has_gpus_here(cluster):
        raise _bad_option(
            "source",
            MEASURE,
            f"use source=auto: {away[0]!r} is no device of this process and has no address",
        )


def _bad_option(name: str, value: object, fix: str) -> MoiraiError:
    return MoiraiError(f"option {name} is {value!r}", why="no costs can be found that way", fix=fix)


def _measures_sessions(cluster: Cluster, options: ProfileOptions) -> bool:
    """Whether devices are measured one by one, in Sessions that reach all of them."""
    return options.source != ANALYTICAL and (cluster.remote or has_gpus_here(cluster))


def _measures_links(cluster: Cluster, options: ProfileOptions) -> bool:
    return options.links == MEASURE or (
        options.links == "auto" and _measures_sessions(cluster, options)
    )


def _is_measured(device: Device, options: ProfileOptions) -> bool:
    return device.local and options.source != ANALYTICAL


def _measured_column(graph: Graph, device: Device, times: Sequence[int | None]) -> Column:
    return [
        (
            None
            if time is None or device.type not in operator.device_types
            else round(time / device.speed),
            0,
        )
        for operator, time in zip(graph.operators, times, strict=True)
    ]


def _computed_column(
    graph: Graph, device: Device, options: ProfileOptions, counts: Counts
) -> Column:
    return [
        (None if time is None else round(time / device.speed), round(traffic / device.speed))
        for time, traffic in analytical(graph, device, options.trip_count, counts)
    ]


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
    }


def _machine() -> dict[str, str]:
    return {"platform": platform.platform(), "cpus": str(os.cpu_count())}

"""Makes a cost table: measured where a device is here, computed where it is not, or from a file."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from moirai_tf.cluster import Cluster, Device
from moirai_tf.cost.analytical import Column, analytical
from moirai_tf.cost.files import read_table
from moirai_tf.cost.inputs import Array, generate_inputs, load_inputs
from moirai_tf.cost.measure import measure
from moirai_tf.cost.table import (
    ANALYTICAL,
    MEASURE,
    CostTable,
    DeviceProfile,
    Measurement,
    by_operator,
    described_inputs,
    fingerprint,
)
from moirai_tf.cost.transfers import measured_links
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.options import check_options, option


@dataclass(frozen=True)
class ProfileOptions:
    """Where the costs of operators and transfers come from."""

    source: str = option(
        "auto",
        "where operator costs come from: measured on devices of this process, computed by "
        "Grappler from the cluster file's properties, a table (--costs), or auto: the table if "
        "one is given, else measured where possible and computed elsewhere",
        choices=("auto", MEASURE, ANALYTICAL, "file"),
    )
    costs: str = option("", "cost table (JSON) of an earlier profile to use")
    repeats: int = option(20, "measured runs; times are their medians")
    warmup: int = option(5, "runs before the measured ones")
    inputs: str = option("", ".npz with one array per input; empty: generated inputs")
    seed: int = option(0, "seed of generated inputs")
    trip_count: int = option(10, "iterations of a loop whose count is not static, when computing")
    links: str = option(
        "cluster",
        "where transfer costs come from: the cluster file, or measured between the local CPUs",
        choices=("cluster", MEASURE),
    )


def profile(
    model: SavedModel, graph: Graph, cluster: Cluster, options: ProfileOptions | None = None
) -> CostTable:
    """What every operator of a graph costs on every device of a cluster.

    Logical CPUs of one process are the same hardware: they are measured once, and each takes its
    declared speed from the cluster file.

    Args:
      model: the SavedModel that the graph was imported from; loaded only to be measured.
      graph: the flat operator graph.
      cluster: the devices.
      options: where the costs come from.

    Raises:
      MoiraiError: an option is wrong, the model cannot be run, a device that is not here lacks a
        property, or the given table does not fit.
    """
    options = options or ProfileOptions()
    check_options(options)
    _check(options, cluster)
    if options.costs:
        table = read_table(options.costs)
        table.require_fit(graph, cluster)
        return table
    measured = [device for device in cluster.devices if _is_measured(device, options)]
    times: list[int] = []
    measurement = None
    if measured:
        times, measurement = measure(
            model,
            graph,
            _inputs(graph, options),
            repeats=options.repeats,
            warmup=options.warmup,
        )
    columns = [
        _measured_column(graph, device, times)
        if device in measured
        else _computed_column(graph, device, options)
        for device in cluster.devices
    ]
    return CostTable(
        signature=graph.signature,
        inputs=described_inputs(graph),
        fingerprint=fingerprint(graph),
        versions=_versions(),
        machine=_machine(),
        devices=tuple(
            _device_profile(device, measurement if device in measured else None)
            for device in cluster.devices
        ),
        operators=by_operator(graph, columns),
        links=measured_links(cluster) if options.links == MEASURE else (),
    )


def _check(options: ProfileOptions, cluster: Cluster) -> None:
    for name, least in (("repeats", 1), ("warmup", 0), ("trip_count", 0)):
        if getattr(options, name) < least:
            raise _bad_option(name, getattr(options, name), f"give {least} or more")
    if options.source == "file" and not options.costs:
        raise _bad_option("source", "file", "give the table with costs=... (--costs)")
    if options.source in (MEASURE, ANALYTICAL) and options.costs:
        raise _bad_option("costs", options.costs, "drop it, or use source=file")
    away = [device.name for device in cluster.devices if not device.local]
    if options.source == MEASURE and away:
        raise _bad_option(
            "source", MEASURE, f"use source=auto: {away[0]!r} is no CPU of this process"
        )


def _bad_option(name: str, value: object, fix: str) -> MoiraiError:
    return MoiraiError(f"option {name} is {value!r}", why="no costs can be found that way", fix=fix)


def _is_measured(device: Device, options: ProfileOptions) -> bool:
    return device.local and options.source != ANALYTICAL


def _inputs(graph: Graph, options: ProfileOptions) -> Mapping[str, Array]:
    if options.inputs:
        return load_inputs(graph, options.inputs)
    return generate_inputs(graph, options.seed)


def _measured_column(graph: Graph, device: Device, times: list[int]) -> Column:
    return [
        (round(time / device.speed) if device.type in operator.device_types else None, 0)
        for operator, time in zip(graph.operators, times, strict=True)
    ]


def _computed_column(graph: Graph, device: Device, options: ProfileOptions) -> Column:
    return [
        (None if time is None else round(time / device.speed), round(traffic / device.speed))
        for time, traffic in analytical(graph, device, options.trip_count)
    ]


def _device_profile(device: Device, measurement: Measurement | None) -> DeviceProfile:
    return DeviceProfile(device, MEASURE if measurement is not None else ANALYTICAL, measurement)


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
    }


def _machine() -> dict[str, str]:
    return {"platform": platform.platform(), "cpus": str(os.cpu_count())}

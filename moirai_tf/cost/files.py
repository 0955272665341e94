"""Cost tables as JSON files, both ways."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moirai_tf.cluster import Device, Link
from moirai_tf.cost.table import (
    ANALYTICAL,
    MEASURE,
    CostTable,
    DeviceProfile,
    Measurement,
    OperatorCost,
)
from moirai_tf.fields import Field, Format

SCHEMA = "moirai_tf.cost_table"
VERSION = 1

_FORMAT = Format(
    why="operators are placed by these costs",
    fix="profile again, or correct this field; docs/costs.md describes the format",
)
_DEVICE_KEYS = tuple(field.name for field in dataclasses.fields(Device))


def read_table(path: str | Path) -> CostTable:
    """Reads a cost table.

    Raises:
      MoiraiError: naming the field that is missing, unknown or wrong.
    """
    root = _FORMAT.read_json(path)
    if root["schema"].text() != SCHEMA or root["version"].integer() != VERSION:
        raise root["version"].fault(f"this is not version {VERSION} of {SCHEMA}")
    root.only("schema", "version", "signature", "inputs", "fingerprint", "versions", "machine",
              "devices", "links", "operators")  # fmt: skip
    devices = tuple(_profile(field) for field in root["devices"].elements())
    return CostTable(
        signature=root["signature"].text(),
        inputs=_texts(root["inputs"]),
        fingerprint=root["fingerprint"].text(),
        versions=_texts(root["versions"]),
        machine=_texts(root["machine"]),
        devices=devices,
        operators={name: _cost(field, len(devices)) for name, field in root["operators"].items()},
        links=tuple(_link(field) for field in root["links"].elements()),
    )


def write_table(table: CostTable, path: str | Path) -> None:
    """Writes a cost table: one line per operator, so that two of them can be compared."""
    head = {
        "schema": SCHEMA,
        "version": VERSION,
        "signature": table.signature,
        "inputs": dict(table.inputs),
        "fingerprint": table.fingerprint,
        "versions": dict(table.versions),
        "machine": dict(table.machine),
        "devices": [_profile_data(profile) for profile in table.devices],
        "links": [dataclasses.asdict(link) for link in table.links],
    }
    rows = (
        f"  {json.dumps(name)}: {json.dumps(dataclasses.asdict(cost))}"
        for name, cost in table.operators.items()
    )
    text = json.dumps(head, indent=1).removesuffix("\n}")
    Path(path).write_text(
        text + ',\n "operators": {\n' + ",\n".join(rows) + "\n }\n}\n", encoding="utf-8"
    )


def _profile(field: Field) -> DeviceProfile:
    field.only("device", "source", "measurement")
    measurement = field.get("measurement")
    return DeviceProfile(
        device=_device(field["device"]),
        source=field["source"].one_of((MEASURE, ANALYTICAL), "source"),
        measurement=None if measurement is None else _measurement(measurement),
    )


def _device(field: Field) -> Device:
    field.only(*_DEVICE_KEYS)
    numbers = {
        key: None if (entry := field.get(key)) is None else entry.integer(least=0)
        for key in ("memory_bytes", "frequency_mhz", "num_cores", "memory_bytes_per_s")
    }
    return Device(
        name=field["name"].text(),
        type=field["type"].text(),
        speed=field["speed"].number(),
        address=field["address"].text(),
        architecture=field["architecture"].text(),
        **numbers,
    )


def _measurement(field: Field) -> Measurement:
    return Measurement(
        repeats=field["repeats"].integer(least=1),
        latency_ns=field["latency_ns"].integer(least=0),
        step_ns=field["step_ns"].integer(least=0),
        attributed_ns=field["attributed_ns"].integer(least=0),
        unknown_ns=field["unknown_ns"].integer(least=0),
        spread=field["spread"].number(),
    )


def _link(field: Field) -> Link:
    return Link(
        source=field["source"].text(),
        target=field["target"].text(),
        latency_ns=field["latency_ns"].integer(least=0),
        bandwidth_bytes_per_s=field["bandwidth_bytes_per_s"].integer(least=1),
    )


def _cost(field: Field, devices: int) -> OperatorCost:
    field.only("time_ns", "traffic_ns")
    times = tuple(
        None if entry.value is None else entry.integer(least=0)
        for entry in field["time_ns"].elements()
    )
    traffics = tuple(entry.integer(least=0) for entry in field["traffic_ns"].elements())
    if len(times) != devices or len(traffics) != devices:
        raise field.fault(f"needs {devices} times and traffics, one per device")
    for time, traffic in zip(times, traffics, strict=True):
        if traffic > (time or 0):
            raise field.fault(f"traffic of {traffic} ns is more than its time of {time}")
    return OperatorCost(times, traffics)


def _texts(field: Field) -> Mapping[str, str]:
    return {key: entry.text() for key, entry in field.items()}


def _profile_data(profile: DeviceProfile) -> dict[str, Any]:
    measurement = profile.measurement
    return {
        "device": dataclasses.asdict(profile.device),
        "source": profile.source,
        "measurement": None if measurement is None else dataclasses.asdict(measurement),
    }

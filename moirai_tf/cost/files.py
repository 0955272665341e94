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
    Handling,
    MeasuredLink,
    Measurement,
    OperatorCost,
    StepCost,
)
from moirai_tf.fields import Field, Format
from moirai_tf.placement.io import write_text

SCHEMA = "moirai_tf.cost_table"
VERSION = 2

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
              "options", "devices", "links", "step", "handling", "slowdown",
              "operators")  # fmt: skip
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
        step=_step(root["step"]),
        handling={name: _handling(field) for name, field in root["handling"].items()},
        slowdown={name: field.number() for name, field in root["slowdown"].items()},
        options=_texts(root["options"]),
    )


def write_table(table: CostTable, path: str | Path) -> None:
    """Writes a cost table: one line per operator, so that two of them can be compared.

    Raises:
      MoiraiError: it cannot be written.
    """
    head = {
        "schema": SCHEMA,
        "version": VERSION,
        "signature": table.signature,
        "inputs": dict(table.inputs),
        "fingerprint": table.fingerprint,
        "versions": dict(table.versions),
        "machine": dict(table.machine),
        "options": dict(table.options),
        "devices": [_profile_data(profile) for profile in table.devices],
        "links": [_link_data(measured) for measured in table.links],
        "step": {"client_ns": table.step.client_ns, "device_ns": dict(table.step.device_ns)},
        "slowdown": dict(table.slowdown),
        "handling": {name: dataclasses.asdict(known) for name, known in table.handling.items()},
    }
    rows = (
        f"  {json.dumps(name)}: {json.dumps(dataclasses.asdict(cost))}"
        for name, cost in table.operators.items()
    )
    text = json.dumps(head, indent=1).removesuffix("\n}")
    write_text(text + ',\n "operators": {\n' + ",\n".join(rows) + "\n }\n}\n", Path(path))


def _profile(field: Field) -> DeviceProfile:
    field.only("device", "source", "measurement", "machine")
    measurement = field.get("measurement")
    return DeviceProfile(
        device=_device(field["device"]),
        source=field["source"].one_of((MEASURE, ANALYTICAL), "source"),
        measurement=None if measurement is None else _measurement(measurement),
        machine=_texts(field["machine"]),
    )


def _device(field: Field) -> Device:
    field.only(*_DEVICE_KEYS)
    numbers = {
        key: None if (entry := field.get(key)) is None else entry.integer(least=0)
        for key in (
            "memory_bytes",
            "frequency_mhz",
            "num_cores",
            "memory_bytes_per_s",
            "launch_ns",
        )
    }
    return Device(
        name=field["name"].text(),
        type=field["type"].text(),
        speed=field["speed"].number(),
        address=field["address"].text(),
        architecture=field["architecture"].text(),
        model=field["model"].text() if field.get("model") is not None else "",
        **numbers,
    )


def _measurement(field: Field) -> Measurement:
    field.only(*(known.name for known in dataclasses.fields(Measurement)))

    def whole(name: str, least: int = 0) -> int:
        return field[name].integer(least=least)

    def newer(name: str) -> int:
        return 0 if field.get(name) is None else whole(name)

    return Measurement(
        repeats=whole("repeats", 1),
        latency_ns=whole("latency_ns"),
        step_ns=whole("step_ns"),
        attributed_ns=whole("attributed_ns"),
        unknown_ns=whole("unknown_ns"),
        spread=field["spread"].number(),
        fixed_ns=whole("fixed_ns"),
        moved_ns=whole("moved_ns"),
        dispatch_ns=whole("dispatch_ns"),
        stream_ns=newer("stream_ns"),
        copied_ns=newer("copied_ns"),
        scale=field["scale"].number(),
        pieces=whole("pieces", 1),
        peak_bytes=whole("peak_bytes"),
        scratch_bytes=whole("scratch_bytes"),
    )


def _step(field: Field) -> StepCost:
    field.only("client_ns", "device_ns")
    devices = {name: entry.integer(least=0) for name, entry in field["device_ns"].items()}
    return StepCost(field["client_ns"].integer(least=0), devices)


def _handling(field: Field) -> Handling:
    names = tuple(known.name for known in dataclasses.fields(Handling))
    field.only(*names)
    return Handling(*(field[name].integer(least=0) for name in names))


def _link(field: Field) -> MeasuredLink:
    field.only("source", "target", "latency_ns", "bandwidth_bytes_per_s", "error", "times_ns")
    link = Link(
        source=field["source"].text(),
        target=field["target"].text(),
        latency_ns=field["latency_ns"].integer(least=0),
        bandwidth_bytes_per_s=field["bandwidth_bytes_per_s"].integer(least=1),
    )
    times = []
    for entry in field["times_ns"].elements():
        nbytes, time_ns = (number.integer(least=0) for number in entry.elements())
        times.append((nbytes, time_ns))
    return MeasuredLink(link, field["error"].number(), tuple(times))


def _link_data(measured: MeasuredLink) -> dict[str, Any]:
    return {
        **dataclasses.asdict(measured.link),
        "error": measured.error,
        "times_ns": measured.times_ns,
    }


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
        "machine": dict(profile.machine),
    }

"""Cost tables as JSON files, both ways, put together, and as text for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from moirai_tf.cluster.units import megabytes, milliseconds
from moirai_tf.cost.table import (
    CostTable,
    DeviceProfile,
    Handling,
    MeasuredLink,
    OperatorCost,
    StepCost,
)
from moirai_tf.errors import MoiraiError
from moirai_tf.records import Format, write_text

SCHEMA = "moirai_tf.cost_table"
VERSION = 2

_FORMAT = Format(
    why="operators are placed by these costs",
    fix="profile again, or correct this field; docs/costs.md describes the format",
)
_NEWER = ("model", "stream_ns", "copied_ns")
"""Fields that the first tables of this version have not."""


def read_table(path: str | Path) -> CostTable:
    """Reads a cost table.

    Raises:
      MoiraiError: naming the field that is missing, unknown or wrong.
    """
    values = _FORMAT.read_json(path)
    if "version" not in values:
        raise _FORMAT.fault("version", "missing")
    if (values.pop("schema", None), values.pop("version")) != (SCHEMA, VERSION):
        raise _FORMAT.fault("version", f"this is not version {VERSION} of {SCHEMA}")
    table = _FORMAT.record(values, CostTable, absent=_NEWER)
    for name, cost in table.operators.items():
        path, devices = f"operators[{name!r}]", len(table.devices)
        if len(cost.time_ns) != devices or len(cost.traffic_ns) != devices:
            raise _FORMAT.fault(path, f"needs {devices} times and traffics, one per device")
        for time, traffic in zip(cost.time_ns, cost.traffic_ns, strict=True):
            if traffic > (time or 0):
                what = f"traffic of {traffic} ns is more than its time of {time}"
                raise _FORMAT.fault(path, what)
    return table


def write_table(table: CostTable, path: str | Path) -> None:
    """Writes a cost table: one line per operator, so that two of them can be compared."""
    values = dataclasses.asdict(table)
    operators = values.pop("operators")
    head = json.dumps({"schema": SCHEMA, "version": VERSION, **values}, indent=1)
    rows = (f"  {json.dumps(name)}: {json.dumps(cost)}" for name, cost in operators.items())
    write_text(
        head.removesuffix("\n}") + ',\n "operators": {\n' + ",\n".join(rows) + "\n }\n}\n",
        Path(path),
    )


def merged(tables: Sequence[CostTable]) -> CostTable:
    """One table of all devices; where several know a device or a link, the last one wins.

    Args:
      tables: one or more, of the same graph and versions.

    Raises:
      MoiraiError: they are of different models, shapes or versions of TensorFlow.
    """
    last = tables[-1]
    for table in tables:
        _require_alike(table, last)
    sources = {p.device.name: table for table in tables for p in table.devices}
    links = {(m.link.source, m.link.target): m for table in tables for m in table.links}
    return CostTable(
        signature=last.signature,
        inputs=last.inputs,
        fingerprint=last.fingerprint,
        versions=last.versions,
        machine=last.machine,
        devices=tuple(table.devices[table.columns[name]] for name, table in sources.items()),
        operators={
            name: OperatorCost(
                tuple(t.operators[name].time_ns[t.columns[d]] for d, t in sources.items()),
                tuple(t.operators[name].traffic_ns[t.columns[d]] for d, t in sources.items()),
            )
            for name in last.operators
        },
        links=tuple(links.values()),
        step=_merged_step(tables),
        handling={name: h for table in tables for name, h in table.handling.items()},
        slowdown={name: f for table in tables for name, f in table.slowdown.items()},
        options=last.options,
    )


def _merged_step(tables: Sequence[CostTable]) -> StepCost:
    measured = [table.step for table in tables if table.step != StepCost()]
    if not measured:
        return StepCost()
    devices = {name: ns for step in measured for name, ns in step.device_ns.items()}
    return StepCost(measured[-1].client_ns, devices)


def _require_alike(table: CostTable, other: CostTable) -> None:
    for what in ("fingerprint", "inputs", "versions"):
        if getattr(table, what) != getattr(other, what):
            raise MoiraiError(
                f"the cost tables differ in their {what}",
                why="costs of different models, shapes or versions do not compare",
                fix="merge tables of one model at one batch size, or profile again",
            )


def table_text(table: CostTable) -> str:
    """Lines on every device, link and the step; times in milliseconds."""
    return "\n".join([
        f"costs of {len(table.operators)} operators on {len(table.devices)} devices",
        *(_device_line(profile) for profile in table.devices),
        *(_link_line(measured) for measured in table.links),
        *(_handling_line(name, known) for name, known in table.handling.items()),
        *(
            f"{name}  {100 * (factor - 1):.1f} % slower while the others compute"
            for name, factor in table.slowdown.items()
        ),
        *_step_lines(table.step),
    ])  # fmt: skip


def _device_line(profile: DeviceProfile) -> str:
    found = profile.measurement
    if found is None:
        return f"{profile.device.name}  computed"
    pieces = f" in {found.pieces} pieces" if found.pieces > 1 else ""
    peak = f", peak {megabytes(found.peak_bytes)}" if found.peak_bytes else ""
    return (
        f"{profile.device.name}  measured{pieces}: {milliseconds(found.latency_ns)} a step, "
        f"quartiles {100 * found.spread:.1f} % apart, {milliseconds(found.attributed_ns)} in "
        f"kernels, {milliseconds(found.fixed_ns + found.moved_ns)} fixed{peak}"
    )


def _link_line(measured: MeasuredLink) -> str:
    link = measured.link
    return (
        f"{link.source} -> {link.target}  {link.latency_ns / 1e3:.0f} us + bytes / "
        f"{link.bandwidth_bytes_per_s / 1e9:.2f} GB/s, off by {100 * measured.error:.1f} %"
    )


def _handling_line(name: str, known: Handling) -> str:
    return (
        f"{name}  busy for {known.send_ns / 1e3:.0f} us + {milliseconds(known.send_ns_per_mib)} "
        f"per MiB that it sends, {known.receive_ns / 1e3:.0f} us + "
        f"{milliseconds(known.receive_ns_per_mib)} per MiB that it receives"
    )


def _step_lines(step: StepCost) -> Iterator[str]:
    if step == StepCost():
        return
    yield f"a step costs {milliseconds(step.client_ns)} whatever it computes"
    for name, more_ns in step.device_ns.items():
        yield f"  and {milliseconds(more_ns)} more with {name}"

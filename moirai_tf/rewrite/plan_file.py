"""The plan as JSON: `assets.extra/moirai_plan.json` of a placed model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from moirai_tf.cluster import Device
from moirai_tf.errors import MoiraiError, file_errors
from moirai_tf.fields import Field, Format
from moirai_tf.rewrite.plan import (
    CallEdit,
    Edits,
    NodeEdit,
    ObjectEdit,
    OrderEdit,
    Plan,
    PlanDevice,
    PlanTransfer,
    Precedence,
    RelayEdit,
    RestoreEdit,
)

SCHEMA = 3
"""Since 2 a plan has an `order`, and `relays` and an `order` among its edits; since 3 its devices
have a `model`. What an older plan lacks reads as none."""
PLAN_FILE = Path("assets.extra") / "moirai_plan.json"


def plan_to_json(plan: Plan) -> str:
    """Deterministic JSON: same plan, same bytes."""
    values = dataclasses.asdict(plan)
    return json.dumps({"schema": SCHEMA, **values}, indent=1, sort_keys=True) + "\n"


@file_errors("the plan cannot be read")
def read_plan(directory: str | Path) -> Plan:
    """The plan of a placed SavedModel.

    Raises:
      MoiraiError: the model holds no plan, or a broken one.
    """
    file = Path(directory) / PLAN_FILE
    if not file.is_file():
        raise MoiraiError(
            f"{directory} holds no {PLAN_FILE}",
            why="the plan says what was changed and where operators must run",
            fix="give the output directory of moirai_tf.optimize",
        )
    form = Format(
        why="nothing can be proved or undone without the plan",
        fix=f"optimise the original model again; {file} was changed",
    )
    plan = form.read_json(file)
    schema = plan["schema"].integer()
    if not 1 <= schema <= SCHEMA:
        raise plan["schema"].fault(f"{schema} is not 1 to {SCHEMA}, those of this version")
    return _plan(plan, schema)


def _plan(plan: Field, schema: int) -> Plan:
    ordered = schema >= 2
    devices = tuple(_device(row, schema) for row in plan["devices"].elements())
    names = [device.name for device in devices]
    return Plan(
        signature=plan["signature"].text(),
        tags=tuple(tag.text() for tag in plan["tags"].elements()),
        devices=devices,
        client=plan["client"].one_of(names, "device"),
        placement={n: d.one_of(names, "device") for n, d in plan["placement"].items()},
        transfers=tuple(_transfer(row, names) for row in plan["transfers"].elements()),
        order=tuple(map(_precedence, plan["order"].elements())) if ordered else (),
        edits=_edits(plan["edits"], ordered=ordered),
        summary=_summary(plan["summary"]),
        options={step: _values(options) for step, options in plan["options"].items()},
    )


def _device(row: Field, schema: int) -> PlanDevice:
    memory = row.get("memory_bytes")
    size = None if memory is None else memory.integer(least=0)
    model = row["model"].text() if schema >= 3 else ""
    try:
        device = Device(row["name"].text(), row["type"].text())
    except MoiraiError as error:
        raise row.fault(error.rule) from error
    return PlanDevice(device.name, device.type, size, model)


def _transfer(row: Field, names: Collection[str]) -> PlanTransfer:
    source, target = (row[end].one_of(names, "device") for end in ("source", "target"))
    return PlanTransfer(
        row["producer"].text(), row["port"].integer(), source, target, row["nbytes"].integer()
    )


def _summary(summary: Field) -> dict[str, Any]:
    """What was found, with the types that readers of a plan rely on."""
    for name in ("predicted_ns", "latency_ns", "single_device_predicted_ns"):
        value = summary.get(name)
        if value is not None:
            value.integer(least=0)
    device = summary.get("single_device")
    if device is not None:
        device.text()
    return _values(summary)


def _precedence(row: Field) -> Precedence:
    return Precedence(row["before"].text(), row["after"].text())


def _edits(edits: Field, *, ordered: bool) -> Edits:
    fingerprint = edits["fingerprint"]
    try:
        bytes.fromhex(fingerprint.text())
    except ValueError as error:
        raise fingerprint.fault("it is not hexadecimal") from error
    return Edits(
        nodes=tuple(map(_node_edit, edits["nodes"].elements())),
        calls=tuple(map(_call_edit, edits["calls"].elements())),
        objects=tuple(map(_object_edit, edits["objects"].elements())),
        relays=tuple(map(_relay_edit, edits["relays"].elements())) if ordered else (),
        order=tuple(map(_order_edit, edits["order"].elements())) if ordered else (),
        restore=_restore_edit(edits.get("restore")),
        clones=_texts(edits["clones"]),
        fingerprint=fingerprint.text(),
    )


def _node_edit(row: Field) -> NodeEdit:
    return NodeEdit(
        row["function"].text(), row["node"].text(), row["before"].text(), row["after"].text()
    )


def _call_edit(row: Field) -> CallEdit:
    return CallEdit(
        row["function"].text(), row["node"].text(), row["attr"].text(), row["index"].integer(),
        row["before"].text(), row["after"].text(),
    )  # fmt: skip


def _object_edit(row: Field) -> ObjectEdit:
    return ObjectEdit(
        row["node_id"].integer(), row["kind"].one_of(("variable", "resource"), "kind"),
        row["before"].text(), row["after"].text(),
    )  # fmt: skip


def _relay_edit(row: Field) -> RelayEdit:
    return RelayEdit(
        row["function"].text(), row["node"].text(), row["source"].text(), row["dtype"].text()
    )


def _order_edit(row: Field) -> OrderEdit:
    return OrderEdit(row["function"].text(), row["node"].text(), row["before"].text())


def _restore_edit(row: Field | None) -> RestoreEdit | None:
    if row is None:
        return None
    nodes = tuple(name.text() for name in row["nodes"].elements())
    return RestoreEdit(row["before"].text(), row["after"].text(), nodes)


def _texts(field: Field) -> dict[str, str]:
    return {key: value.text() for key, value in field.items()}


def _values(field: Field) -> dict[str, Any]:
    return {key: value.value for key, value in field.items()}

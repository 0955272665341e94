"""The plan: which device runs which operator, as it is stored beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PlanDevice:
    """A device of the cluster as the plan knows it."""

    name: str
    """TensorFlow's device name, such as `/device:CPU:1` or `/job:worker/replica:0/task:1/...`."""
    type: str
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, order=True)
class PlanTransfer:
    """A tensor that crosses devices once per inference."""

    producer: str
    """Operator that makes the tensor."""
    port: int
    """Its output port."""
    source: str
    target: str
    nbytes: int


@dataclass(frozen=True, slots=True, order=True)
class NodeEdit:
    """A `NodeDef.device` that the rewrite changed."""

    function: str
    """Name in the function library; empty for the main graph."""
    node: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, order=True)
class CallEdit:
    """A function attribute of a node that now names a clone."""

    function: str
    node: str
    attr: str
    index: int
    """Position in a list of functions (`Case`), or -1."""
    before: str
    after: str


@dataclass(frozen=True, slots=True, order=True)
class ObjectEdit:
    """A device in the object graph (`SavedVariable.device` or `SavedResource.device`)."""

    node_id: int
    kind: str
    """`variable` or `resource`."""
    before: str
    after: str


@dataclass(frozen=True)
class Edits:
    """Everything the rewrite changed; enough to undo it exactly."""

    nodes: tuple[NodeEdit, ...] = ()
    calls: tuple[CallEdit, ...] = ()
    objects: tuple[ObjectEdit, ...] = ()
    clones: Mapping[str, str] = field(default_factory=dict)
    """Cloned function -> the function it was cloned from."""
    fingerprint: str = ""
    """The original `fingerprint.pb` in hexadecimal; empty if there was none."""


@dataclass(frozen=True)
class Plan:
    """One signature's placement, and what was promised of it."""

    signature: str
    tags: tuple[str, ...]
    devices: tuple[PlanDevice, ...]
    client: str
    """The device of feeds and fetches."""
    placement: Mapping[str, str]
    """Operator (name after inlining) -> device, control flow as one operator."""
    transfers: tuple[PlanTransfer, ...]
    edits: Edits = field(default_factory=Edits)
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What `place` found: status, latency_ns, lower_bound_ns, best single device, ..."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options of every pass."""

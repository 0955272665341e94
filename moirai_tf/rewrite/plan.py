"""The plan: which device runs which operator, as it is stored beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moirai_tf.graph.options import ImportOptions
from moirai_tf.options import recorded
from moirai_tf.records import Natural
from moirai_tf.split.record import SplitEdit


@dataclass(frozen=True, slots=True)
class PlanDevice:
    """A device of the cluster as the plan knows it."""

    name: str
    """TensorFlow's device name, such as `/device:CPU:1` or `/job:worker/replica:0/task:1/...`."""
    type: str
    memory_bytes: Natural | None
    model: str = ""
    """A GPU's name, as its driver tells it; empty if it is not known."""


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
class Precedence:
    """Two operators of one device in an order that the model keeps."""

    before: str
    """Operator that finishes first."""
    after: str
    """Operator that starts when it has."""


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
    kind: Literal["variable", "resource"]
    before: str
    after: str


@dataclass(frozen=True, slots=True, order=True)
class RelayEdit:
    """An `Identity` that was added so that a control edge can leave it."""

    function: str
    node: str
    source: str
    """The tensor that it reads, as the function writes it."""
    dtype: str
    """TensorFlow's name of the tensor's type."""


@dataclass(frozen=True, slots=True, order=True)
class OrderEdit:
    """A control edge that was added: the last control inputs of a node."""

    function: str
    node: str
    before: str
    """The node that it now waits for."""


@dataclass(frozen=True, slots=True, order=True)
class RestoreEdit:
    """Another way to restore the variables, added to the main graph."""

    before: str
    """Node that the saver ran."""
    after: str
    """Node that it runs now."""
    nodes: tuple[str, ...]
    """All nodes that were added."""


@dataclass(frozen=True)
class Edits:
    """Everything the rewrite changed; enough to undo it exactly."""

    nodes: tuple[NodeEdit, ...] = ()
    calls: tuple[CallEdit, ...] = ()
    objects: tuple[ObjectEdit, ...] = ()
    relays: tuple[RelayEdit, ...] = ()
    order: tuple[OrderEdit, ...] = ()
    restore: RestoreEdit | None = None
    """None where all variables are still read on one device."""
    split: SplitEdit | None = None
    """None where the batch is not divided; the other edits were made after it."""
    clones: Mapping[str, str] = field(default_factory=dict)
    """Cloned function -> the function it was cloned from."""
    fingerprint: str = ""
    """The original `fingerprint.pb` in hexadecimal; empty if there was none."""


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """What a device was given, in fused operators."""

    operators: int = 0
    compute_ns: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class OrderSummary:
    """How much of the planned order is kept."""

    edges: int
    """Control edges that were written."""
    neighbours: int
    """Pairs of fused operators that follow each other on a device."""
    left_out: int
    """Those of them that nothing keeps in order."""


@dataclass(frozen=True)
class PlanSummary:
    """What was found: no clock times, so equal runs give equal plans."""

    status: str
    """`optimal` or `feasible`, of the objective."""
    objective: str
    latency_ns: int
    """The schedule's makespan: operators and transfers, in the planned order."""
    queued_ns: int
    """The makespan where every device runs what is ready, as TensorFlow does unless told."""
    step_ns: int
    """What a step costs a client whatever runs: Session, feeds, fetches, workers that take part."""
    predicted_ns: int
    """What a client will measure: the schedule as the runtime plays it, and `step_ns`."""
    lower_bound_ns: int
    """No placement can be faster: a proof, for the costs that were used."""
    gap: float
    """(latency - bound) / latency."""
    single_device: str | None
    """The best device that could run everything alone."""
    single_device_ns: int | None
    """Makespan of everything on it."""
    single_device_predicted_ns: int | None
    """What a client would measure with it."""
    baselines_ns: Mapping[str, int]
    """Heuristic -> its makespan."""
    computed: tuple[str, ...]
    """Devices whose costs were computed, not measured."""
    devices: Mapping[str, DeviceShare]
    peak_bytes: Mapping[str, int]
    """Device -> the most memory in use at one time, by the schedule."""
    order: OrderSummary | None = None
    """None where the order is left to TensorFlow."""

    @property
    def used(self) -> tuple[str, ...]:
        """Devices that run more than the client's feeds and fetches."""
        return tuple(name for name, share in self.devices.items() if share.compute_ns > 0)


@dataclass(frozen=True)
class Plan:
    """One signature's placement, and what was promised of it."""

    signature: str
    tags: tuple[str, ...]
    devices: tuple[PlanDevice, ...]
    client: str
    """The device of feeds and fetches."""
    placement: Mapping[str, str]
    """Operator (name after inlining) -> device, control flow as one operator; empty where one
    device alone can run the model, which then is as it was."""
    transfers: tuple[PlanTransfer, ...]
    order: tuple[Precedence, ...] = ()
    """The planned order where the model keeps it: with the data, these imply all of it."""
    edits: Edits = field(default_factory=Edits)
    summary: PlanSummary | None = None
    """What `place` found; None for a placement that came from elsewhere."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The options of every pass."""

    def import_options(self, inputs: str = "") -> ImportOptions:
        """How its signature is read: for these inputs, or for the shapes that it was made for."""
        known = {} if inputs else self.options.get("import", {})
        shapes = recorded(ImportOptions, known, "batch_size", "input_shapes")
        return ImportOptions(signature=self.signature, tags=self.tags, inputs=inputs, **shapes)

    @property
    def servable(self) -> bool:
        """Whether TensorFlow Serving can run it: it uses the devices of its own process alone."""
        return all(d.name.startswith(("/device:", "/job:localhost/")) for d in self.devices)

    @property
    def used(self) -> tuple[PlanDevice, ...]:
        """The client and the devices that have operators: those that must be there to run it."""
        names = {self.client, *self.placement.values()}
        return tuple(device for device in self.devices if device.name in names)

"""TensorFlow's partitioned graphs, read back in the words of a plan.

The partitioner cuts every edge between devices and puts a `_Send` and a `_Recv` in its place. Here
each `_Send` is traced back, through what the runtime added (`Identity` at function calls, `Enter`
at loops), to the operator of the plan whose output it carries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tensorflow.python.framework import device as device_lib
from tensorflow.python.framework import dtypes

from moirai_tf.model.validate import input_node
from moirai_tf.verify.names import Names

_SENDS = frozenset({"_Send", "_HostSend"})
_RECVS = frozenset({"_Recv", "_HostRecv"})
_FORWARDING = _RECVS | {"Identity", "IdentityN", "Enter", "Switch", "Merge"}
"""What the runtime puts between an operator and its readers."""

_ENTRANCES = frozenset({"Enter", "Switch", "_SwitchN"})
"""What TensorFlow makes of the inputs of a loop or branch."""
_AT_CALLS = "Func/"
"""How the names begin of what the runtime adds where it inlines a call: an `Identity` for every
argument and result, on the device of what it passes on."""

_VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
_HANDLES = frozenset({"resource", "variant"})
_CONTROL = re.compile(r".*/ctrl(/[^/]*|_[SG]\d+)", re.DOTALL)
"""The constant at the near end of a control edge: in one process, between servers, and between the
devices of one server."""

LARGE_CONSTANT_BYTES = 16 * 1024
"""A constant of this size is a weight; smaller ones are shapes, axes and scalars."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The output that a `_Send` carries, as far as it can be traced."""

    operator: str | None
    """Operator of the plan; None if the trace ends at a node that is no operator."""
    port: int
    """Output port; -1 for a divided operator, whose outputs lose their numbers."""
    node: str
    """Name of the node where the trace ended, in the plan's words."""


@dataclass(frozen=True, slots=True)
class Send:
    """One `_Send`/`_Recv` pair; within one device if a kernel wants its argument in host memory."""

    origin: Origin
    sent: str
    """The tensor of the run that is sent."""
    tensor: str
    """The same behind what the runtime adds where it inlines calls."""
    source: str
    """Device, as the plan names it."""
    target: str
    readers: tuple[str, ...]
    """Operators (or other nodes) that read what arrives."""
    control: bool
    """It carries a control dependency, not data."""
    weights: bool
    """What it carries depends on variables or large constants, and on no input."""
    unused: bool
    """No output and no operator of the plan needs it."""
    on_host: bool
    """It arrives in host memory, although the device may be a GPU."""


class PartitionedGraph:
    """The nodes of all partitions of one graph, on devices that bear the plan's names."""

    def __init__(self, partitions: Iterable[Any], names: Names, devices: Mapping[str, str]) -> None:
        """Reads partition graphs.

        Args:
          partitions: one `GraphDef` per device.
          names: how nodes lead to operators.
          devices: device of the run, as `device_key` has it -> device of the plan.
        """
        self.names = names
        self._devices = devices
        self.nodes: dict[str, Any] = {n.name: n for graph in partitions for n in graph.node}
        self._pairs = {_key(n): n.name for n in self.nodes.values() if n.op in _SENDS}

    def device(self, node: Any) -> str:
        """Where a node is, as the plan names it."""
        return device_name(node.device, self._devices)

    def operators(self) -> Iterable[tuple[Any, str]]:
        """Every node that is (a part of) an operator of the plan, and that operator."""
        for node in self.nodes.values():
            if node.op in _SENDS or node.op in _RECVS or self._relays_control(node):
                continue
            operator = self.names.operator(node)
            if operator is not None and operator in self.names.placement:
                yield node, operator

    @cached_property
    def sends(self) -> tuple[Send, ...]:
        """Every transfer, in the order of the partitions."""
        return tuple(self._send(n) for n in self.nodes.values() if n.op in _SENDS)

    def results(self) -> list[Origin]:
        """What the `_Retval` nodes return."""
        return [self._trace(n.input[0]) for n in self.nodes.values() if n.op == "_Retval"]

    def _send(self, send: Any) -> Send:
        arrivals = self._readers[self._arrivals[send.name]] if send.name in self._arrivals else []
        names = self.names
        shown = (names.operator(self.nodes[r]) or names.prefix + r for r in arrivals)
        return Send(
            origin=self._trace(send.input[0]),
            sent=send.input[0],
            tensor=self._before_calls(send.input[0]),
            source=device_name(send.attr["send_device"].s.decode(), self._devices),
            target=device_name(send.attr["recv_device"].s.decode(), self._devices),
            readers=tuple(dict.fromkeys(shown)),
            control=self._is_control(send),
            weights=send.name in self._from_weights and send.name not in self._from_inputs,
            unused=send.name not in self._needed,
            on_host=self.nodes[self._arrivals.get(send.name, send.name)].op == "_HostRecv",
        )

    def _is_control(self, send: Any) -> bool:
        """The partitioner sends an empty constant for a control edge."""
        source = self.nodes[input_node(send.input[0])]
        return source.op == "Const" and _CONTROL.fullmatch(source.name) is not None

    def _relays_control(self, node: Any) -> bool:
        """Whether a node is the `Identity` at the far end of a control edge."""
        sent = self._sent_to(node.input[0]) if node.op == "Identity" and node.input else None
        return sent is not None and self._is_control(sent)

    def _sent_to(self, text: str) -> Any | None:
        """The `_Send` behind an input that is a `_Recv`."""
        node = self.nodes[input_node(text)]
        return self.nodes.get(self._pairs.get(_key(node), "")) if node.op in _RECVS else None

    def _trace(self, text: str) -> Origin:
        """Follows an input back to the first operator, across devices too."""
        seen: set[str] = set()
        while True:
            node, port = self.nodes[input_node(text)], _port(text)
            operator = self.names.operator(node) if node.op not in _RECVS else None
            if operator is not None:
                whole = node.op == "_Arg" or operator not in self.names.divided
                return Origin(operator, port if whole else -1, operator)
            sent = self._sent_to(text)
            inputs = (sent if sent is not None else node).input
            data = [t for t in inputs if not t.startswith("^")]
            if not data or node.op not in _FORWARDING or node.name in seen:
                return Origin(None, port, self.names.prefix + node.name)
            seen.add(node.name)
            text = data[port] if node.op == "IdentityN" and port < len(data) else data[0]

    def _before_calls(self, text: str) -> str:
        """The tensor that the `Identity`s at inlined calls pass on."""
        node = self.nodes[input_node(text)]
        while node.op == "Identity" and node.name.startswith(_AT_CALLS):
            text = node.input[0]
            node = self.nodes[input_node(text)]
        return text

    @cached_property
    def _arrivals(self) -> dict[str, str]:
        """`_Send` -> its `_Recv`."""
        recvs = (n for n in self.nodes.values() if n.op in _RECVS)
        return {self._pairs[_key(n)]: n.name for n in recvs if _key(n) in self._pairs}

    @cached_property
    def _readers(self) -> dict[str, list[str]]:
        """Node -> the nodes that read its data; a `_Recv` reads its `_Send`."""
        readers: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for text in node.input:
                if not text.startswith("^"):
                    readers[input_node(text)].append(node.name)
        for send, recv in self._arrivals.items():
            readers[send].append(recv)
        return readers

    @cached_property
    def _from_inputs(self) -> set[str]:
        return self._reached(n.name for n in self.nodes.values() if self._is_input(n))

    @cached_property
    def _from_weights(self) -> set[str]:
        return self._reached(n.name for n in self.nodes.values() if self._is_weight(n))

    @cached_property
    def _needed(self) -> set[str]:
        """Nodes that some operator of the plan or some result depends on.

        The plan leaves out what feeds only loop variables, or arguments of branches, that nobody
        reads. A Session drops it, the TF2 loader does not.
        """
        sources: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, readers in self._readers.items():
            for reader in readers:
                if not self._is_unread(reader, name):
                    sources[reader].append(name)
        roots = [n.name for n in self.nodes.values() if n.op == "_Retval"]
        roots += [node.name for node, _ in self.operators()]
        return _closure(roots, sources)

    def _is_unread(self, reader: str, source: str) -> bool:
        """Whether a node is an entrance of control flow for a value that the plan leaves out."""
        if self.nodes[reader].op not in _ENTRANCES:
            return False
        if self.names.operator(self.nodes[reader]) not in self.names.divided:
            return False
        origin = self._trace(source)
        return origin.operator is None and origin.node in self.names.nodes

    def _reached(self, roots: Iterable[str]) -> set[str]:
        return _closure(roots, self._readers)

    def _is_input(self, node: Any) -> bool:
        return node.op == "_Arg" and not _is_handle(node) and not self._is_captured(node)

    def _is_captured(self, node: Any) -> bool:
        return self.names.operator(node) in self.names.captured

    def _is_weight(self, node: Any) -> bool:
        if node.op == "_Arg":
            return _is_handle(node)
        return node.op in _VARIABLES or (
            node.op == "Const" and _tensor_bytes(node) >= LARGE_CONSTANT_BYTES
        )


def device_name(name: str, devices: Mapping[str, str]) -> str:
    """A device of a run as the plan names it; unknown ones keep their name."""
    key = device_key(name)
    return devices.get(key, key if key.startswith("/") else f"/device:{key}")


def device_key(name: str) -> str:
    """The same text for all names of one device: without the job, if it is of this process.

    `/job:localhost/replica:0/task:0/device:CPU:1` -> `CPU:1`.
    """
    spec = device_lib.DeviceSpec.from_string(name)
    here = local_device(name)
    if (spec.job or "localhost") == "localhost":
        return here
    return f"/job:{spec.job}/replica:{spec.replica or 0}/task:{spec.task or 0}/device:{here}"


def local_device(name: str) -> str:
    """`/job:localhost/replica:0/task:0/device:CPU:1` -> `CPU:1`."""
    spec = device_lib.DeviceSpec.from_string(name)
    return f"{spec.device_type or 'CPU'}:{spec.device_index or 0}"


def _key(node: Any) -> tuple[bytes, bytes, bytes]:
    """What a `_Send` and its `_Recv` have in common."""
    attr = node.attr
    return attr["tensor_name"].s, attr["send_device"].s, attr["recv_device"].s


def _closure(roots: Iterable[str], edges: Mapping[str, Iterable[str]]) -> set[str]:
    reached = set(roots)
    pending = list(reached)
    while pending:
        new = [name for name in edges[pending.pop()] if name not in reached]
        reached.update(new)
        pending.extend(new)
    return reached


def _port(text: str) -> int:
    _, _, port = text.partition(":")
    return int(port or 0)


def _is_handle(node: Any) -> bool:
    return dtypes.as_dtype(node.attr["T"].type).base_dtype.name in _HANDLES


def _tensor_bytes(node: Any) -> int:
    tensor = node.attr["value"].tensor
    count = 1
    for dim in tensor.tensor_shape.dim:
        count *= dim.size
    return count * max(1, int(dtypes.as_dtype(tensor.dtype).base_dtype.size))

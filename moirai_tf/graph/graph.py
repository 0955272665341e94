"""The operator graph of one signature, and a text of it: values only, no TensorFlow calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import networkx as nx


class TensorRef(NamedTuple):
    """An output of an operator: its index in `Graph.operators` and the output port."""

    producer: int
    port: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The static type and shape of one tensor."""

    dtype: str
    """TensorFlow's name of the type, such as `float32`, `string` or `resource`."""
    shape: tuple[int, ...] | None
    """None if the rank is unknown; -1 for a dimension that is."""
    nbytes: int
    """Bytes that a transfer of the tensor moves; an unknown dimension counts as 1."""

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[?]"
        return f"{self.dtype}[{','.join('?' if d < 0 else str(d) for d in self.shape)}]"


@dataclass(frozen=True, eq=False)
class Scope:
    """One call of a function: two calls of the same function are two scopes."""

    function: str
    """Name in the function library; empty for the main graph."""
    prefix: str
    """What TensorFlow's inliner puts before the names of the body's nodes (`call/inner/`)."""
    parent: Scope | None = None
    call: str = ""
    """Name of the node in the parent's body that calls the function."""

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions from the outermost to this one."""
        outer = self.parent.functions if self.parent is not None else ()
        return (*outer, self.function) if self.function else outer


@dataclass(frozen=True, slots=True)
class Unread:
    """A data input of lowered control flow that a Session drops with all that feeds it.

    The TF2 loader keeps both, on the device that the node that feeds it asks for.
    """

    position: int
    """Among the data inputs of the node."""
    scope: Scope
    node: str
    """What feeds it, in the body of that scope."""
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class Operator:
    """One node of the flattened graph."""

    name: str
    """Unique; the name that TensorFlow's inliner gives the node in a Session."""
    op: str
    """TensorFlow's op type, such as `Conv2D`."""
    node: Any
    """The `NodeDef` as it stands in the SavedModel; shared, never changed."""
    scope: Scope
    inputs: tuple[TensorRef, ...]
    """Data inputs in argument order, wired through function calls, without those in `unread`."""
    controls: tuple[int, ...]
    """Operators that must have run before this one, without data."""
    outputs: tuple[TensorSpec, ...]
    device_types: tuple[str, ...] = ("CPU",)
    """Device types with a kernel for this node, its bodies included."""
    weight_bytes: int = 0
    """Bytes of the variable or constant that the operator holds."""
    resident_bytes: int = 0
    """Weights once, and the outputs that need memory of their own."""

    loose_inputs: tuple[int, ...] = ()
    """Input positions that reach the runtime through a node without a device of its own."""
    awaited: bool = False
    """It runs whether or not anybody reads it."""
    unread: tuple[Unread, ...] = ()
    """Inputs that pruning dropped, by position."""

    def arguments(self) -> Iterator[TensorRef | Unread]:
        """Every data input of the node, in argument order."""
        dropped = {unread.position: unread for unread in self.unread}
        kept = iter(self.inputs)
        for position in range(len(self.inputs) + len(self.unread)):
            yield dropped[position] if position in dropped else next(kept)

    def attr(self, name: str) -> Any:
        """The node's `AttrValue` of that name, or None."""
        return self.node.attr.get(name, None)


@dataclass(frozen=True, slots=True)
class ColocationGroup:
    """Operators that must share a device, and why."""

    members: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Graph:
    """The flat operator graph of one signature.

    Operators stand in a topological order: every input and control input of an operator has a
    smaller index. Signature inputs are `Placeholder` operators; every signature output is read by
    a `_Retval` operator that stands for the client, as in TensorFlow's own partitioned graphs.
    Back edges of TF1 loops (`NextIteration` to `Merge`) are left out; the loop is one colocation
    group.
    """

    signature: str
    operators: tuple[Operator, ...]
    inputs: Mapping[str, int]
    """Signature input -> its `Placeholder`."""
    outputs: Mapping[str, int]
    """Signature output -> its `_Retval`."""
    colocation: tuple[ColocationGroup, ...] = ()
    tags: tuple[str, ...] = ()
    """Tags of the MetaGraph that it was read from."""
    library: Any = field(default=None, repr=False)
    """The `FunctionDefLibrary` of the model: bodies of control flow live there."""

    def __len__(self) -> int:
        return len(self.operators)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Operator name -> index."""
        return {operator.name: i for i, operator in enumerate(self.operators)}

    @cached_property
    def functions(self) -> Mapping[str, Any]:
        """Function name -> `FunctionDef`, for whatever stays inside operators."""
        return {} if self.library is None else {f.signature.name: f for f in self.library.function}

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each operator, the operators that read any of its outputs, each once, ascending."""
        readers: list[dict[int, None]] = [{} for _ in self.operators]
        for i, operator in enumerate(self.operators):
            for ref in operator.inputs:
                readers[ref.producer][i] = None
        return tuple(tuple(r) for r in readers)

    def edges(self) -> Iterator[tuple[int, int]]:
        """Every dependency (producer, consumer), data and control; may repeat."""
        for i, operator in enumerate(self.operators):
            for ref in operator.inputs:
                yield ref.producer, i
            for control in operator.controls:
                yield control, i

    def to_networkx(self) -> nx.DiGraph[str]:
        """The operators by name, in order, and what depends on what, for analysis and drawing.

        Nodes have `op`, `device_types`, `weight_bytes` and `resident_bytes`. An edge goes from a
        producer to a reader and has `ports`, the producer's outputs that are read, ascending, and
        `nbytes`, what they hold together: () and 0 for a control dependency alone.
        """
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph(name=self.signature)
        for operator in self.operators:
            graph.add_node(
                operator.name,
                op=operator.op,
                device_types=operator.device_types,
                weight_bytes=operator.weight_bytes,
                resident_bytes=operator.resident_bytes,
            )
        for operator in self.operators:
            ports: dict[int, set[int]] = {control: set() for control in operator.controls}
            for producer, port in operator.inputs:
                ports.setdefault(producer, set()).add(port)
            for producer, read in ports.items():
                outputs = self.operators[producer].outputs
                graph.add_edge(
                    self.operators[producer].name,
                    operator.name,
                    ports=tuple(sorted(read)),
                    nbytes=sum(outputs[port].nbytes for port in read),
                )
        return graph

    def spec(self, ref: TensorRef) -> TensorSpec:
        """The static type and shape of a tensor."""
        return self.operators[ref.producer].outputs[ref.port]


RESULT = "_Retval"
CLIENT_OPS = frozenset({"Placeholder", RESULT})
"""Ops that stand for the client's feeds and fetches: they run on the client's device."""

MERGE_OPS = frozenset({"Merge", "RefMerge"})
"""Ops of TF1 control flow that hand on whichever input arrives; a loop begins with one."""

CALL_OPS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
LOOPS = frozenset({"While", "StatelessWhile"})
LOWERED_OPS = LOOPS | {"If", "StatelessIf", "Case", "StatelessCase"}
"""Functional control flow, which TensorFlow lowers to TF1 control flow before it places nodes."""


def dump_graph(graph: Graph) -> str:
    """The operator graph before fusion.

    A line reads `name = Op(input, input:port, ^control) -> type[shape] {CPU,GPU} weights=bytes`.
    """
    lines = [f"# signature {graph.signature}: {len(graph)} operators"]
    lines.extend(_line(graph, operator) for operator in graph.operators)
    for group in graph.colocation:
        names = ", ".join(graph.operators[m].name for m in group.members)
        lines.append(f"colocate [{group.reason}]: {names}")
    return "\n".join(lines) + "\n"


def _line(graph: Graph, operator: Operator) -> str:
    inputs = [
        graph.operators[r.producer].name + (f":{r.port}" if r.port else "") for r in operator.inputs
    ]
    inputs.extend(f"^{graph.operators[c].name}" for c in operator.controls)
    outputs = ", ".join(str(spec) for spec in operator.outputs) or "-"
    weights = f" weights={operator.weight_bytes}" if operator.weight_bytes else ""
    types = ",".join(operator.device_types)
    return f"{operator.name} = {operator.op}({', '.join(inputs)}) -> {outputs} {{{types}}}{weights}"

"""The coarse graph: what the placement sees after fusion and colocation, and its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph, TensorRef

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True)
class Kernel:
    """Members of a fused operator that a device type runs as one kernel."""

    device_type: str
    members: tuple[int, ...]
    """Indices into the fine graph, ascending, two or more."""


@dataclass(frozen=True, slots=True)
class FusedOperator:
    """Operators of the fine graph that are placed as one, since some device runs them as one."""

    name: str
    """Name of the member that does the main work."""
    members: tuple[int, ...]
    """Indices into the fine graph, ascending."""
    rule: str
    """The rule that made it, `colocation`, or empty for a single operator."""
    device_types: tuple[str, ...]
    """Device types that can run every member."""
    kernels: tuple[Kernel, ...] = ()
    """What runs as one; members in none of a device type's run by themselves there."""


@dataclass(frozen=True, slots=True)
class CoarseTensor:
    """A tensor that leaves its fused operator, or a control dependency between two of them."""

    source: TensorRef
    """The fine tensor; port -1 for a control dependency."""
    producer: int
    consumers: tuple[int, ...]
    """Fused operators that read it, ascending, never the producer."""
    nbytes: int


@dataclass(frozen=True)
class CoarseGraph:
    """Fused operators in topological order, and what flows between them."""

    fine: Graph = field(repr=False)
    operators: tuple[FusedOperator, ...]
    tensors: tuple[CoarseTensor, ...]
    colocation: tuple[tuple[int, ...], ...] = ()
    """Groups that must share a device but could not be merged without a cycle."""
    runtime_fusions: tuple[tuple[int, ...], ...] = ()
    """Operators of the fine graph that TensorFlow may run as one kernel, merged here or not."""

    def __len__(self) -> int:
        return len(self.operators)

    def to_networkx(self) -> nx.DiGraph[str]:
        """The fused operators by name, in order, and what flows, for analysis and drawing.

        Nodes have `rule`, `device_types` and `members`, the names of the fine operators. An edge
        goes from a producer to a reader and has `tensors`, the fine tensors as `name:port`
        (`^name` for a control dependency), and `nbytes`, what they hold together.
        """
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph(name=self.fine.signature)
        for operator in self.operators:
            members = tuple(self.fine.operators[i].name for i in operator.members)
            graph.add_node(
                operator.name,
                rule=operator.rule,
                device_types=operator.device_types,
                members=members,
            )
        for tensor in self.tensors:
            producer, port = self.fine.operators[tensor.source.producer].name, tensor.source.port
            source = f"^{producer}" if port < 0 else f"{producer}:{port}"
            for consumer in tensor.consumers:
                ends = self.operators[tensor.producer].name, self.operators[consumer].name
                known = graph.get_edge_data(*ends, {"tensors": (), "nbytes": 0})
                graph.add_edge(
                    *ends,
                    tensors=(*known["tensors"], source),
                    nbytes=known["nbytes"] + tensor.nbytes,
                )
        return graph


@dataclass(frozen=True)
class Expansion:
    """The way back from a placement of the coarse graph to one of the fine graph."""

    owner: Sequence[int]
    """For each fine operator, its fused operator."""
    names: Sequence[str]
    """Names of the fused operators."""
    fine_names: Sequence[str]
    """Names of the fine operators."""

    def expand(self, placement: Mapping[str, str]) -> dict[str, str]:
        """Fused operator -> device becomes operator -> device.

        Raises:
          MoiraiError: a fused operator has no device.
        """
        missing = [name for name in self.names if name not in placement]
        if missing:
            raise MoiraiError(
                f"{len(missing)} fused operators have no device, the first is {missing[0]!r}",
                why="a partial placement would leave the rest to TensorFlow's default",
                fix="give every fused operator of the coarse graph a device",
            )
        return {
            name: placement[self.names[owner]]
            for name, owner in zip(self.fine_names, self.owner, strict=True)
        }


def dump_coarse(coarse: CoarseGraph) -> str:
    """The graph after fusion: fused operators, their members, and the tensors between them."""
    fine = coarse.fine.operators
    lines = [f"# signature {coarse.fine.signature}: {len(coarse)} fused operators"]
    for fused in coarse.operators:
        rule = fused.rule or "single"
        lines.append(f"{fused.name} [{rule}] {{{','.join(fused.device_types)}}}")
        lines.extend(f"    {fine[m].op:<24} {fine[m].name}" for m in fused.members)
    for tensor in coarse.tensors:
        readers = ", ".join(coarse.operators[c].name for c in tensor.consumers)
        port = "control" if tensor.source.port < 0 else str(tensor.source.port)
        name = fine[tensor.source.producer].name
        lines.append(f"tensor {name}:{port} ({tensor.nbytes} bytes) -> {readers}")
    for group in coarse.colocation:
        lines.append("colocate: " + ", ".join(coarse.operators[m].name for m in group))
    return "\n".join(lines) + "\n"

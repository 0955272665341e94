"""Which operators must wait for which, so that TensorFlow keeps the planned order of every device.

The planned order is one of fused operators. One comes before the next if all its work is done when
any work of the next starts. Its work are its members that depend on the inference's inputs (or on
variables, if none does), without those that only pass tensors on or handle their shapes. A control
edge can name nodes of its own function body only, so each body keeps the order of the work in it.
Of these precedences the fewest are written that, with the graph's own edges, imply all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

from tensorflow.python.framework import op_def_registry

from moirai_tf.fusion.analysis import analyse
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.fusion.ops import CONTRACTIONS, IDENTITIES, VARIABLE_READS
from moirai_tf.graph.flatten import FlatNode
from moirai_tf.graph.graph import CLIENT_OPS, Graph, Scope
from moirai_tf.graph.importer import flat_nodes
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.model.validate import input_node, tensor_names
from moirai_tf.placement.problem import topological_order
from moirai_tf.rewrite.body import Body, needed_by
from moirai_tf.rewrite.plan import OrderSummary, Precedence

_NO_WORK = IDENTITIES | VARIABLE_READS | CLIENT_OPS | {"NoOp", "Const"}

Path = tuple[str, ...]
"""The calls that lead from the main graph to a body."""


@dataclass(frozen=True, slots=True, order=True)
class Wait:
    """A node of a body that is to wait for another one of it."""

    node: str
    before: str
    relay: bool
    """Whether the edge must start at an `Identity` of the first node's output: a control edge that
    leaves a node keeps Grappler from fusing it."""


@dataclass(frozen=True)
class Order:
    """The order of every device as edges between nodes."""

    waits: Mapping[Path, tuple[Wait, ...]] = field(default_factory=dict)
    """Body -> the edges to write there."""
    promises: tuple[Precedence, ...] = ()
    """What these edges enforce, in names of operators."""
    neighbours: int = 0
    """Pairs of fused operators that follow each other on a device."""
    left_out: int = 0
    """Those of them that nothing keeps in order."""

    @property
    def summary(self) -> OrderSummary:
        """What was written, for the plan."""
        return OrderSummary(len(self.promises), self.neighbours, self.left_out)


@dataclass(frozen=True, slots=True)
class _FusedWork:
    """Where the work of a fused operator starts and ends, as indices of flat nodes."""

    first: tuple[int, ...]
    last: tuple[int, ...]


def plan_order(
    model: SavedModel,
    coarse: CoarseGraph,
    orders: Sequence[Sequence[int]],
    placement: Mapping[str, str],
) -> Order:
    """The fewest control edges that keep the planned order of every device.

    Args:
      model: the model without a placement.
      coarse: the graph that was placed.
      orders: for each device, fused operators by start.
      placement: operator -> device.
    """
    writer = _OrderWriter(model, coarse, placement)
    fused = writer.works(coarse)
    works = [[fused[k] for k in order if fused[k].first] for order in orders]
    result, edges = writer.edges(works)
    waits: dict[Path, list[Wait]] = {}
    for pair in result.pairs:
        path, wait = edges[pair]
        waits.setdefault(path, []).append(wait)
    neighbours = [(a, b) for row in works for a, b in pairwise(row)]
    kept = sum(
        all(result.implies(last, first) for last in a.last for first in b.first)
        for a, b in neighbours
    )
    return Order(
        waits={path: tuple(sorted(found)) for path, found in waits.items()},
        promises=tuple(writer.promise(pair) for pair in result.pairs),
        neighbours=len(neighbours),
        left_out=len(neighbours) - kept,
    )


class _OrderWriter:
    def __init__(
        self, model: SavedModel, coarse: CoarseGraph, placement: Mapping[str, str]
    ) -> None:
        graph = coarse.fine
        self.meta_graph = model.meta_graph(graph.tags)
        self.placement = placement
        self.nodes: Sequence[FlatNode] = flat_nodes(self.meta_graph, graph.signature)
        self.index = {flat.name: i for i, flat in enumerate(self.nodes)}
        self.signature = graph.signature
        self.functions = graph.functions
        self.analysis = analyse(graph)
        self.kernels = {m: members for members in coarse.runtime_fusions for m in members}
        """Operator of the graph -> all that Grappler makes one kernel of, if it can."""
        self.fused = {self.index[graph.operators[m].name] for m in self.kernels}
        """Of these, the flat nodes: a control edge at one of them would keep Grappler from it."""
        self.same = _same_work(graph)
        kinds = graph.operators
        same = Counter(n for i, n in enumerate(self.same) if kinds[i].op not in IDENTITIES)
        self.twins = {
            self.index[operator.name]
            for operator, number in zip(graph.operators, self.same, strict=True)
            if same[number] > 1
        }
        """Operators that compute the same: Grappler runs one of them, if nothing else differs."""
        self._bodies: dict[str, Body] = {}

    def works(self, coarse: CoarseGraph) -> list[_FusedWork]:
        """The work of every fused operator."""
        operators, known = coarse.fine.operators, self.analysis
        folded = _folded(coarse.fine, known.fixed)
        idle = [
            o.op in _NO_WORK or folded[i] or known.shape[i] or self.same[i] != i
            for i, o in enumerate(operators)
        ]
        found = []
        for fused in coarse.operators:
            able = {m for m in fused.members if not idle[m]}
            work = {m for m in able if not known.fixed[m]} or able
            first, last = _ends(coarse.fine, fused.members, work)
            starts = dict.fromkeys(self._start(coarse.fine, m, work) for m in first)
            ends = ([self.index[operators[m].name] for m in row] for row in (starts, last))
            found.append(_FusedWork(*map(tuple, ends)))
        return found

    def _start(self, graph: Graph, operator: int, work: set[int]) -> int:
        """Where the time of a kernel goes: its contraction, whatever Grappler folds into that."""
        members = work.intersection(self.kernels.get(operator, ()))
        contractions = (m for m in sorted(members) if graph.operators[m].op in CONTRACTIONS)
        return next(contractions, operator)

    def edges(
        self, works: Sequence[Sequence[_FusedWork]]
    ) -> tuple[ReducedOrder, dict[Pair, tuple[Path, Wait]]]:
        """The precedences that are needed, and for every possible one the edge that enforces it."""
        possible: dict[Pair, tuple[Path, Wait]] = {}
        for row in works:
            self._chain(row, possible)
        by_body: dict[Path, tuple[Body, dict[tuple[str, str], list[Pair]]]] = {}
        for pair, (path, wait) in possible.items():
            body = self._body(self.nodes[pair[0]].scope)
            _, pairs = by_body.setdefault(path, (body, {}))
            pairs.setdefault((wait.before, wait.node), []).append(pair)
        kept = {
            pair
            for body, pairs in by_body.values()
            for edge in body.without_cycles(list(pairs))
            for pair in pairs[edge]
        }
        sources = [{ref.producer for ref in n.inputs} | set(n.controls) for n in self.nodes]
        asked = (last for row in works for work in row for last in work.last)
        return reduced(sources, [pair for pair in possible if pair in kept], asked), possible

    def promise(self, pair: Pair) -> Precedence:
        """A precedence in the names of operators."""
        return Precedence(self.nodes[pair[0]].name, self.nodes[pair[1]].name)

    def _chain(self, row: Sequence[_FusedWork], possible: dict[Pair, tuple[Path, Wait]]) -> None:
        """Every start of an operator waits for the ends of those before it in the same body."""
        open_ends: dict[Path, list[int]] = {}
        for work in row:
            written: dict[Path, bool] = {}
            for first in work.first:
                path = _path(self.nodes[first].scope)
                if not (ends := open_ends.get(path)):
                    continue
                node = self._waiting(first)
                waits = {} if node is None else self._waits(ends, first, node)
                written[path] = written.get(path, True) and waits.keys() >= set(ends)
                possible.update({(last, first): (path, wait) for last, wait in waits.items()})
            for path, complete in written.items():
                ends_here = any(_path(self.nodes[last].scope) == path for last in work.last)
                if complete and ends_here:
                    open_ends[path] = []
            for last in work.last:
                path = _path(self.nodes[last].scope)
                open_ends.setdefault(path, []).append(last)

    def _waiting(self, after: int) -> str | None:
        """The node of its body that bears the waits of a flat node, if one safely can."""
        flat = self.nodes[after]
        body = self._body(flat.scope)
        if after in self.twins or body.has_frames:
            return None
        name = str(flat.node.name)
        node = body.gate(name) if after in self.fused else name
        path = flat.name.removesuffix(name)
        there = node is not None and self.placement.get(path + node) == self.placement[flat.name]
        return node if there else None

    def _waits(self, ends: Sequence[int], after: int, node: str) -> dict[int, Wait]:
        """The edges that make a flat node wait for others of its body, where they are safe."""
        body = self._body(self.nodes[after].scope)
        found = {end: Wait(node, str(self.nodes[end].node.name), end in self.fused) for end in ends}
        return {end: wait for end, wait in found.items() if body.needed_alike((wait.before, node))}

    def _body(self, scope: Scope) -> Body:
        name = scope.function if scope.parent is not None else ""
        if name not in self._bodies:
            self._bodies[name] = self._function(name) if name else self._main()
        return self._bodies[name]

    def _function(self, name: str) -> Body:
        function = self.functions[name]
        return Body(function.node_def, {input_node(text) for text in function.ret.values()})

    def _main(self) -> Body:
        nodes = {n.name: n for n in self.meta_graph.graph_def.node}
        needed: dict[str, frozenset[str]] = {}
        for name in self.meta_graph.signature_def:
            known = self.meta_graph.signature_def[name]
            feeds, fetches = _tensors(known.inputs), _tensors(known.outputs)
            needed[name] = needed_by(nodes, fetches, feeds)
        own = self.meta_graph.signature_def[self.signature]
        others = [seen for name, seen in needed.items() if name != self.signature]
        return Body(nodes.values(), _tensors(own.outputs), others)


def _folded(graph: Graph, fixed: Sequence[bool]) -> list[bool]:
    """Whether an operator depends on constants alone: Grappler computes it once, beforehand."""
    folded: list[bool] = []
    for i, operator in enumerate(graph.operators):
        inputs = all(folded[ref.producer] for ref in operator.inputs)
        folded.append(fixed[i] and inputs and operator.op not in VARIABLE_READS)
    return folded


def _same_work(graph: Graph) -> list[int]:
    """For each operator, the first one that computes the same; constants count by value."""
    first: dict[object, int] = {}
    same: list[int] = []
    for i, operator in enumerate(graph.operators):
        inputs = tuple((same[ref.producer], ref.port) for ref in operator.inputs)
        key: object = (operator.op, inputs, _attributes(operator.node))
        if operator.op in IDENTITIES and len(inputs) == 1 and inputs[0][1] == 0:
            same.append(inputs[0][0])
        elif _is_stateless(operator.op) and not operator.controls:
            same.append(first.setdefault(key, i))
        else:
            same.append(i)
    return same


@cache
def _is_stateless(op: str) -> bool:
    op_def = op_def_registry.get(op)
    return op_def is not None and not op_def.is_stateful and op not in CLIENT_OPS


def _attributes(node: Any) -> tuple[tuple[str, bytes], ...]:
    """What a node computes; attributes with an underscore are notes."""
    attributes = sorted((n, v) for n, v in node.attr.items() if not n.startswith("_"))
    return tuple((name, value.SerializeToString(deterministic=True)) for name, value in attributes)


def _ends(graph: Graph, members: Sequence[int], work: set[int]) -> tuple[list[int], list[int]]:
    """The work that waits for no other work of the same members, and that which none waits for."""
    before: dict[int, set[int]] = {}
    for m in members:
        operator = graph.operators[m]
        sources = {*(ref.producer for ref in operator.inputs), *operator.controls}
        inside = sources & before.keys()
        before[m] = set().union(*(before[s] for s in inside)) | (inside & work)
    first = [m for m in sorted(work) if not before[m]]
    inner = set().union(*(before[m] for m in work)) if work else set()
    return first, sorted(work - inner)


def _path(scope: Scope) -> Path:
    return () if scope.parent is None else (*_path(scope.parent), scope.call)


def _tensors(infos: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(input_node(name) for info in infos.values() for name in tensor_names(info))


Pair = tuple[int, int]
"""(node that comes first, node that waits)."""


@dataclass(frozen=True)
class ReducedOrder:
    """What is left of a set of precedences, and what it implies."""

    pairs: tuple[Pair, ...]
    """Those that nothing else implies, in the order they were given."""
    bits: dict[int, int]
    """Node that comes first in some question -> its bit."""
    before: Sequence[int]
    """For each node, the bits of the nodes that must finish before it starts."""

    def implies(self, first: int, second: int) -> bool:
        """Whether one node must finish before another starts."""
        return bool(self.before[second] & self.bits[first])


def reduced(
    sources: Sequence[Collection[int]], pairs: Sequence[Pair], asked: Iterable[int] = ()
) -> ReducedOrder:
    """Removes every pair that the graph and the other pairs imply.

    In an acyclic graph the edges that no other path replaces are the only smallest set with the
    same closure (Aho, Garey and Ullman, 1972), so all others can go at once.

    Args:
      sources: for each node of the graph, the nodes that it waits for.
      pairs: precedences; with the graph they must be acyclic.
      asked: further nodes that `ReducedOrder.implies` can be asked about as first.

    Raises:
      ValueError: the pairs and the graph have a cycle.
    """
    waits = [set(known) for known in sources]
    for first, second in pairs:
        waits[second].add(first)
    bits = {n: 1 << k for k, n in enumerate(dict.fromkeys((*(a for a, _ in pairs), *asked)))}
    order = topological_order(len(waits), ((a, b) for b, known in enumerate(waits) for a in known))
    if len(order) < len(waits):
        raise ValueError("the planned order and the graph have a cycle")
    before = [0] * len(waits)
    for node in order:
        for source in waits[node]:
            before[node] |= before[source] | bits.get(source, 0)
    kept = tuple(
        (first, second)
        for first, second in dict.fromkeys(pairs)
        if first not in sources[second]
        and not any(before[s] & bits[first] for s in waits[second] if s != first)
    )
    return ReducedOrder(kept, bits, before)

"""Inlines a signature's function calls, as TensorFlow's runtime does, into one list of nodes.

Every call makes a scope of its own, so a function that is called twice appears twice. Control flow
(`While`, `If`, `Case`), calls that the runtime does not inline (`moirai_tf.graph.calls`) or keeps
on one device, and every other op with function attributes stay one node with their bodies inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensorflow.core.framework import node_def_pb2

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.calls import Calls, waited_for
from moirai_tf.graph.colocation import class_names
from moirai_tf.graph.graph import MERGE_OPS, Scope, TensorRef
from moirai_tf.model.op_types import Outputs, definition, outputs_of
from moirai_tf.model.validate import BACK_EDGE_SOURCES, function_attrs, input_node

_MOST_NESTED = 200
_MOST_OPERATORS = 2_000_000
_ONE_OUTPUT = Outputs((0,), {})


@dataclass(slots=True)
class FlatNode:
    """A node of the flat graph before its shapes are known."""

    name: str
    node: Any
    scope: Scope
    inputs: list[TensorRef]
    controls: list[int]
    types: tuple[int, ...]
    """TensorFlow's `DataType` of every output."""
    loose_inputs: tuple[int, ...] = ()
    """Input positions whose source, as the runtime sees it when it lowers control flow, asks for
    no device: the output of an inlined call, or a feed."""
    awaited: bool = False
    """A control output of the signature's function: it runs whether or not anybody reads it."""
    near: Mapping[str, int] = field(default_factory=dict)
    """Arguments of its function that the node's `_class` names, and where they come from."""


@dataclass(frozen=True, slots=True)
class _Tensors:
    """The flat tensors that a node (or an inlined call) gives to its body."""

    refs: Sequence[TensorRef]
    outputs: Outputs
    loose: bool = False
    """The nodes that stand for these tensors ask for no device."""


@dataclass
class _Body:
    """One function body (or the main graph) while its nodes are being emitted."""

    scope: Scope
    outer_controls: tuple[int, ...]
    """What must have run before the call: inherited by nodes that start or read arguments."""
    data: dict[str, _Tensors] = field(default_factory=dict)
    """Node or argument name -> its outputs."""
    done: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Node name -> operators whose completion completes it."""
    arguments: frozenset[str] = frozenset()
    controlling: frozenset[str] = frozenset()
    """Nodes that a control edge leaves."""
    awaited: frozenset[str] = frozenset()
    """Nodes that the fetches wait for without data."""


class Flattener:
    """Emits the flat nodes of a main graph, in topological order."""

    def __init__(self, library: Any) -> None:
        self.functions: dict[str, Any] = {f.signature.name: f for f in library.function}
        self._calls = Calls(self.functions)
        self.nodes: list[FlatNode] = []
        self._names: set[str] = set()
        self._sizes: dict[str, int] = {}

    def flatten(
        self,
        nodes: Sequence[Any],
        feeds: frozenset[str],
        fetches: Sequence[str],
        awaited: Iterable[str] = (),
    ) -> list[TensorRef]:
        """Emits what the fetched tensors of a main graph need; a fed node loses its own inputs.

        Args:
          nodes: all nodes of the main graph.
          feeds: those that are fed.
          fetches: tensors.
          awaited: nodes that somebody outside waits for without data.

        Returns:
          The flat tensor of each fetch.

        Raises:
          MoiraiError: a fetch has no value, a fed node has several, a function calls itself, or
            calls of calls grow beyond any bound.
        """
        roots = list(dict.fromkeys(input_node(text) for text in fetches))
        body = _Body(
            Scope("", ""),
            (),
            controlling=_controlling(nodes).union(awaited),
            awaited=frozenset((*roots, *awaited)),
        )
        ordered = _ordered(nodes, feeds, roots)
        self._check_size(ordered)
        self._emit_body(body, ordered, feeds)
        for text in fetches:
            if not body.data[input_node(text)].refs:
                raise MoiraiError(
                    f"the signature names {text!r}, an operation without outputs",
                    why="such an operation is run once, to initialise the model",
                    fix="choose a signature whose inputs and outputs are tensors",
                )
        return [self._resolve(body, text) for text in fetches]

    def _emit_body(
        self, body: _Body, nodes: Iterable[Any], feeds: frozenset[str] = frozenset()
    ) -> None:
        for node in nodes:
            controls = node.name in body.controlling
            function = None if node.name in feeds else self._calls.inlined(node, controls=controls)
            if function is not None:
                self._emit_call(body, node, function)
            else:
                self._emit_node(body, node, cut=node.name in feeds)

    def _check_size(self, nodes: Iterable[Any]) -> None:
        size = sum(self._size(node, ()) for node in nodes)
        if size > _MOST_OPERATORS:
            raise MoiraiError(
                f"the signature has {size} operators once its calls are inlined",
                why=f"each takes some 6 KB of memory, and the limit is {_MOST_OPERATORS} operators",
                fix="export the model with loops in the place of what is written or called again "
                "and again",
            )

    def _size(self, node: Any, inside: tuple[str, ...]) -> int:
        """How many operators a node and its functions have; shape inference visits all of them."""
        named = (node.op, *(function.name for _, _, function in function_attrs(node)))
        return 1 + sum(self._size_of(name, inside) for name in named if name in self.functions)

    def _size_of(self, function: str, inside: tuple[str, ...]) -> int:
        if function in inside or len(inside) > _MOST_NESTED:
            raise MoiraiError(
                f"function {function!r} calls itself, or calls are nested {len(inside)} deep",
                why="a recursive function has no finite operator graph",
                fix="export the model without recursive tf.functions",
            )
        if function not in self._sizes:
            nodes, inner = self.functions[function].node_def, (*inside, function)
            self._sizes[function] = sum(self._size(node, inner) for node in nodes)
        return self._sizes[function]

    def _emit_call(self, body: _Body, node: Any, function: Any) -> None:
        scope = Scope(
            function.signature.name, f"{body.scope.prefix}{node.name}/", body.scope, node.name
        )
        inputs, controls = self._wire(body, node, cut=False)
        names = [a.name for a in function.signature.input_arg]
        awaited = node.name in body.awaited
        inner = _Body(
            scope,
            tuple(controls),
            arguments=frozenset(names),
            controlling=self._calls.controlling(
                function, controls=awaited or node.name in body.controlling
            ),
            awaited=frozenset(function.control_ret.values() if awaited else ()),
        )
        loose = set(_loose(body, node))
        inner.data.update(
            {
                name: _Tensors((ref,), _ONE_OUTPUT, k in loose)
                for k, (name, ref) in enumerate(zip(names, inputs, strict=True))
            }
        )
        everything = [n.name for n in function.node_def]
        self._emit_body(inner, _ordered(function.node_def, frozenset(), everything))
        results = [a.name for a in function.signature.output_arg]
        refs = [self._resolve(inner, function.ret[name]) for name in results]
        body.data[node.name] = _Tensors(refs, self._outputs(node), loose=True)
        finished = {i for text in function.control_ret.values() for i in inner.done[text]}
        body.done[node.name] = tuple(sorted({*finished, *controls}))

    def _emit_node(self, body: _Body, node: Any, *, cut: bool) -> None:
        inputs, controls = self._wire(body, node, cut=cut)
        index = len(self.nodes)
        name = self._unique(f"{body.scope.prefix}{node.name}")
        loose = () if cut else _loose(body, node)
        outputs = self._outputs(node)
        node = _fed(node, outputs) if cut else node
        near = {
            other: body.data[other].refs[0].producer
            for other in class_names(node)
            if other in body.arguments
        }
        awaited = node.name in body.awaited
        types = outputs.types
        self.nodes.append(
            FlatNode(name, node, body.scope, inputs, controls, types, loose, awaited, near)
        )
        refs = [TensorRef(index, port) for port in range(len(outputs.types))]
        body.data[node.name] = _Tensors(refs, outputs, loose=cut)
        body.done[node.name] = (index,)

    def _wire(self, body: _Body, node: Any, *, cut: bool) -> tuple[list[TensorRef], list[int]]:
        """Data inputs and control inputs of a node as flat references."""
        if cut:
            return [], []
        inputs: list[TensorRef] = []
        controls: set[int] = set()
        starts = not node.input
        for text in node.input:
            source = input_node(text)
            starts = starts or source in body.arguments
            if text.startswith("^"):
                controls.update(body.done.get(source, ()))
            elif not self._is_back_edge(body, node, source):
                inputs.append(self._resolve(body, text))
        if starts:
            controls.update(body.outer_controls)
        return inputs, sorted(controls)

    def _is_back_edge(self, body: _Body, node: Any, source: str) -> bool:
        return node.op in MERGE_OPS and source not in body.data

    def _outputs(self, node: Any) -> Outputs:
        return outputs_of(node, definition(node, self.functions))

    def _resolve(self, body: _Body, text: str) -> TensorRef:
        """`a`, `a:1` or, in a function, `a:out_arg:1` to a flat tensor."""
        tensors = body.data[input_node(text)]
        return tensors.refs[tensors.outputs.port(text)]

    def _unique(self, name: str) -> str:
        """Two bodies can give one name twice; the second then gets a number."""
        chosen, k = name, 0
        while chosen in self._names:
            k += 1
            chosen = f"{name}_{k}"
        self._names.add(chosen)
        return chosen


def _fed(node: Any, outputs: Outputs) -> Any:
    """A fed node is a placeholder, whatever it was."""
    if len(outputs.types) != 1:
        raise MoiraiError(
            f"the signature feeds {node.name!r}, which has {len(outputs.types)} outputs",
            why="a feed replaces a node by one tensor",
            fix="choose a signature whose inputs are placeholders",
        )
    placeholder = node_def_pb2.NodeDef(name=node.name, op="Placeholder")
    placeholder.attr["dtype"].type = outputs.types[0]
    return placeholder


def _loose(body: _Body, node: Any) -> tuple[int, ...]:
    """Positions of data inputs whose source asks for no device."""
    sources = [input_node(text) for text in node.input if not text.startswith("^")]
    return tuple(k for k, s in enumerate(sources) if s in body.data and body.data[s].loose)


def _ordered(nodes: Sequence[Any], feeds: frozenset[str], roots: Sequence[str]) -> list[Any]:
    """What the roots need, in a topological order; loops' back edges do not count."""
    by_name = {n.name: n for n in nodes}
    order: list[Any] = []
    state: dict[str, int] = {}
    pending = list(roots)
    for root in pending:
        stack = [root]
        while stack:
            name = stack[-1]
            if state.get(name) == 2:
                stack.pop()
                continue
            node = by_name[name]
            if state.get(name) == 1:
                state[name] = 2
                order.append(node)
                stack.pop()
                pending.extend(_loop_ends(node, by_name))
                continue
            state[name] = 1
            stack.extend(
                source for source in _sources(node, by_name, feeds) if state.get(source) is None
            )
    return order


def _sources(node: Any, by_name: Mapping[str, Any], feeds: frozenset[str]) -> list[str]:
    if node.name in feeds:
        return []
    names = [input_node(text) for text in reversed(node.input)]
    return [n for n in names if n in by_name and by_name[n].op not in BACK_EDGE_SOURCES]


def _loop_ends(node: Any, by_name: Mapping[str, Any]) -> list[str]:
    """The `NextIteration`s that feed a `Merge`: needed, but not before it."""
    names = [input_node(text) for text in node.input] if node.op in MERGE_OPS else []
    return [n for n in names if n in by_name and by_name[n].op in BACK_EDGE_SOURCES]


def _controlling(nodes: Sequence[Any]) -> frozenset[str]:
    """Nodes of a main graph that a control edge leaves; from an unread one, one leads to the end.

    TensorFlow decides before it prunes, so all nodes count, not only those that the fetches need.
    """
    read = {input_node(text) for node in nodes for text in node.input}
    return waited_for(nodes).union(n.name for n in nodes if n.name not in read)

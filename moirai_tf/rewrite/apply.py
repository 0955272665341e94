"""Writes a placement into a MetaGraph: devices of nodes, clones of functions, object graph.

A function that is called with one placement is edited where it stands. If calls of it need
different placements or orders, every further one gets a clone, and its caller names the clone.

Feeds and calls are put on the client's device. The `Identity` nodes that TensorFlow leaves where it
inlines a call take theirs from there; without one they go to the first GPU there is, and everything
that passes them moves there and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import device as device_lib

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import RESULT, Graph, Scope
from moirai_tf.model.op_types import attr_of, definition, outputs_of, type_name
from moirai_tf.model.validate import function_attrs, input_node
from moirai_tf.rewrite.kept_order import Order, Wait
from moirai_tf.rewrite.plan import CallEdit, Edits, NodeEdit, ObjectEdit, OrderEdit, RelayEdit

CLONE_MARK = "__moirai_"
RELAY_MARK = "moirai_order"
_Children = list[tuple[str, str, int, str]]
_Layout = tuple[
    tuple[tuple[str, str], ...], tuple[tuple[str, str, int, str], ...], tuple[Wait, ...]
]
_RUNTIME_TYPES = frozenset({"resource", "variant"})
"""What an `Identity` cannot pass on everywhere."""


def apply_placement(
    meta_graph: Any,
    graph: Graph,
    placement: Mapping[str, str],
    client: str,
    order: Order | None = None,
) -> Edits:
    """Edits a MetaGraph in place so that every operator runs where, and when, it was planned.

    Args:
      meta_graph: a copy of the model's `MetaGraphDef`; it is changed.
      graph: the flat graph of the signature that was placed.
      placement: operator -> device.
      client: the device of feeds and fetches.
      order: the control edges to add; None adds none.

    Returns:
      What was changed; `undo.strip` reverts exactly that.

    Raises:
      MoiraiError: one resource would need two devices.
    """
    return _Writer(meta_graph, client).write(call_tree(graph, placement, order or Order()))


class _Writer:
    def __init__(self, meta_graph: Any, client: str) -> None:
        self.meta_graph = meta_graph
        self.client = client
        self.library = meta_graph.graph_def.library
        self.originals: dict[str, Any] = {}
        for function in self.library.function:
            original = type(function)()
            original.CopyFrom(function)
            self.originals[function.signature.name] = original
        self.bodies = {f.signature.name: f for f in self.library.function}
        self.variants: dict[tuple[str, _Layout], str] = {}
        self.edited: set[str] = set()
        self.uniform: dict[tuple[str, str], str] = {}
        self.nodes: list[NodeEdit] = []
        self.calls: list[CallEdit] = []
        self.relays: list[RelayEdit] = []
        self.order: list[OrderEdit] = []
        self.clones: dict[str, str] = {}

    def write(self, root: CallTree) -> Edits:
        nodes = self.meta_graph.graph_def.node
        main = {node.name: node for node in nodes}
        children = list(self._children(root, main))
        devices = {**root.devices, **_twins(main, root.devices)}
        devices |= dict.fromkeys(root.calls, self.client)
        self._edit("", nodes, devices, children, root.waits)
        objects = _object_edits(self.meta_graph, main, devices, self.client)
        return Edits(
            nodes=tuple(sorted(self.nodes)),
            calls=tuple(sorted(self.calls)),
            objects=tuple(sorted(objects)),
            relays=tuple(self.relays),
            order=tuple(self.order),
            clones=dict(sorted(self.clones.items())),
        )

    def _variant(self, tree: CallTree) -> str:
        """The name of a function whose body has the devices and the order of this call."""
        original = {n.name: n for n in self.originals[tree.function].node_def}
        return self._make(tree, list(self._children(tree, original)))

    def _children(
        self, tree: CallTree, nodes: Mapping[str, Any]
    ) -> Iterator[tuple[str, str, int, str]]:
        """(node, attribute, index, function) for every function that the body's nodes name."""
        for call, child in tree.calls.items():
            yield call, "f", -1, self._variant(child)
        for name, device in tree.devices.items():
            for attribute, index, function in function_attrs(nodes[name]):
                if function.name in self.originals:
                    yield name, attribute, index, self._uniform(function.name, device)

    def _uniform(self, function: str, device: str) -> str:
        """A variant with everything on one device: the body of a loop or a branch."""
        key = (function, device)
        if key not in self.uniform:
            self.uniform[key] = function  # a function may name itself
            body = self.originals[function].node_def
            tree = CallTree(function, {n.name: device for n in body})
            nodes = {n.name: n for n in body}
            self.uniform[key] = self._make(tree, list(self._children(tree, nodes)))
        return self.uniform[key]

    def _make(self, tree: CallTree, children: _Children) -> str:
        function = tree.function
        layout = (tuple(sorted(tree.devices.items())), tuple(sorted(children)), tree.waits)
        if (function, layout) in self.variants:
            return self.variants[function, layout]
        name = self._clone(function) if function in self.edited else function
        self.variants[function, layout] = name
        self.edited.add(function)
        devices = {**tree.devices, **dict.fromkeys(tree.calls, self.client)}
        self._edit(name, self.bodies[name].node_def, devices, children, tree.waits)
        return name

    def _clone(self, function: str) -> str:
        number = next(k for k in count(1) if f"{function}{CLONE_MARK}{k}" not in self.bodies)
        name = f"{function}{CLONE_MARK}{number}"
        copy = self.library.function.add()
        copy.CopyFrom(self.originals[function])
        copy.signature.name = name
        self.bodies[name] = copy
        self.clones[name] = function
        return name

    def _edit(
        self,
        function: str,
        body: Any,
        devices: Mapping[str, str],
        children: _Children,
        waits: tuple[Wait, ...],
    ) -> None:
        nodes = {n.name: n for n in body}
        for name, device in devices.items():
            self._move(function, nodes[name], device)
        for name, attribute, index, target in children:
            before = rename_function(nodes[name], attribute, index, target)
            if before != target:
                self.calls.append(CallEdit(function, name, attribute, index, before, target))
        relays: dict[str, str] = {}
        for wait in waits:
            if wait.relay and wait.before not in relays:
                relays[wait.before] = self._relay(function, body, nodes[wait.before])
            before = relays.get(wait.before, wait.before)
            nodes[wait.node].input.append(f"^{before}")
            self.order.append(OrderEdit(function, wait.node, before))

    def _move(self, function: str, node: Any, device: str) -> None:
        self.nodes.append(NodeEdit(function, node.name, node.device, device))
        node.device = device

    def _relay(self, function: str, body: Any, node: Any) -> str:
        """Adds an `Identity` of a node's output; the node itself if it has none to pass on."""
        tensor = _tensor_of(node, definition(node, self.originals), in_function=bool(function))
        if tensor is None:
            return str(node.name)
        taken = {n.name for n in body}
        names = (f"{node.name}/{RELAY_MARK}{k or ''}" for k in count())
        name = next(n for n in names if n not in taken)
        edit = RelayEdit(function, name, *tensor)
        self.relays.append(edit)
        self._move(function, add_relay(body, edit), node.device)
        return name


def add_relay(body: Any, edit: RelayEdit) -> Any:
    """Adds the `Identity` of an edit to a body; returns it, without a device."""
    relay = body.add()
    relay.name, relay.op = edit.node, "Identity"
    relay.input.append(edit.source)
    relay.attr["T"].type = types_pb2.DataType.Value(f"DT_{edit.dtype.upper()}")
    return relay


def _tensor_of(node: Any, op_def: Any, *, in_function: bool) -> tuple[str, str] | None:
    """The first output of a node that an `Identity` can read, as text, and its type."""
    outputs = outputs_of(node, op_def)
    for argument, ports in outputs.arguments.items():
        for k, port in enumerate(ports):
            dtype = type_name(outputs.types[port])
            if dtype not in _RUNTIME_TYPES and not dtype.endswith("_ref"):
                text = f"{node.name}:{argument}:{k}" if in_function else f"{node.name}:{port}"
                return text.removesuffix(":0") if not in_function else text, dtype
    return None


def rename_function(node: Any, attribute: str, index: int, target: str) -> str:
    """Makes a function attribute name another function; returns the name it had."""
    value = node.attr[attribute]
    function = value.func if index < 0 else value.list.func[index]
    before = str(function.name)
    function.name = target
    return before


def _twins(main: Mapping[str, Any], devices: Mapping[str, str]) -> dict[str, str]:
    """Handles that share a name with a placed one are the same resource, so follow it."""
    placed = {_resource(main[n]): d for n, d in devices.items() if _resource(main[n]) is not None}
    return {
        name: placed[_resource(node)]
        for name, node in main.items()
        if name not in devices and _resource(node) in placed
    }


def _resource(node: Any) -> tuple[str, bytes, bytes] | None:
    shared = attr_of(node, "shared_name").s
    return (node.op, attr_of(node, "container").s, shared) if shared else None


def _object_edits(
    meta_graph: Any, main: Mapping[str, Any], devices: Mapping[str, str], client: str
) -> list[ObjectEdit]:
    """Variables and tables of the object graph follow the handles that their calls receive.

    An export of Keras holds every variable twice. The TF2 loader would put the copies, which no
    function reads, into the memory of GPU:0.
    """
    objects = meta_graph.object_graph_def
    wanted: dict[int, str] = {}
    types = {device_lib.DeviceSpec.from_string(name).device_type for name in devices.values()}
    if "GPU" in types:
        functions = objects.concrete_functions.values()
        captured = {node_id for function in functions for node_id in function.bound_inputs}
        for node_id, node in enumerate(objects.nodes):
            if node.WhichOneof("kind") == "variable" and node_id not in captured:
                wanted[node_id] = client
    for node in main.values():
        name = attr_of(node, "f").func.name
        if name not in objects.concrete_functions:
            continue
        bound = objects.concrete_functions[name].bound_inputs
        handles = [input_node(t) for t in node.input if not t.startswith("^")]
        tail = handles[len(handles) - len(bound) :]
        for node_id, handle in zip(bound, tail, strict=True):
            kind = objects.nodes[node_id].WhichOneof("kind")
            if handle in devices and kind in ("variable", "resource"):
                _want(wanted, node_id, devices[handle])
    edits = []
    for node_id, device in wanted.items():
        kind = objects.nodes[node_id].WhichOneof("kind")
        holder = getattr(objects.nodes[node_id], kind)
        edits.append(ObjectEdit(node_id, kind, holder.device, device))
        holder.device = device
    return edits


def _want(wanted: dict[int, str], node_id: int, device: str) -> None:
    if wanted.setdefault(node_id, device) == device:
        return
    raise MoiraiError(
        f"object {node_id} of the model would be on {wanted[node_id]} and on {device}",
        why="a variable lives on one device; its readers elsewhere would copy it every time",
        fix="report this model: its handles share one variable that the import did not see",
    )


@dataclass
class CallTree:
    """The operators of one call of a function, and the calls inside it."""

    function: str
    devices: dict[str, str] = field(default_factory=dict)
    """Node name in the body -> device."""
    calls: dict[str, CallTree] = field(default_factory=dict)
    """Name of the calling node -> its tree."""
    waits: tuple[Wait, ...] = ()
    """Control edges to add to the body."""


def call_tree(graph: Graph, placement: Mapping[str, str], order: Order) -> CallTree:
    """Placement and order as a tree whose root is the main graph; results have no node there."""
    root = CallTree("")
    trees: dict[Scope | None, CallTree] = {}
    planned = {(operator.scope, operator.node.name) for operator in graph.operators}
    for operator in graph.operators:
        if operator.op == RESULT or operator.name not in placement:
            continue
        tree = _tree_of(operator.scope, trees, root)
        tree.devices[operator.node.name] = placement[operator.name]
        for unread in operator.unread:
            # The TF2 loader runs it: where control flow starts follows what feeds it.
            if (unread.scope, unread.node) not in planned:
                feeding = _tree_of(unread.scope, trees, root)
                feeding.devices[unread.node] = placement[operator.name]
    for calls, waits in order.waits.items():
        tree = root
        for call in calls:
            tree = tree.calls[call]
        tree.waits = waits
    return root


def _tree_of(scope: Scope, trees: dict[Scope | None, CallTree], root: CallTree) -> CallTree:
    if scope.parent is None:
        return root
    if scope not in trees:
        outer = _tree_of(scope.parent, trees, root)
        trees[scope] = outer.calls.setdefault(scope.call, CallTree(scope.function))
    return trees[scope]

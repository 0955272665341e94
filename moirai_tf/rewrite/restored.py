"""Reads from a MetaGraph which variable is restored from which tensor of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorflow.python.framework import tensor_util

from moirai_tf.model.op_types import attr_of
from moirai_tf.model.validate import input_node, tensor_names

ASSIGNMENTS = frozenset({"AssignVariableOp", "Assign"})
_VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
_OTHERS = frozenset({"Const", "Identity", "NoOp", "Placeholder", "PlaceholderWithDefault"})
_KNOWN = ASSIGNMENTS | _VARIABLES | _OTHERS | {"RestoreV2"}


@dataclass(frozen=True)
class Restored:
    """One variable's assignment."""

    key: bytes
    """Name of the tensor in the checkpoint."""
    part: bytes
    """Shape and slice of a partitioned variable; empty for a whole tensor."""
    assignment: Any
    """The `NodeDef` that assigns it."""


def restored(meta_graph: Any, root: str) -> dict[str, Restored] | None:
    """Variable (a main-graph node) -> what the main-graph node `root` restores into it.

    None if the restore does anything else: fills tables, converts, or is built in another way.
    """
    main = {node.name: node for node in meta_graph.graph_def.node}
    if root not in main:
        return None
    body, arguments = _body(meta_graph, main, main[root])
    nodes = {node.name: node for node in body}
    if any(node.op not in _KNOWN for node in body):
        return None
    found: dict[str, Restored] = {}
    for node in body:
        if node.op not in ASSIGNMENTS:
            continue
        variable = arguments.get(node.input[0], input_node(node.input[0]))
        source = _source(node.input[1], nodes)
        handle = main.get(variable)
        if source is None or handle is None or handle.op not in _VARIABLES or variable in found:
            return None
        found[variable] = Restored(*source, node)
    return found


def read_variables(meta_graph: Any) -> set[str]:
    """Nodes of the main graph that a signature or an initialiser needs, variables among them.

    An export of Keras holds further copies of its variables for the TF2 loader, which no Session
    ever reads.
    """
    main = {node.name: node for node in meta_graph.graph_def.node}
    wanted = [
        name
        for signature in meta_graph.signature_def.values()
        for info in signature.outputs.values()
        for name in tensor_names(info)
    ]
    for collection in ("saved_model_main_op", "legacy_init_op"):
        if collection in meta_graph.collection_def:  # reading a missing one would add it
            wanted.extend(meta_graph.collection_def[collection].node_list.value)
    pending = [input_node(name) for name in wanted]
    reached: set[str] = set()
    while pending:
        name = pending.pop()
        if name in main and name not in reached:
            reached.add(name)
            pending.extend(map(input_node, main[name].input))
    return reached


def _body(meta_graph: Any, main: Mapping[str, Any], root: Any) -> tuple[list[Any], dict[str, str]]:
    """The nodes that restore, and argument -> main-graph node if they are a function's."""
    name = attr_of(root, "f").func.name
    for function in meta_graph.graph_def.library.function:
        if function.signature.name == name:
            given = map(input_node, root.input)
            names = (argument.name for argument in function.signature.input_arg)
            return list(function.node_def), dict(zip(names, given, strict=False))
    reached = [root.name]
    for node in reached:
        sources = dict.fromkeys(map(input_node, main[node].input))
        reached.extend(source for source in sources if source not in reached)
    return [main[node] for node in reached], {}


def _source(text: str, nodes: Mapping[str, Any]) -> tuple[bytes, bytes] | None:
    """Key and part of the checkpoint's tensor that arrives at an input."""
    node = nodes.get(input_node(text))
    while node is not None and node.op == "Identity":
        text = node.input[0]
        node = nodes.get(input_node(text))
    if node is None or node.op != "RestoreV2":
        return None
    port = text.rpartition(":")[2]
    index = int(port) if port.isdigit() else 0
    keys, parts = (_strings(nodes.get(input_node(t))) for t in node.input[1:3])
    return (keys[index], parts[index]) if index < min(len(keys), len(parts)) else None


def _strings(node: Any) -> list[bytes]:
    if node is None or node.op != "Const":
        return []
    values = tensor_util.MakeNdarray(node.attr["value"].tensor)
    return [bytes(value) for value in values.ravel()]

"""Copies of variables: each device that needs a variable of another one has its own.

In a Session a copy is one more `VarHandleOp`, filled by what the model's initialisation waits for,
which runs after the checkpoint was read. The TF2 loader makes an object of the object graph for
each copy; the first one fills all of them once everything is restored, and destroys them with the
model. The checkpoint knows nothing of copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.core.framework import function_pb2, node_def_pb2, types_pb2
from tensorflow.python.framework import tensor_util

from moirai_tf.model.validate import input_node

INIT_SIGNATURE = "__saved_model_init_op"
_SCOPE = "moirai_mirrors"


@dataclass(frozen=True)
class Mirror:
    """One copy of one variable."""

    handle: str
    """Node of the main graph: the variable's `VarHandleOp`."""
    share: int
    """The share that uses the copy; from 1 on."""
    object_id: int
    """The variable in the object graph."""

    @property
    def node(self) -> str:
        """The copy's own `VarHandleOp`."""
        return f"{_SCOPE}/{self.share}/{self.handle}"


def add_nodes(meta_graph: Any, mirrors: Sequence[Mirror], init: str) -> list[str]:
    """Adds the copies to the main graph, and makes a node of it wait until they are filled.

    Returns:
      The names of the nodes that were added.
    """
    nodes = meta_graph.graph_def.node
    main = {node.name: node for node in nodes}
    added = []
    for mirror in mirrors:
        original = main[mirror.handle]
        copy = node_def_pb2.NodeDef()
        copy.CopyFrom(original)
        copy.name, copy.attr["shared_name"].s = mirror.node, mirror.node.encode()
        copy.attr.pop("_class", None)
        added += [copy, *_filling(mirror.node, mirror.handle, mirror.node, original)]
    nodes.extend(added)
    main[init].input.extend(f"^{n.name}" for n in added if n.op == "AssignVariableOp")
    return [node.name for node in added]


def init_node(meta_graph: Any) -> str:
    """The node that initialises a model when a Session loads it; empty if it has none."""
    tensor = meta_graph.signature_def[INIT_SIGNATURE].outputs[INIT_SIGNATURE].name \
        if INIT_SIGNATURE in meta_graph.signature_def else ""  # fmt: skip
    return input_node(tensor) if tensor else ""


def add_objects(meta_graph: Any, mirrors: Sequence[Mirror]) -> tuple[dict[str, int], list[str]]:
    """Adds the copies to the object graph.

    Returns:
      The object of each copy, by its node, and the names of the functions that were added.
    """
    main = {node.name: node for node in meta_graph.graph_def.node}
    writer = _Objects(meta_graph)
    found: dict[str, int] = {}
    for k, mirror in enumerate(mirrors):
        creator = writer.function(
            _creator(f"{_SCOPE}_create_{k}", mirror.node, main[mirror.handle])
        )
        found[mirror.node] = writer.resource(creator)
    leader = writer.objects.nodes[found[mirrors[0].node]]
    variables = [main[mirror.handle] for mirror in mirrors]
    both = [i for mirror in mirrors for i in (mirror.object_id, found[mirror.node])]
    fill = writer.function(_initializer(f"{_SCOPE}_fill_0", variables), both)
    clear = writer.function(
        _destroyer(f"{_SCOPE}_destroy_0", len(mirrors)), [found[m.node] for m in mirrors]
    )
    _child(leader, fill, "_initialize")
    _child(leader, clear, "_destroy_resource")
    for k, mirror in enumerate(mirrors[1:], start=1):
        _child(leader, found[mirror.node], f"mirror_{k}")
    _child(writer.objects.nodes[0], found[mirrors[0].node], _SCOPE)
    return found, writer.functions


def remove_objects(meta_graph: Any, count: int) -> None:
    """Takes the objects that `add_objects` added out again."""
    objects = meta_graph.object_graph_def
    if count:
        del objects.nodes[0].children[-1]
        del objects.nodes[len(objects.nodes) - count :]


class _Objects:
    def __init__(self, meta_graph: Any) -> None:
        self.objects = meta_graph.object_graph_def
        self.library = meta_graph.graph_def.library
        self.functions: list[str] = []

    def function(self, definition: Any, bound: Sequence[int] = ()) -> int:
        """Adds a function without arguments of its own, and an object that stands for it."""
        name = definition.signature.name
        self.library.function.append(definition)
        self.functions.append(name)
        concrete = self.objects.concrete_functions[name]
        concrete.bound_inputs.extend(bound)
        values = concrete.canonicalized_input_signature.tuple_value.values
        values.add().tuple_value.SetInParent()
        values.add().dict_value.SetInParent()
        output = definition.signature.output_arg[0]
        spec = concrete.output_signature.tensor_spec_value
        spec.name, spec.dtype = "unknown", output.type
        spec.shape.SetInParent()
        node = self.objects.nodes.add()
        node.bare_concrete_function.concrete_function_name = name
        return len(self.objects.nodes) - 1

    def resource(self, creator: int) -> int:
        node = self.objects.nodes.add()
        node.resource.SetInParent()
        _child(node, creator, "_create_resource")
        return len(self.objects.nodes) - 1


def _child(node: Any, node_id: int, name: str) -> None:
    node.children.add(node_id=node_id, local_name=name)


def _filling(scope: str, source: str, target: str, like: Any) -> list[Any]:
    """Reads a variable and assigns what it holds to another one."""
    read = node_def_pb2.NodeDef(name=f"{scope}/read", op="ReadVariableOp", input=[source])
    assign = node_def_pb2.NodeDef(
        name=f"{scope}/assign", op="AssignVariableOp", input=[target, f"{scope}/read"]
    )
    for node in (read, assign):
        node.attr["dtype"].CopyFrom(like.attr["dtype"])
    return [read, assign]


def _creator(name: str, variable: str, like: Any) -> Any:
    """Makes a variable. The loader adds a number to its name, another one each time it loads."""
    definition = function_pb2.FunctionDef()
    definition.signature.name, definition.signature.is_stateful = name, True
    definition.signature.output_arg.add(name="handle", type=types_pb2.DT_RESOURCE)
    handle = definition.node_def.add(name="variable", op="VarHandleOp")
    for key in ("dtype", "shape"):
        handle.attr[key].CopyFrom(like.attr[key])
    handle.attr["shared_name"].s, handle.attr["container"].s = variable.encode(), b""
    definition.ret["handle"] = "variable:resource:0"
    return _running(definition, ["variable"])


def _initializer(name: str, variables: Sequence[Any]) -> Any:
    """Takes the handles of a variable and of its copy in turn."""
    definition = function_pb2.FunctionDef()
    definition.signature.name, definition.signature.is_stateful = name, True
    assigned = []
    for k, variable in enumerate(variables):
        for argument in (f"variable_{k}", f"copy_{k}"):
            _handle(definition, argument, variable)
        read, assign = _filling(f"fill_{k}", f"variable_{k}", f"copy_{k}", variable)
        assign.input[1] = f"{read.name}:value:0"
        definition.node_def.extend([read, assign])
        assigned.append(assign.name)
    return _running(_done(definition, assigned), assigned)


def _destroyer(name: str, copies: int) -> Any:
    definition = function_pb2.FunctionDef()
    definition.signature.name, definition.signature.is_stateful = name, True
    destroyed = []
    for k in range(copies):
        _handle(definition, f"copy_{k}", None)
        node = definition.node_def.add(name=f"destroy_{k}", op="DestroyResourceOp")
        node.input.append(f"copy_{k}")
        node.attr["ignore_lookup_error"].b = True
        destroyed.append(node.name)
    return _running(_done(definition, destroyed), destroyed)


def _handle(definition: Any, name: str, like: Any) -> None:
    argument = definition.signature.input_arg.add(name=name, type=types_pb2.DT_RESOURCE)
    if like is not None:
        argument.handle_data.add(dtype=like.attr["dtype"].type, shape=like.attr["shape"].shape)


def _done(definition: Any, after: Sequence[str]) -> Any:
    """Returns a number when nodes have run."""
    node = definition.node_def.add(name="done", op="Const")
    node.input.extend(f"^{name}" for name in after)
    node.attr["dtype"].type = types_pb2.DT_INT32
    node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(np.int32(1)))
    definition.signature.output_arg.add(name="done", type=types_pb2.DT_INT32)
    definition.ret["done"] = "done:output:0"
    return definition


def _running(definition: Any, ends: Sequence[str]) -> Any:
    """Nodes that run although nobody reads them."""
    for name in ends:
        definition.signature.control_output.append(name)
        definition.control_ret[name] = name
    return definition


def copies_of(mirrors: Sequence[Mirror]) -> Mapping[str, tuple[str, ...]]:
    """Variable -> its copies, by share."""
    found: dict[str, list[str]] = {}
    for mirror in sorted(mirrors, key=lambda m: m.share):
        found.setdefault(mirror.handle, []).append(mirror.node)
    return {handle: tuple(nodes) for handle, nodes in found.items()}

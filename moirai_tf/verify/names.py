"""Finds, for a node of a partitioned graph, the operator of the plan that it belongs to.

A Session names inlined nodes as the plan does. The TF2 loader runs the function that the
signature's main-graph node calls, so its names lack that node's, and what the main graph passes to
the call arrives as numbered arguments.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from moirai_tf.model.validate import input_node, tensor_names
from moirai_tf.rewrite.plan import Plan

_FEED = re.compile(r"_arg_(?P<node>.+)_\d+_\d+")
_REPLICA = re.compile(r"(?P<node>.+)/replicate/_\d+")
_LOWERED = frozenset({"While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase"})
_ENDS = ("input", "output")
"""Nodes that TensorFlow puts at the ends of an inlined call, on the devices of what they read."""
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_CLIENT = frozenset({"Placeholder", "PlaceholderWithDefault", "_Retval"})


@dataclass(frozen=True)
class Names:
    """The operators of a plan, and how one loader names their nodes."""

    placement: Mapping[str, str]
    """Operator -> device of the plan."""
    nodes: Mapping[str, Any]
    """Flat name -> `NodeDef` of the placed model."""
    feeds: frozenset[str]
    """Main-graph nodes that the client feeds."""
    functions: frozenset[str] = frozenset()
    """Names of the model's functions, which may be ops."""
    prefix: str = ""
    """What the loader leaves out at the start of a name."""
    arguments: tuple[str, ...] | None = None
    """The main-graph node behind each argument of the function; None in a Session."""

    @cached_property
    def divided(self) -> frozenset[str]:
        """Operators that TensorFlow may take apart before it runs them: loops, branches, calls."""
        ops = _LOWERED | self.calls
        return frozenset(n for n in self.placement if self.op(n) in ops)

    @cached_property
    def calls(self) -> frozenset[str]:
        """Ops that call a function."""
        return _CALLS | self.functions

    @cached_property
    def captured(self) -> frozenset[str]:
        """Constants of the main graph; the TF2 loader keeps them with the client."""
        return frozenset(
            a for a in self.arguments or () if a not in self.feeds and self.op(a) == "Const"
        )

    @cached_property
    def expected(self) -> frozenset[str]:
        """Operators of the plan that must be seen: all but the client's own."""
        return frozenset(
            name
            for name in self.placement
            if name not in self.feeds and self.op(name) not in _CLIENT and name in self.nodes
        )

    def op(self, operator: str) -> str:
        """The op of an operator in the model, empty if it has no such node."""
        node = self.nodes.get(operator)
        return "" if node is None else str(node.op)

    def sources(self, operator: str) -> list[str]:
        """What an operator reads inside its own function, by flat name."""
        node = self.nodes[operator]
        scope = operator.removesuffix(node.name)
        return [scope + input_node(text) for text in node.input if not text.startswith("^")]

    def operator(self, node: Any) -> str | None:
        """The operator that a node is, or is a part of; None for what the runtime adds."""
        if node.op == "_Arg":
            return self._argument(node)
        name = f"{self.prefix}{node.name}"
        if name in self.placement:
            return name
        replicated = self.replicated(node)
        if replicated is not None or name in self.nodes:  # a node of the model, but not of the plan
            return replicated
        return self._whole(self.prefix + node.name.removeprefix("Func/"))

    def replicated(self, node: Any) -> str | None:
        """The small constant that a node is one of TensorFlow's copies of, if it is one."""
        copy = _REPLICA.fullmatch(self.prefix + node.name) if node.op == "Const" else None
        return str(copy["node"]) if copy and copy["node"] in self.placement else None

    def _argument(self, node: Any) -> str | None:
        if self.arguments is not None:
            index = node.attr["index"].i
            return self.arguments[index] if index < len(self.arguments) else None
        if "tensor_name" in node.attr:  # a server receives it from the client
            return str(input_node(node.attr["tensor_name"].s.decode()))
        feed = _FEED.fullmatch(node.name)
        return str(feed["node"]) if feed else None

    def _whole(self, name: str) -> str | None:
        """The loop, branch or call that a node with that name is a part of, if it is one.

        A node of the model is no part of another one.
        """
        path = name
        while path and path not in self.nodes:
            path = path.rpartition("/")[0]
        if path not in self.divided or path == name:
            return None
        rest = name.removeprefix(f"{path}/").partition("/")
        at_end = self.op(path) in _CALLS and rest[0] in _ENDS and rest[1]
        return None if at_end else path


def session_names(meta_graph: Any, plan: Plan) -> Names:
    """Names as a TF1 Session gives them: those of the plan."""
    signature = meta_graph.signature_def[plan.signature]
    feeds = frozenset(node for info in signature.inputs.values() for node in _tensor_nodes(info))
    functions = frozenset(f.signature.name for f in meta_graph.graph_def.library.function)
    return Names(plan.placement, dict(_flat_nodes(meta_graph, plan.placement)), feeds, functions)


def tf2_names(meta_graph: Any, plan: Plan) -> Names | None:
    """Names as the TF2 loader gives them; None if no single inlined function makes the outputs."""
    names = session_names(meta_graph, plan)
    signature = meta_graph.signature_def[plan.signature]
    roots = {node for info in signature.outputs.values() for node in _tensor_nodes(info)}
    root = roots.pop()
    if roots or names.op(root) not in _CALLS or root in names.placement:
        return None
    inputs = (text for text in names.nodes[root].input if not text.startswith("^"))
    arguments = tuple(input_node(text) for text in inputs)
    return replace(names, prefix=f"{root}/", arguments=arguments)


def _flat_nodes(meta_graph: Any, whole: Container[str]) -> Iterator[tuple[str, Any]]:
    """Every node under the name that TensorFlow's inliner gives it, calls included.

    A call that is an operator itself is not looked into.
    """
    bodies = {f.signature.name: f.node_def for f in meta_graph.graph_def.library.function}
    pending = [("", meta_graph.graph_def.node)]
    for prefix, nodes in pending:
        for node in nodes:
            yield f"{prefix}{node.name}", node
            if node.op not in _CALLS or f"{prefix}{node.name}" in whole:
                continue
            called = node.attr["f"].func.name if "f" in node.attr else ""
            if called in bodies:
                pending.append((f"{prefix}{node.name}/", bodies[called]))


def _tensor_nodes(info: Any) -> list[str]:
    return [input_node(text) for text in tensor_names(info)]

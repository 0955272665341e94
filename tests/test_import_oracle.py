"""The flat graph against TensorFlow's own inliner: the same operators under the same names, wired
alike.

The runtime's graph has some nodes more, which are looked through: `_Arg` and `_Retval`, one
`Identity` for each argument and result of a call (`Func/...`), one `NoOp` for each call. Control
flow is lowered there; its insides count as the one operator that they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moirai_tf.graph.graph import CLIENT_OPS, LOWERED_OPS, Graph, Operator
from tests.inliner_oracle import executed
from tests.saved_models import graph_of, proto_of, zoo_options
from tests.zoo import SMALL, ZOO

MODELS = (
    "called_twice", "two_tower", "module", "custom_gradient", "jit_compile", "lookup_table",
    "host_memory", "cond", "switch_case", "lstm", "conv_net_export", "conv_net_saved", "tf1",
)  # fmt: skip
_HANDLES = frozenset({"VarHandleOp", "HashTableV2"})
"""Made outside the function that the TF2 loader runs."""

Edge = tuple[str, int | None]
"""Producer and port; no port where the producer is lowered control flow."""


def test_the_models_are_in_the_zoo() -> None:
    assert set(MODELS) <= set(SMALL)


@dataclass(frozen=True)
class Runtime:
    """The graph that TensorFlow executed, seen as the importer should see it."""

    nodes: Mapping[str, Mapping[str, Any]]
    arguments: tuple[str, ...]
    """What the main graph gives to each `_Arg`."""
    lowered: tuple[str, ...]
    """Names of the control flow operators."""
    calls: frozenset[str]

    def owner(self, name: str) -> str | None:
        """The control flow that a node belongs to."""
        inside = name.removeprefix("Func/")
        return next((k for k in self.lowered if inside.startswith(f"{k}/")), None)

    def source(self, text: str, known: Mapping[str, object]) -> Edge:
        """What a node really reads, through arguments and results of calls."""
        name, _, port = text.partition(":")
        owner = None if name in known else self.owner(name)
        node = self.nodes[name]
        if owner is not None:
            return owner, None
        if node["argument"] is not None:
            return self.arguments[node["argument"]], 0
        if name.startswith("Func/"):
            return self.source(node["inputs"][0], known)
        return name, int(port or 0)

    def operators(self, known: Mapping[str, object]) -> dict[str, Mapping[str, Any]]:
        """The nodes that should be operators of the flat graph."""
        return {
            name: node
            for name, node in self.nodes.items()
            if node["op"] not in ("_Arg", "_Retval")
            and not name.startswith("Func/")
            and name not in self.calls
            and (name in known or self.owner(name) is None)
        }


@pytest.fixture(scope="module")
def runtime_nodes(zoo_dir: Callable[[str], Path]) -> Mapping[str, list[dict[str, Any]]]:
    return executed({name: zoo_dir(name) for name in MODELS})


def _main_call(path: Path, name: str, graph: Graph) -> tuple[str, tuple[str, ...]]:
    """The main graph's call that a TF2 signature is, and its inputs."""
    (call,) = {o.name.partition("/")[0] for o in graph.operators if o.scope.parent is not None}
    tags = set(ZOO[name].tags)
    (meta_graph,) = (m for m in proto_of(path).meta_graphs if set(m.meta_info_def.tags) == tags)
    (node,) = (n for n in meta_graph.graph_def.node if n.name == call)
    return call, tuple(text for text in node.input if not text.startswith("^"))


@pytest.mark.parametrize("name", [m for m in MODELS if m != "tf1"])
def test_inlined_as_the_loader_does(
    name: str,
    zoo_dir: Callable[[str], Path],
    runtime_nodes: Mapping[str, list[dict[str, Any]]],
) -> None:
    graph = graph_of(zoo_dir(name), **zoo_options(name))
    call, arguments = _main_call(zoo_dir(name), name, graph)

    def short(operator: Operator) -> str:
        return operator.name.removeprefix(f"{call}/")

    mine = {
        short(o): o
        for o in graph.operators
        if o.op not in CLIENT_OPS | _HANDLES and o.scope.parent is not None
    }
    calls = {short_scope for o in mine.values() for short_scope in _calls(o, call)}
    lowered = tuple(n for n, o in mine.items() if o.op in LOWERED_OPS)
    nodes = {node["name"]: node for node in runtime_nodes[name]}
    runtime = Runtime(nodes, arguments, lowered, frozenset(calls))
    theirs = runtime.operators(mine)
    assert theirs.keys() | set(lowered) == mine.keys()

    def edges(operator: Operator) -> list[Edge]:
        producers = [graph.operators[ref.producer] for ref in operator.inputs]
        return [
            (short(p), None if p.op in LOWERED_OPS else ref.port)
            for p, ref in zip(producers, operator.inputs, strict=True)
        ]

    for key, operator in mine.items():
        if key in lowered:
            inside = [n for n in nodes if n not in mine and runtime.owner(n) == key]
            read = {
                runtime.source(text, mine)[0]
                for n in inside
                for text in nodes[n]["inputs"]
                if not text.startswith("^")
            }
            assert read - {key} == {producer for producer, _ in edges(operator)}
            continue
        data = [t for t in theirs[key]["inputs"] if not t.startswith("^")]
        assert theirs[key]["op"] == operator.op
        assert [runtime.source(text, mine) for text in data] == edges(operator)


def _calls(operator: Operator, main_call: str) -> set[str]:
    """Names of the calls that an operator came through, as the loader names them."""
    found = set()
    scope = operator.scope
    while scope.parent is not None:
        found.add(scope.prefix.removeprefix(f"{main_call}/").removesuffix("/"))
        scope = scope.parent
    return found


def test_executed_as_a_session_does(
    zoo_dir: Callable[[str], Path], runtime_nodes: Mapping[str, list[dict[str, Any]]]
) -> None:
    graph = graph_of(zoo_dir("tf1"))
    theirs = {n["name"]: n for n in runtime_nodes["tf1"] if n["op"] not in ("_Arg", "_Retval")}
    mine = {o.name: o for o in graph.operators if o.op not in CLIENT_OPS}
    assert theirs.keys() == mine.keys()
    feed = {n["name"] for n in runtime_nodes["tf1"] if n["op"] == "_Arg"}
    for name, operator in mine.items():
        expected = [(graph.operators[ref.producer].name, ref.port) for ref in operator.inputs]
        texts = [t for t in theirs[name]["inputs"] if not t.startswith("^")]
        found = [(t.partition(":")[0], int(t.partition(":")[2] or 0)) for t in texts]
        found = [("x", port) if n in feed else (n, port) for n, port in found]
        # The back edges of loops are not in the flat graph.
        found = [e for e in found if theirs.get(e[0], {}).get("op") != "NextIteration"]
        assert (theirs[name]["op"], found) == (operator.op, expected)

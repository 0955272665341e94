"""Hand-made ONNX graphs: devices of nodes, where parts are cut, what flows between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from moirai_tf.export.onnx_devices import assign
from moirai_tf.export.onnx_graph import reads
from moirai_tf.export.onnx_parts import Part, parts_of
from tests.placements import place

ZooDir = Callable[[str], Path]


def graph_of(edges: Mapping[str, str]) -> Any:
    """Nodes called like what they make; `edges` says what each reads."""
    nodes = [
        onnx.helper.make_node("Sum", list(reads), [name], name) for name, reads in edges.items()
    ]
    last = nodes[-1].output[0]
    return onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("x", 1, [1])],
        [onnx.helper.make_tensor_value_info(last, 1, [1])],
    )  # fmt: skip


def cut(edges: Mapping[str, str], devices: str, **options: Any) -> Sequence[str]:
    graph = graph_of(edges)
    starts = options.pop("starts_ns", {})
    parts = parts_of(graph, devices, list(edges), starts, **options)
    return ["".join(graph.node[i].name for i in part.nodes) for part in parts]


def test_parts_by_hand() -> None:
    """a and c on 0, b on 1. b can run beside c, so a ends first; d waits for b."""
    fork = {"a": "x", "b": "a", "c": "a", "d": "bc"}
    assert cut(fork, "0100") == ["a", "b", "c", "d"]
    assert cut(fork, "0100", coarse=True) == ["ac", "b", "d"]
    assert cut(fork, "0000") == ["abcd"]
    # b waits for c as well: nothing could run beside c, so a and c are one.
    assert cut({"a": "x", "c": "a", "b": "ac", "d": "b"}, "0010") == ["ac", "b", "d"]
    # Of two that are ready the schedule starts e first; nobody waits for it.
    assert cut({"a": "x", "c": "a", "e": "x", "b": "a"}, "0001", starts_ns={"a": 5, "b": 7}) == [
        "ea", "c", "b",
    ]  # fmt: skip


def test_parts_say_what_flows() -> None:
    graph = graph_of({"a": "x", "b": "a", "c": "ab"})
    assert parts_of(graph, "010", "abc", {}) == (
        Part("0", (0,), ("x",), ("a",)),
        Part("1", (1,), ("a",), ("b",)),
        Part("0", (2,), ("a", "b"), ("c",)),
    )


def test_what_bodies_capture_is_read() -> None:
    """The branch reads `w` from outside, two levels deep, and makes `t` itself."""
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["t", "w"], ["u"])], "inner", [],
        [onnx.helper.make_tensor_value_info("u", 1, [1])],
    )  # fmt: skip
    outer = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Abs", ["v"], ["t"]),
            onnx.helper.make_node("If", ["c"], ["r"], then_branch=inner, else_branch=inner),
        ],
        "outer", [], [onnx.helper.make_tensor_value_info("r", 1, [1])],
    )  # fmt: skip
    node = onnx.helper.make_node("If", ["p"], ["y"], then_branch=outer, else_branch=outer)
    assert reads(node) == ["p", "v", "c", "w"]


def test_devices_by_name_and_by_neighbours(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """By name, number stripped, scope, the tensor made; else the reader's, else the producer's."""
    placement = {"call/a": "/device:CPU:1", "call/loop": "/device:CPU:1", "x": "/device:CPU:0"}
    plan = place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    plan = replace(plan, placement=placement)
    graph = graph_of({"x": "x", "Sum__3": "x", "a__7": "S", "loop/b__1/c": "a", "last__9": "l"})
    graph.node[2].input[0], graph.node[4].input[0] = "Sum__3", "loop/b__1/c"
    found = assign(graph, plan, calls=True)
    assert [d[-1] for d in found.devices] == ["0", "1", "1", "1", "1"]
    assert list(found.operators) == ["x", "", "call/a", "call/loop", ""]
    assert found.named == 3

"""Graphs for researchers' tools: every node and edge with its attributes, by value."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx

from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.graph.graph import Graph, TensorRef
from moirai_tf.rewrite.body import Body
from tests.graphs import GraphBuilder
from tests.placement_cases import problem_of, uniform


def _halves() -> Graph:
    """x is split, t reads one half twice and the other once, c waits for t; 64 bytes a tensor."""
    b = GraphBuilder()
    x = b.feed("x")
    half = b.op("Split", "s", x, outputs=2)
    t = b.op("AvgPool", "t", half, TensorRef(half.producer, 1), half, weight_bytes=5)
    b.op("AvgPool", "c", x, controls=[t], device_types=("CPU",))
    b.fetch("y", t)
    return b.build()


def test_operators_and_what_they_read() -> None:
    graph = _halves().to_networkx()
    assert list(graph) == ["x", "s", "t", "c", "y"]
    assert graph.nodes["t"] == {
        "op": "AvgPool",
        "device_types": ("CPU", "GPU"),
        "weight_bytes": 5,
        "resident_bytes": 69,
    }
    assert list(graph.edges(data=True)) == [
        ("x", "s", {"ports": (0,), "nbytes": 64}),
        ("x", "c", {"ports": (0,), "nbytes": 64}),
        ("s", "t", {"ports": (0, 1), "nbytes": 128}),
        ("t", "c", {"ports": (), "nbytes": 0}),
        ("t", "y", {"ports": (0,), "nbytes": 64}),
    ]


def test_fused_operators_and_what_flows() -> None:
    coarse, _ = coarsen(_halves(), FuseOptions(coarsen=False))
    graph = coarse.to_networkx()
    assert list(graph) == ["x", "s", "t", "c", "y"]
    assert graph.nodes["c"] == {"rule": "", "device_types": ("CPU",), "members": ("c",)}
    assert list(graph.edges(data=True)) == [
        ("x", "s", {"tensors": ("x:0",), "nbytes": 64}),
        ("x", "c", {"tensors": ("x:0",), "nbytes": 64}),
        ("s", "t", {"tensors": ("s:0", "s:1"), "nbytes": 128}),
        ("t", "y", {"tensors": ("t:0",), "nbytes": 64}),
        ("t", "c", {"tensors": ("^t",), "nbytes": 0}),
    ]


def test_problem_with_times() -> None:
    """a hands two tensors to b, which take 4 and 6, and one of them to c, which d0 cannot run."""
    problem = problem_of(
        {"a": (2, 4), "b": (6, 4), "c": (None, 8)},
        [("a", "b c", 4), ("a", "b", 6)],
        memory={"a": 1, "b": 2, "c": 4},
    )
    graph = problem.to_networkx()
    assert dict(graph.nodes) == {
        "a": {"compute_ns": {"d0": 2, "d1": 4}, "memory_bytes": 1},
        "b": {"compute_ns": {"d0": 6, "d1": 4}, "memory_bytes": 2},
        "c": {"compute_ns": {"d1": 8}, "memory_bytes": 4},
    }
    edges = {
        (source, target): (data["tensors"], data["time_ns"].tolist())
        for source, target, data in graph.edges(data=True)
    }
    assert edges == {
        ("a", "b"): ((0, 1), [list(row) for row in uniform(10, 2)]),
        ("a", "c"): ((0,), [list(row) for row in uniform(4, 2)]),
    }
    assert nx.dag_longest_path(graph) in (["a", "b"], ["a", "c"])


def test_of_control_edges_only_those_stay_that_close_no_cycle() -> None:
    """b reads a. b before a closes a cycle, so does c before a once b before c is there."""
    b = GraphBuilder()
    first = b.feed("a")
    b.op("AvgPool", "b", first)
    b.op("AvgPool", "c")
    nodes = [operator.node for operator in b.build().operators]
    nodes[1].input.append("a")
    body = Body(nodes, returned=())
    assert body.without_cycles([("b", "c"), ("a", "c")]) == [("b", "c"), ("a", "c")]
    assert body.without_cycles([("b", "a"), ("b", "c"), ("c", "a"), ("c", "c")]) == [("b", "c")]


def test_colocated_operators_are_one_unit_in_order() -> None:
    """Groups {1, 3} and {3, 0} overlap: units by their first operators."""
    problem = problem_of(dict.fromkeys("abcd", (1,)), [])
    assert problem.units == ((0,), (1,), (2,), (3,))
    assert replace(problem, colocation=((1, 3), (3, 0))).units == ((0, 1, 3), (2,))

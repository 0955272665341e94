"""The flat graph of every model against the graphs that TensorFlow's own inliners make."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from moirai_tf.graph.graph import Graph
from moirai_tf.graph.prune import prune
from tests.import_differences import Executed, differences, main_call
from tests.inliner_oracle import LOADERS, Job, Node, executed
from tests.saved_models import (
    edited,
    function_of,
    graph_of,
    node_of,
    proto_of,
    save_function,
    zoo_options,
)
from tests.zoo import LARGE, SMALL, ZOO

ZooDir = Callable[[str], Path]


def _pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """(model, loader that runs it); the TF2 loader runs no function of a TF1 model."""
    return [
        (name, loader)
        for name in names
        for loader in LOADERS
        if (ZOO[name].servable if loader == "session" else not name.startswith("tf1"))
    ]


def _job(name: str, loader: str, path: Path) -> Job:
    return Job(str(path), ZOO[name].tags, ZOO[name].signature, loader)


def _ran(name: str, loader: str, path: Path, nodes: list[Node]) -> Executed:
    graph = graph_of(path, **zoo_options(name))
    by_name = {node["name"]: node for node in nodes}
    if loader == "session":
        return Executed(prune(graph), by_name)
    tags = set(ZOO[name].tags)
    (meta_graph,) = (m for m in proto_of(path).meta_graphs if set(m.meta_info_def.tags) == tags)
    return Executed(graph, by_name, *main_call(meta_graph, graph))


@pytest.fixture(scope="module")
def small(zoo_dir: ZooDir) -> dict[tuple[str, str], list[Node]]:
    """(model, loader) -> the graph that ran."""
    keys = _pairs(SMALL)
    jobs = [(_job(*key, zoo_dir(key[0])), ZOO[key[0]].inputs()) for key in keys]
    return dict(zip(keys, executed(jobs), strict=True))


@pytest.mark.parametrize(("name", "loader"), _pairs(SMALL))
def test_small_models(
    name: str, loader: str, zoo_dir: ZooDir, small: dict[tuple[str, str], list[Node]]
) -> None:
    assert differences(_ran(name, loader, zoo_dir(name), small[name, loader])) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loader"), _pairs(LARGE))
def test_large_models(name: str, loader: str, zoo_dir: ZooDir) -> None:
    (nodes,) = executed([(_job(name, loader, zoo_dir(name)), ZOO[name].inputs())])
    assert differences(_ran(name, loader, zoo_dir(name), nodes)) == []


def test_differences_are_seen(tmp_path: Path) -> None:
    """An import that keeps too much, inlines too little, or wires otherwise."""

    @tf.function
    def inner(a: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(a)

    @tf.function(input_signature=[tf.TensorSpec([4], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        turned = tf.while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, tf.sin(v)), [0, x])[1]
        return {"y": tf.subtract(inner(x), turned, name="difference")}

    def keep(meta_graph: Any) -> None:
        function_of(meta_graph, "inner").attr["_noinline"].b = True

    def swap(meta_graph: Any) -> None:
        node = node_of(function_of(meta_graph, "serve"), "difference")
        node.input[:] = [node.input[1], node.input[0]]

    model = save_function(tmp_path / "model", serve)
    job = Job(str(model), ("serve",), "serving_default", "session")
    (rows,) = executed([(job, {"x": np.ones(4, np.float32)})])
    nodes = {node["name"]: node for node in rows}

    def found(graph: Graph) -> list[str]:
        return [text.partition(" (")[0] for text in differences(Executed(graph, nodes))]

    call = "PartitionedCall/PartitionedCall"
    assert found(prune(graph_of(model))) == []
    too_many = found(graph_of(model))
    assert f"too many: {call}/while/maximum_iterations" in too_many
    kept = found(prune(graph_of(edited(model, tmp_path / "kept", keep))))
    assert f"inlined: {call}/PartitionedCall" in kept
    (swapped,) = found(prune(graph_of(edited(model, tmp_path / "swapped", swap))))
    assert swapped.startswith(f"{call}/difference: reads [")

"""The flat graph of every model against the graphs that TensorFlow's own inliners make."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from moirai_tf.graph.graph import Graph
from moirai_tf.graph.prune import prune
from tests.import_differences import Executed, differences
from tests.inliner_oracle import LOADERS, Job, Node, executed
from tests.saved_models import graph_of, proto_of, zoo_options
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
    return Executed(graph, by_name, *_main_call(path, name, graph))


def _main_call(path: Path, name: str, graph: Graph) -> tuple[str, tuple[str, ...]]:
    """The main graph's call that a TF2 signature is, and its inputs."""
    (call,) = {o.name.partition("/")[0] for o in graph.operators if o.scope.parent is not None}
    tags = set(ZOO[name].tags)
    (meta_graph,) = (m for m in proto_of(path).meta_graphs if set(m.meta_info_def.tags) == tags)
    (node,) = (n for n in meta_graph.graph_def.node if n.name == call)
    return call, tuple(text for text in node.input if not text.startswith("^"))


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

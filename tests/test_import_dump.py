"""The text dump of a graph: readable, the same every time, equal to the golden file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moirai_tf.graph.graph import dump_graph
from tests.golden.__main__ import FOLDER, render
from tests.saved_models import graph_of, zoo_options
from tests.zoo import SMALL

ZooDir = Callable[[str], Path]


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.txt")))
def test_golden_file(name: str) -> None:
    assert render(name) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_every_golden_model_has_its_file() -> None:
    models = {folder.name for folder in FOLDER.iterdir() if (folder / "saved_model.pbtxt").exists()}
    assert models == {file.stem for file in FOLDER.glob("*.txt")} != set()


@pytest.mark.parametrize("name", SMALL)
def test_two_imports_give_one_dump(name: str, zoo_dir: ZooDir) -> None:
    first, second = (dump_graph(graph_of(zoo_dir(name), **zoo_options(name))) for _ in "12")
    assert first == second


def test_dump_has_a_line_for_each_operator_and_group(zoo_dir: ZooDir) -> None:
    graph = graph_of(zoo_dir("lookup_table"))
    header, *lines = dump_graph(graph).splitlines()
    assert header == f"# signature serving_default: {len(graph)} operators"
    assert len(lines) == len(graph) + len(graph.colocation)
    assert "hash_table = HashTableV2() -> resource[] {CPU}" in lines
    assert [line.split(" = ")[0] for line in lines[: len(graph)]] == list(graph.index)

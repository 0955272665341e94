"""Importing executes nothing of the model and reads nothing of its weights."""

from __future__ import annotations

import gc
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from moirai_tf.graph.importer import import_graph
from moirai_tf.model.saved_model import read_saved_model
from tests.placements import place
from tests.saved_models import digest, graph_of, ops_of, save_function

ZooDir = Callable[[str], Path]
X = tf.TensorSpec([4], tf.float32, "x")


def test_operators_with_effects_are_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.io.write_file(str(witness), "was here")
        return {"y": tf.nn.relu(x)}

    path = save_function(tmp_path / "model", serve)
    assert "WriteFile" in ops_of(graph_of(path))
    place(path, tmp_path / "placed")
    assert not witness.exists()
    # The trap is armed: running the signature springs it.
    tf.saved_model.load(str(path)).signatures["serving_default"](tf.zeros([4]))
    assert witness.exists()


def test_python_functions_are_not_called(tmp_path: Path) -> None:
    calls: list[float] = []

    def record(value: tf.Tensor) -> tf.Tensor:
        calls.append(float(value))
        return value

    @tf.function(input_signature=[X])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        constant = tf.py_function(record, [tf.constant(1.0)], tf.float32)
        constant.set_shape([])
        return {"y": x + constant}

    graph = graph_of(save_function(tmp_path / "model", serve))
    assert "EagerPyFunc" in ops_of(graph)
    assert calls == []


def test_initialisers_are_not_run(tmp_path: Path, zoo_dir: ZooDir) -> None:
    path = tmp_path / "model"
    shutil.copytree(zoo_dir("lookup_table"), path)
    (path / "assets" / "vocabulary.txt").unlink()
    # Its initialiser would fail without the vocabulary, and the weights have lost their data.
    (path / "variables" / "variables.data-00000-of-00001").write_bytes(b"")
    assert "LookupTableFindV2" in ops_of(graph_of(path))


def test_importing_leaves_the_model_as_it_is(zoo_dir: ZooDir) -> None:
    path = zoo_dir("lstm")
    before = digest(path)
    model = read_saved_model(path)
    content = model.proto.SerializeToString(deterministic=True)
    import_graph(model)
    assert model.proto.SerializeToString(deterministic=True) == content
    assert digest(path) == before


def test_ten_gigabytes_of_weights_cost_no_memory(tmp_path: Path, zoo_dir: ZooDir) -> None:
    path = tmp_path / "model"
    shutil.copytree(zoo_dir("mlp"), path)
    data = path / "variables" / "variables.data-00000-of-00001"
    with data.open("r+b") as file:
        file.truncate(10 * 2**30)  # a sparse file: it takes no space on disk
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    place(path, tmp_path / "placed")
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    linked = tmp_path / "placed" / "variables" / data.name
    assert linked.stat().st_ino == data.stat().st_ino
    assert grown_mib < 500

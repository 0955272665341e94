"""The zoo is what it claims: runnable, randomised, reproducible, with the structures it names."""

from __future__ import annotations

import collections
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from tests.zoo import LARGE, SMALL, ZOO

ZooDir = Callable[[str], Path]

EVERY_MODEL = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


def _weights(path: Path) -> dict[str, np.ndarray]:
    """Floating-point variables of a SavedModel by checkpoint key."""
    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    types = reader.get_variable_to_dtype_map()
    return {key: reader.get_tensor(key) for key, dtype in types.items() if dtype.is_floating}


def _content(value: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return value.shape, value.tobytes()


def _meta_graph(path: Path, name: str) -> meta_graph_pb2.MetaGraphDef:
    model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    tags = set(ZOO[name].tags)
    (found,) = (graph for graph in model.meta_graphs if set(graph.meta_info_def.tags) == tags)
    return found


def _nodes(graph: tf.compat.v1.GraphDef) -> list[tf.compat.v1.NodeDef]:
    """The nodes of the graph and of every function in its library."""
    return [*graph.node, *(node for body in graph.library.function for node in body.node_def)]


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_outputs_are_finite_and_follow_the_inputs(name: str, zoo_dir: ZooDir) -> None:
    entry = ZOO[name]
    loaded = tf.saved_model.load(str(zoo_dir(name)), tags=list(entry.tags))
    run = loaded.signatures[entry.signature]

    def outputs(seed: int) -> dict[str, np.ndarray]:
        feeds = {key: tf.constant(value) for key, value in entry.inputs(seed).items()}
        return {key: value.numpy() for key, value in run(**feeds).items()}

    first, second = outputs(seed=0), outputs(seed=1)
    for value in first.values():
        assert value.dtype == object or np.isfinite(value).all()
    assert any(not np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "name", ["conv_net_export", "conv_net_saved", "jit_compile", "lookup_table", "lstm", "tf1"]
)
def test_a_session_runs_what_is_servable(name: str, zoo_dir: ZooDir) -> None:
    entry = ZOO[name]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, entry.tags, str(zoo_dir(name)))
        signature = loaded.signature_def[entry.signature]
        feeds = {signature.inputs[key].name: value for key, value in entry.inputs().items()}
        fetches = [output.name for output in signature.outputs.values()]
        expected = nullcontext() if entry.servable else pytest.raises(tf.errors.OpError)
        with expected:
            session.run(fetches, feeds)


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_every_weight_is_randomised(name: str, zoo_dir: ZooDir) -> None:
    constant = [
        key
        for key, value in _weights(zoo_dir(name)).items()
        if value.size > 1 and np.unique(value).size == 1
    ]
    assert constant == []


@pytest.mark.parametrize(
    "name", ["bert", "mlp", "tf1", pytest.param("efficientnet_b0", marks=pytest.mark.slow)]
)
def test_weights_come_from_the_seed(name: str, zoo_dir: ZooDir, tmp_path: Path) -> None:
    ZOO[name].build(tmp_path / "again")
    first, second = _weights(zoo_dir(name)), _weights(tmp_path / "again")
    # Without the keys: Keras numbers the variables of an export in the order of a set.
    assert sorted(map(_content, first.values())) == sorted(map(_content, second.values()))


@pytest.mark.parametrize("name", ZOO)
def test_inputs_follow_seed_and_batch(name: str) -> None:
    entry = ZOO[name]
    first, again, larger = entry.inputs(3), entry.inputs(3), entry.inputs(3, batch=5)
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key])
        assert value.shape[1:] == larger[key].shape[1:]
        assert value.ndim == 0 or (len(value), len(larger[key])) == (entry.batch, 5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lstm", {"While"}),
        ("cond", {"If"}),
        ("switch_case", {"Case"}),
        ("lookup_table", {"HashTableV2", "LookupTableFindV2", "InitializeTableFromTextFileV2"}),
        ("module", {"FusedBatchNormV3", "BiasAdd", "Conv2D"}),
        ("host_memory", {"StringUpper", "StringJoin", "Range"}),
        ("tf1", {"Switch", "Merge", "Enter", "NextIteration", "VariableV2", "VarHandleOp"}),
        ("tf1_two_metagraphs", {"Switch", "Merge", "Enter", "VariableV2", "VarHandleOp"}),
    ],
)
def test_has_the_operators_it_is_there_for(name: str, expected: set[str], zoo_dir: ZooDir) -> None:
    graph = _meta_graph(zoo_dir(name), name).graph_def
    assert expected <= {node.op for node in _nodes(graph)}


def test_called_twice_calls_one_function_at_two_places(zoo_dir: ZooDir) -> None:
    graph = _meta_graph(zoo_dir("called_twice"), "called_twice").graph_def
    calls = collections.Counter(
        node.attr["f"].func.name for node in _nodes(graph) if "PartitionedCall" in node.op
    )
    ((name, times),) = calls.most_common(1)
    assert ("embed" in name, times) == (True, 2)


def test_two_signatures_share_their_variables(zoo_dir: ZooDir) -> None:
    loaded = tf.saved_model.load(str(zoo_dir("two_signatures")))
    assert set(loaded.signatures) == {"serving_default", "encode"}
    shapes = {tuple(value.shape) for value in _weights(zoo_dir("two_signatures")).values()}
    assert shapes == {(64, 128), (128, 10)}


def test_jit_compile_marks_its_function(zoo_dir: ZooDir) -> None:
    library = _meta_graph(zoo_dir("jit_compile"), "jit_compile").graph_def.library
    assert any(function.attr["_XlaMustCompile"].b for function in library.function)


def test_custom_gradient_is_saved(zoo_dir: ZooDir) -> None:
    library = _meta_graph(zoo_dir("custom_gradient"), "custom_gradient").graph_def.library
    assert library.registered_gradients


def test_mixed_precision_computes_in_bfloat16_on_float32_weights(zoo_dir: ZooDir) -> None:
    graph = _meta_graph(zoo_dir("mixed_precision"), "mixed_precision").graph_def
    convolutions = [node for node in _nodes(graph) if node.op == "Conv2D"]
    assert {node.attr["T"].type for node in convolutions} == {tf.bfloat16.as_datatype_enum}
    assert {value.dtype for value in _weights(zoo_dir("mixed_precision")).values()} == {
        np.dtype(np.float32)
    }


def test_files_beside_the_model(zoo_dir: ZooDir) -> None:
    assert (zoo_dir("lookup_table") / "assets" / "vocabulary.txt").read_text().startswith("cat\n")
    assert (zoo_dir("assets_extra") / "assets.extra" / "notes" / "owner.txt").is_file()

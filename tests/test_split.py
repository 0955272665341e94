"""A signature whose batch is divided: what it computes, what it keeps, and how it is taken back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import config_pb2

import moirai_tf
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.prune import prune
from moirai_tf.model.load import SESSION_CONFIG_FILE
from moirai_tf.model.output import write_saved_model
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.plan_file import PLAN_FILE, read_plan
from moirai_tf.split.divide import divide, join, obstacle_of
from moirai_tf.split.record import SplitEdit
from moirai_tf.split.separate import separation, up_to_the_obstacle
from moirai_tf.split.shares import between, equal_finish, in_proportion
from tests.c_api import run_saved_model
from tests.saved_models import graph_of, proto_of
from tests.test_split_rows import MIXING
from tests.zoo import entry

_TWO_CPUS = Path(__file__).parent.parent / "configs" / "two_local_cpus.yaml"
_SIZES = (7, 11)
_SIGNATURE = "serving_default"


class Ranker(tf.Module):
    """Images and words, a factor for all, variables and a table of words."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        random = tf.random.Generator.from_seed(seed)
        self.filters = tf.Variable(random.normal([3, 3, 2, 4]))
        self.words = tf.Variable(random.normal([10, 6]))
        self.dense = tf.Variable(random.normal([70, 5]))
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["a", "b"], [3, 7]), 0
        )

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 4, 4, 2], tf.float32, "image"),
            tf.TensorSpec([None], tf.string, "word"),
            tf.TensorSpec([], tf.float32, "factor"),
        ]
    )
    def serve(
        self, image: tf.Tensor, word: tf.Tensor, factor: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        x = tf.nn.relu(tf.nn.conv2d(image, self.filters, 1, "SAME"))
        found = tf.gather(self.words, self.table.lookup(word))
        both = tf.concat([tf.reshape(x, [-1, 64]), found], 1)
        return {"y": tf.matmul(both, self.dense) * factor, "twice": factor * 2.0, "word": word}


def _inputs(rows: int, *, words: int | None = None) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    return {
        "image": random.standard_normal((rows, 4, 4, 2)).astype(np.float32),
        "word": random.choice(
            np.array([b"a", b"b", b"c"], object), rows if words is None else words
        ),
        "factor": np.float32(1.5),
    }


def _saved(path: Path, seed: int = 0) -> Path:
    model = Ranker(seed)
    tf.saved_model.save(model, str(path), {_SIGNATURE: model.serve})
    return path


def _divided(source: Path, output: Path, shares: Sequence[int] = (5, 2, 1)) -> SplitEdit:
    model = read_saved_model(source)
    graphs = tuple(prune(graph_of(source, batch_size=size)) for size in _SIZES)
    assert obstacle_of(model, (), _SIGNATURE) == ""
    found = separation((graphs[0], graphs[1]), _SIZES)
    if found.obstacle:
        unpruned = tuple(graph_of(source, batch_size=size) for size in _SIZES)
        found = up_to_the_obstacle((unpruned[0], unpruned[1]), _SIZES, found)
    made, edit = divide(model, (), _SIGNATURE, found, shares)
    output.mkdir()
    write_saved_model(model, made.proto, output, {})
    return edit


def _tf2(path: Path) -> Any:
    loaded = tf.saved_model.load(str(path))
    return loaded, lambda inputs: {
        k: v.numpy() for k, v in loaded.signatures[_SIGNATURE](
            **{k: tf.constant(v) for k, v in inputs.items()}).items()
    }  # fmt: skip


def _in_session(path: Path, batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
        signature = loaded.signature_def[_SIGNATURE]
        fetches = {k: info.name for k, info in signature.outputs.items()}
        return [
            session.run(fetches, {signature.inputs[k].name: v for k, v in inputs.items()})
            for inputs in batches
        ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, SplitEdit]:
    """The original, the same divided into shares of 5, 2 and 1 of 8 rows, and the edit."""
    work = tmp_path_factory.mktemp("split")
    original = _saved(work / "original")
    return original, work / "divided", _divided(original, work / "divided")


def test_every_number_of_rows_gives_what_it_gave(models: tuple[Path, Path, SplitEdit]) -> None:
    original, divided, _ = models
    _, expected = _tf2(original)
    _, as_object = _tf2(divided)
    batches = [_inputs(rows) for rows in (0, 1, 2, 3, 7, 8, 9, 33)]
    for inputs, in_session in zip(batches, _in_session(divided, batches), strict=True):
        wanted = expected(inputs)
        for found in (as_object(inputs), in_session):
            assert found.keys() == wanted.keys()
            assert found["word"].tolist() == wanted["word"].tolist()
            for name in ("y", "twice"):
                np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5)


def test_recurrent_layers_give_what_they_gave(tmp_path: Path) -> None:
    steps = keras.Input((5, 4), name="steps")
    model = keras.Model(steps, keras.layers.LSTM(3, return_sequences=True)(steps))
    entry.randomise(model.variables)
    model.export(tmp_path / "m", format="tf_saved_model", verbose=False)
    _divided(tmp_path / "m", tmp_path / "divided")
    random = np.random.default_rng(1)
    batches = [{"steps": random.standard_normal((n, 5, 4)).astype(np.float32)}
               for n in (1, 2, 8, 33)]  # fmt: skip
    (_, expected), (_, as_object) = _tf2(tmp_path / "m"), _tf2(tmp_path / "divided")
    in_session = _in_session(tmp_path / "divided", batches)
    for inputs, other in zip(batches, in_session, strict=True):
        (wanted,) = expected(inputs).values()
        for found in (as_object(inputs), other):
            np.testing.assert_allclose(*found.values(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("resource", [True, False])
def test_graphs_of_tf1_are_refused(resource: bool, tmp_path: Path) -> None:
    """Their signatures are no functions; control flow and reference variables or not."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        rows = tf.compat.v1.placeholder(tf.float32, [None, 8])
        weights = tf.compat.v1.get_variable("w", [8, 8], use_resource=resource)
        made = tf.matmul(rows, weights)
        y = tf.compat.v1.cond(tf.reduce_all(weights > 0), lambda: made, lambda: -made)
        session.run(weights.initializer)
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "m"), {"x": rows}, {"y": y})
    ops = {n.op for n in proto_of(tmp_path / "m").meta_graphs[0].graph_def.node}
    assert ("VariableV2" in ops) is not resource
    with pytest.raises(MoiraiError, match="signature is not one function"):
        moirai_tf.optimize(
            tmp_path / "m", tmp_path / "placed", _TWO_CPUS, batch_size=8, split="on", repeats=2,
            warmup=1, time_limit_s=2,
        )  # fmt: skip


class Pairs(tf.Module):
    """Two towers whose vectors all meet: what is behind mixes rows; one output is of rows alone."""

    def __init__(self) -> None:
        super().__init__()
        random = tf.random.Generator.from_seed(3)
        self.first = tf.Variable(random.normal([8, 6]))
        self.second = tf.Variable(random.normal([8, 6]))
        self.scale = tf.Variable(2.0)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 8], tf.float32, "x"), tf.TensorSpec([None, 8], tf.float32, "z")
        ]
    )  # fmt: skip
    def serve(self, x: tf.Tensor, z: tf.Tensor) -> Mapping[str, tf.Tensor]:
        one, other = tf.nn.relu(tf.matmul(x, self.first)), self._tower(z)
        pairs = tf.matmul(one, other, transpose_b=True) * self.scale
        count = tf.cast(tf.shape(one)[0], tf.float32)
        return {"pairs": pairs / count, "one": one, "best": tf.argmax(pairs, 1), "x": x}

    @tf.function
    def _tower(self, z: tf.Tensor) -> tf.Tensor:
        for _ in tf.range(2):
            z = tf.tanh(z)
        return tf.matmul(z, self.second)


def test_what_mixes_rows_runs_once_behind_a_join(tmp_path: Path) -> None:
    """Both towers are divided, their product is not; the scale, behind them, has no copies."""
    model = Pairs()
    tf.saved_model.save(model, str(tmp_path / "m"), {_SIGNATURE: model.serve})
    edit = _divided(tmp_path / "m", tmp_path / "divided")
    assert "MatMul" in edit.whole
    assert "each with all others" in edit.whole
    assert (len(edit.mirrored), edit.outputs) == (2, ("one", "x"))
    random = np.random.default_rng(1)
    batches = [
        {key: random.standard_normal((n, 8)).astype(np.float32) for key in ("x", "z")}
        for n in (1, 2, 8, 33)
    ]
    (_, expected), (_, as_object) = _tf2(tmp_path / "m"), _tf2(tmp_path / "divided")
    in_session = _in_session(tmp_path / "divided", batches)
    for inputs, other in zip(batches, in_session, strict=True):
        wanted = expected(inputs)
        for found in (as_object(inputs), other):
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)
    meta_graph = proto_of(tmp_path / "divided").meta_graphs[0]
    join(meta_graph, edit)
    assert meta_graph == proto_of(tmp_path / "m").meta_graphs[0]


@pytest.mark.parametrize(
    "kind", [kind for kind in MIXING if "random" not in kind and "noise" not in kind]
)
def test_every_way_to_mix_rows_gives_what_it_gave(kind: str, tmp_path: Path) -> None:
    """Behind an operator that is divided."""
    function, spec, _ = MIXING[kind]
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": function(tf.tanh(x))}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "m"), {_SIGNATURE: module.f})
    assert _divided(tmp_path / "m", tmp_path / "divided", (2, 1)).whole
    (_, expected), (_, run) = _tf2(tmp_path / "m"), _tf2(tmp_path / "divided")
    for rows in (4, 12):
        x = np.random.default_rng(rows).standard_normal((rows, *spec.shape[1:]))
        inputs = {"x": x.astype(np.float32)}
        np.testing.assert_allclose(run(inputs)["y"], expected(inputs)["y"], rtol=1e-4, atol=1e-5)


def test_other_rows_do_not_touch_a_row(models: tuple[Path, Path, SplitEdit]) -> None:
    """Row 3 of 8 is in the first share, row 6 in the second: each is kept while others change."""
    _, run = _tf2(models[1])
    one, other = _inputs(8), _inputs(8)
    other["image"] = other["image"][::-1].copy()
    for row in (3, 6):
        other["image"][row], other["word"][row] = one["image"][row], one["word"][row]
    first, second = run(one)["y"], run(other)["y"]
    assert (first[[3, 6]] == second[[3, 6]]).all()
    assert not (first == second).all()


def test_inputs_of_different_numbers_of_rows_are_refused_as_before(
    models: tuple[Path, Path, SplitEdit],
) -> None:
    for path in models[:2]:
        _, run = _tf2(path)
        with pytest.raises(tf.errors.InvalidArgumentError):
            run(_inputs(8, words=6))


def test_variables_have_copies_and_tables_have_none(models: tuple[Path, Path, SplitEdit]) -> None:
    """Three variables, two further shares: six copies, in the graph and as objects."""
    edit = models[2]
    assert (len(edit.mirrored), edit.inputs) == (3, ("image", "word"))
    assert edit.outputs == ("word", "y")
    nodes = {n.name: n.op for n in proto_of(models[1]).meta_graphs[0].graph_def.node}
    added = [nodes[name] for name in edit.nodes]
    assert {op: added.count(op) for op in set(added)} == {
        "VarHandleOp": 6, "ReadVariableOp": 6, "AssignVariableOp": 6}  # fmt: skip
    table = [op for op in nodes.values() if op == "HashTableV2"]
    assert len(table) == 1


def test_two_models_in_one_process_keep_their_weights(tmp_path: Path) -> None:
    """The copies of both have the same names in their graphs."""
    runs = []
    for seed in (1, 2):
        original = _saved(tmp_path / f"original_{seed}", seed)
        _divided(original, tmp_path / f"divided_{seed}")
        loaded, run = _tf2(tmp_path / f"divided_{seed}")
        runs.append((loaded, run, _tf2(original)[1](_inputs(8))["y"]))
    for _, run, wanted in runs:
        np.testing.assert_allclose(run(_inputs(8))["y"], wanted, rtol=1e-5, atol=1e-5)
    assert not np.allclose(runs[0][2], runs[1][2])


def test_taken_back_it_is_the_original(models: tuple[Path, Path, SplitEdit]) -> None:
    meta_graph = proto_of(models[1]).meta_graphs[0]
    join(meta_graph, models[2])
    assert meta_graph == proto_of(models[0]).meta_graphs[0]


@pytest.mark.parametrize("field", ["function", "body", "call", "nodes", "functions"])
def test_an_edit_of_another_model_is_refused(
    models: tuple[Path, Path, SplitEdit], field: str
) -> None:
    known = getattr(models[2], field)
    wrong = replace(models[2], **{field: "no_such" if isinstance(known, str) else ("no_such",)})
    with pytest.raises(MoiraiError, match="no_such"):
        join(proto_of(models[1]).meta_graphs[0], wrong)


def test_optimize_divides_proves_and_strips(tmp_path: Path) -> None:
    """Two logical CPUs: weights stay where they are, and the original comes back."""
    original = _saved(tmp_path / "original")
    summary = moirai_tf.optimize(
        original, tmp_path / "placed", _TWO_CPUS, batch_size=8, split="on", repeats=3, warmup=1,
        time_limit_s=3,
    )  # fmt: skip
    plan = read_plan(tmp_path / "placed")
    assert f"batch       divided into {' + '.join(map(str, summary.shares))} rows" in str(summary)
    assert plan.edits.split is not None
    assert sum(plan.edits.split.shares) == 8
    _check_older_plan(tmp_path / "placed" / PLAN_FILE, plan)
    assert summary.report is not None
    runs = {parity.run for parity in summary.report.outputs}
    assert {"tf2, 1 row", "session, 9 rows", "session, rows in reverse"} <= runs
    assert all(proof.planned_weights == 0 for proof in summary.report.proofs)
    _check_c_api(original, tmp_path / "placed")
    with pytest.raises(MoiraiError, match="is divided over devices"):
        moirai_tf.export_onnx(tmp_path / "placed", tmp_path / "onnx")
    moirai_tf.strip(tmp_path / "placed", tmp_path / "stripped")
    assert proto_of(tmp_path / "stripped") == proto_of(original)


def _check_older_plan(file: Path, plan: Plan) -> None:
    """Plans that knew no part that stays whole are read as such."""
    text = file.read_text()
    values = json.loads(text)
    del values["edits"]["split"]["whole"]
    file.write_text(json.dumps({**values, "schema": 5}))
    assert read_plan(file.parent.parent) == plan
    file.write_text(text)


def _check_c_api(original: Path, placed: Path) -> None:
    """The C++ loader fills the copies before it answers."""
    text = (placed / SESSION_CONFIG_FILE).read_text()
    config = text_format.Parse(text, config_pb2.ConfigProto())
    inputs = _inputs(7)
    wanted = run_saved_model(original, ("serve",), _SIGNATURE, inputs, config_pb2.ConfigProto())
    found = run_saved_model(placed, ("serve",), _SIGNATURE, inputs, config)
    np.testing.assert_allclose(found.outputs["y"], wanted.outputs["y"], rtol=1e-5, atol=1e-5)


def test_a_batch_that_mixes_rows_is_refused_by_the_operator(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(
        lambda x: {"y": tf.matmul(x - tf.reduce_mean(x, 0), tf.ones([8, 8]))},
        input_signature=[tf.TensorSpec([None, 8], tf.float32)],
    )
    tf.saved_model.save(module, str(tmp_path / "m"), module.f)
    with pytest.raises(MoiraiError, match=r"'.*Mean' \(Mean\): it works along the rows"):
        moirai_tf.optimize(
            tmp_path / "m", tmp_path / "placed", _TWO_CPUS, batch_size=8, split="on", repeats=2,
            warmup=1, time_limit_s=2,
        )  # fmt: skip
    assert not (tmp_path / "placed").exists()


def test_optimize_divides_up_to_what_mixes_rows(tmp_path: Path) -> None:
    model = Pairs()
    tf.saved_model.save(model, str(tmp_path / "m"), {_SIGNATURE: model.serve})
    summary = moirai_tf.optimize(
        tmp_path / "m", tmp_path / "placed", _TWO_CPUS, batch_size=8, split="on", repeats=2,
        warmup=1, time_limit_s=2,
    )  # fmt: skip
    assert sum(summary.shares) == 8
    assert re.search(r"whole again from here on: .*MatMul.*each with all others", str(summary))
    assert summary.report is not None
    assert "session, rows in reverse" in {parity.run for parity in summary.report.outputs}
    moirai_tf.strip(tmp_path / "placed", tmp_path / "stripped")
    assert proto_of(tmp_path / "stripped") == proto_of(tmp_path / "m")


def test_shares_finish_together() -> None:
    """Devices that take 8, 16 and 40 for 8 rows: 1, 2 and 5 a row.

    5, 2 and 1 rows take 5, 4 and 5; a row more on any of them would take 6, 6 or 10.
    """
    times = [in_proportion(total, 8) for total in (8.0, 16.0, 40.0)]
    assert equal_finish(times, 8, 8) == [5, 2, 1]
    assert equal_finish(times, 8, 2) == [6, 2, 0]
    assert equal_finish(times, 1, 8) == [1, 0, 0]


def test_a_device_with_a_fixed_part_gets_fewer_rows() -> None:
    """4 for 2 rows and 10 for 8: 2 and 1 a row. Beside a device of 1 a row, 5 and 3 rows take 5."""
    slow = between((2, 4.0), (8, 10.0))
    assert slow(5) == 7.0
    assert equal_finish([in_proportion(8.0, 8), slow], 8, 2) == [5, 3]

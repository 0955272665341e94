"""Verification of real models, whole and broken on purpose."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.saved_model.pywrap_saved_model import metrics

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.prune import prune
from moirai_tf.progress import Stopwatch, observed
from moirai_tf.rewrite.directory import remap
from moirai_tf.rewrite.plan import Plan, PlanTransfer
from moirai_tf.rewrite.plan_file import PLAN_FILE, plan_to_json, read_plan
from moirai_tf.verify import Finding, VerifyOptions, check_report, inspect_placed, verify
from moirai_tf.verify.run import SessionModel, Tf2Model
from tests.placements import place
from tests.saved_models import edited, graph_of, save_function

ZooDir = Callable[[str], Path]

CPU0, CPU1 = "/device:CPU:0", "/device:CPU:1"
SESSION_OFF = VerifyOptions(loaders=("session",), grappler="off")
TF2_OFF = VerifyOptions(loaders=("tf2",), grappler="off")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model and its placed copy."""

    original: Path
    placed: Path

    def findings(self, options: VerifyOptions) -> tuple[Finding, ...]:
        return inspect_placed(self.original, self.placed, options).findings

    def plan(self) -> Plan:
        return read_plan(self.placed)

    def operator(self, node: str) -> str:
        """The operator of the plan whose node has that name."""
        (found,) = (n for n in self.plan().placement if n.rpartition("/")[2] == node)
        return found


def _two_halves(folder: Path, seed: int = 0) -> Path:
    """x -> matmul with a variable -> tanh -> sin -> matmul with another -> y."""
    rng = np.random.default_rng(seed)
    one, two = (tf.Variable(rng.normal(size=(8, 8)).astype(np.float32)) for _ in "12")

    @tf.function(input_signature=[tf.TensorSpec([2, 8], tf.float32, "x")])
    def halves(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.sin(tf.tanh(x @ one)) @ two}

    return save_function(folder, halves, one=one, two=two)


def _second_half(source: Path, first: str) -> dict[str, str]:
    """Puts the operators from the first one on CPU 1, but for results and other weights."""
    graph = prune(graph_of(source))
    names = [o.name for o in graph.operators]
    start = next(i for i, n in enumerate(names) if n.endswith(f"/{first}"))
    later = {i for i, o in enumerate(graph.operators) if i >= start and o.op != "_Retval"}
    for i in range(len(graph) - 1, -1, -1):
        readers = set(graph.consumers[i])
        if graph.operators[i].op in ("VarHandleOp", "ReadVariableOp", "Const") and readers:
            later = later | {i} if readers <= later else later - {i}
    return {names[i]: CPU1 for i in later}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The model of two halves, its second half on CPU 1."""
    folder = tmp_path_factory.mktemp("halves")
    source = _two_halves(folder / "model")
    place(source, folder / "placed", placement=_second_half(source, "Sin"))
    return Pair(source, folder / "placed")


def _copy(pair: Pair, folder: Path) -> Pair:
    shutil.copytree(pair.placed, folder / "copy")
    return Pair(pair.original, folder / "copy")


def _named(findings: Iterable[Finding], kind: str) -> set[str]:
    return {name for f in findings if f.kind == kind for name in f.names}


def test_a_model_in_two_halves(halves: Pair) -> None:
    """tanh crosses to CPU 1 and the result comes back, but for the TF2 loader, which leaves it."""
    report = verify(halves.original, halves.placed)
    assert report.ok
    assert {p.run for p in report.outputs} == {p.run for p in report.proofs}
    assert all(parity.bit_equal for parity in report.outputs)
    runs = {proof.run: proof for proof in report.proofs}
    assert list(runs) == [
        "tf2, Grappler off",
        "tf2, Grappler on",
        "session, Grappler off",
        "session, Grappler on",
    ]
    off = runs["session, Grappler off"]
    assert (off.planned, off.transfers, off.kept) == (2, 2, 0)
    expected = [n for n in halves.plan().placement if not n.startswith(("_retval", "serving_"))]
    assert off.operators == off.executed == len(expected)
    tf2 = runs["tf2, Grappler off"]
    assert (tf2.planned, tf2.transfers, tf2.kept) == (2, 1, 1)
    assert tf2.operators == len(expected)
    assert "ok: 1 output, 4 of 4 comparisons equal to the bit" in str(report)


def test_small_constants_are_copied_to_their_readers(zoo_dir: ZooDir, tmp_path: Path) -> None:
    place(zoo_dir("tied_embeddings"), tmp_path / "placed", seed=3)
    report = verify(zoo_dir("tied_embeddings"), tmp_path / "placed", SESSION_OFF)
    (proof,) = report.proofs
    assert proof.replicated > 0
    assert proof.transfers + proof.replicated == proof.planned
    assert "saved by copies of constants" in str(report)


def test_the_tf2_loader_proves_nothing_of_a_tf1_model(zoo_dir: ZooDir, tmp_path: Path) -> None:
    place(zoo_dir("tf1"), tmp_path / "placed", seed=3)
    with pytest.raises(MoiraiError, match="no run could prove where operators run") as caught:
        verify(zoo_dir("tf1"), tmp_path / "placed", TF2_OFF)
    assert "all variables of a TF1 SavedModel on its default device" in caught.value.rule


def test_a_plan_that_is_wrong(halves: Pair, tmp_path: Path) -> None:
    """It says another device for sin, forgets the transfer of tanh and invents one of sin."""
    pair = _copy(halves, tmp_path)
    tanh, sin, plan = pair.operator("Tanh"), pair.operator("Sin"), pair.plan()
    invented = PlanTransfer(sin, 0, CPU1, CPU0, 64)
    kept = tuple(t for t in plan.transfers if t.producer != tanh)
    wrong = replace(plan, placement={**plan.placement, sin: CPU0}, transfers=(*kept, invented))
    (pair.placed / PLAN_FILE).write_text(plan_to_json(wrong), encoding="utf-8")
    report = inspect_placed(pair.original, pair.placed, SESSION_OFF)
    run = "session, Grappler off:"
    assert [f.text for f in report.findings if f.text.startswith(run)] == [
        f"{run} operator {sin!r} (Sin) runs on {CPU1}, planned on {CPU0}",
        f"{run} the transfer of {sin!r} from {CPU1} to {CPU0} is planned but does not happen",
        f"{run} the transfer of {tanh!r} from {CPU0} to {CPU1} is not planned; read by {sin!r}",
    ]
    with pytest.raises(MoiraiError, match="is not what its plan says") as caught:
        check_report(report)
    assert sin in caught.value.rule


def test_a_node_that_was_moved_after_planning(halves: Pair, tmp_path: Path) -> None:
    def move(meta_graph: Any) -> None:
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                node.device = CPU0 if node.op == "Sin" else node.device

    pair = Pair(halves.original, edited(halves.placed, tmp_path / "edited", move))
    sin, tanh = pair.operator("Sin"), pair.operator("Tanh")
    findings = pair.findings(TF2_OFF)
    assert sin in _named(findings, "placement")
    assert {sin, tanh} <= _named(findings, "transfer")
    texts = [f.text for f in findings]
    missing = f"the transfer of {tanh!r} from {CPU0} to {CPU1} is planned but does not happen"
    assert f"tf2, Grappler off: {missing}" in texts
    assert any(f"transfer of {sin!r} from {CPU0} to {CPU1} is not planned" in t for t in texts)


def test_a_variable_that_was_left_behind(halves: Pair, tmp_path: Path) -> None:
    """Without `SavedVariable.device` the TF2 loader copies the weights at every inference."""

    def leave(meta_graph: Any) -> None:
        for item in meta_graph.object_graph_def.nodes:
            if item.WhichOneof("kind") == "variable":
                item.variable.device = ""

    pair = Pair(halves.original, edited(halves.placed, tmp_path / "edited", leave))
    read = next(n for n, d in pair.plan().placement.items() if n.endswith("ReadVariableOp")
                and d == CPU1)  # fmt: skip
    findings = pair.findings(VerifyOptions(loaders=("tf2",)))
    assert read in _named(findings, "placement")
    moved = [f.text for f in findings if f.kind == "weights" and f.names[0] == read]
    assert [text.split(":")[0] for text in moved] == ["tf2, Grappler off", "tf2, Grappler on"]
    assert "weights move at every inference" in moved[0]


def test_weights_that_differ(halves: Pair, tmp_path: Path) -> None:
    pair = _copy(halves, tmp_path)
    other = _two_halves(tmp_path / "other", seed=1)
    shutil.rmtree(pair.placed / "variables")
    shutil.copytree(other / "variables", pair.placed / "variables")
    findings = pair.findings(SESSION_OFF)
    assert [(f.kind, f.names) for f in findings] == [("value", ("y",))]
    assert "output 'y' (float32[2, 8]) differs by" in findings[0].text

    watch = Stopwatch()
    with observed(watch):
        both = pair.findings(VerifyOptions())
    assert [f.text.split(": output")[0] for f in both] == [
        f"{loader}, Grappler {mode}" for loader in ("tf2", "session") for mode in ("off", "on")
    ]
    assert ("session", "run the original") in [time.path for time in watch.times]


def test_a_session_runs_the_original_only_where_outputs_differ(halves: Pair) -> None:
    """Otherwise what the TF2 loader's original gave is what the Session's placed model gives."""
    watch = Stopwatch()
    with observed(watch):
        report = verify(halves.original, halves.placed)
    assert len(report.outputs) == len(report.proofs) == 4
    assert {parity.bit_equal for parity in report.outputs} == {True}
    stages = [time.path for time in watch.times]
    assert ("tf2", "run the original") in stages
    assert ("session", "run the original") not in stages


def test_grappler_fuses_across_devices(tmp_path: Path) -> None:
    """A cut between MatMul and BiasAdd: the plan holds as written, not as Grappler runs it."""
    rng = np.random.default_rng(0)
    weights, bias = (tf.Variable(rng.normal(size=s).astype(np.float32)) for s in ((64, 64), 64))

    @tf.function(input_signature=[tf.TensorSpec([16, 64], tf.float32, "x")])
    def dense(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.sin(tf.nn.relu(tf.nn.bias_add(x @ weights, bias)))}

    source = save_function(tmp_path / "model", dense, weights=weights, bias=bias)
    place(source, tmp_path / "placed", placement=_second_half(source, "BiasAdd"))
    pair = Pair(source, tmp_path / "placed")
    findings = pair.findings(VerifyOptions(loaders=("tf2",)))
    assert _named(findings, "placement") == {pair.operator("BiasAdd")}
    assert any(f.kind == "weights" for f in findings)  # the bias follows
    assert {f.text.split(":")[0] for f in findings} == {"tf2, Grappler on"}


def test_devices_that_are_not_here(halves: Pair, tmp_path: Path) -> None:
    """An original that was placed for such devices before is taken back first."""
    names = {CPU0: "/job:worker/replica:0/task:0/device:CPU:0", CPU1: "/device:GPU:7"}
    remap(halves.placed, tmp_path / "before", {CPU1: "/device:GPU:6"})
    remap(halves.placed, tmp_path / "remote", names)
    report = verify(tmp_path / "before", tmp_path / "remote", SESSION_OFF)
    assert report.devices == ((names[CPU0], CPU0), (names[CPU1], CPU1))
    assert report.proofs[0].transfers == 2
    assert f"{names[CPU1]} as {CPU1}" in str(report)


def test_random_operators_are_seeded(tmp_path: Path) -> None:
    @tf.function(input_signature=[tf.TensorSpec([2, 8], tf.float32, "x")])
    def noisy(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.sin(tf.tanh(x) + tf.random.normal([2, 8]) * tf.random.uniform([8]))}

    source = save_function(tmp_path / "model", noisy)
    place(source, tmp_path / "placed", placement=_second_half(source, "Sin"))
    report = verify(source, tmp_path / "placed", VerifyOptions(grappler="off"))
    assert [parity.bit_equal for parity in report.outputs] == [True, True]


@pytest.mark.parametrize("loader", ["tf2", "session"])
def test_one_loaded_model_runs_without_grappler_and_with_it(loader: str, tmp_path: Path) -> None:
    """Grappler makes one operator of `Exp` and `Sin`."""

    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, "x")])
    def power(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.sin(tf.exp(x))}

    where = (save_function(tmp_path / "model", power), ["serve"], "serving_default")
    model = Tf2Model(*where) if loader == "tf2" else SessionModel(*where, [CPU0])
    before = metrics.GetReadApi("load_v2")
    runs = [model.run({"x": np.ones(2, np.float32)}, grappler=on) for on in (False, True)]
    assert metrics.GetReadApi("load_v2") - before == (loader == "tf2")
    ops = [{n.op for g in run.partitions[-1] for n in g.node} for run in runs]
    assert [found & {"Exp", "Sin", "_UnaryOpsComposition"} for found in ops] == [
        {"Exp", "Sin"},
        {"_UnaryOpsComposition"},
    ]
    untraced = model.run({"x": np.ones(2, np.float32)}, grappler=True, traced=False)
    assert not any(untraced.partitions)
    np.testing.assert_array_equal(untraced.outputs["y"], runs[1].outputs["y"])


def test_a_model_that_counts_its_runs(tmp_path: Path) -> None:
    count = tf.Variable(1.0)

    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, "x")])
    def counted(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.sin(x) * count.assign_add(1.0)}

    source = save_function(tmp_path / "model", counted, count=count)
    place(source, tmp_path / "placed", placement=_second_half(source, "Sin"))
    report = verify(source, tmp_path / "placed")
    assert len(report.outputs) == len(report.proofs) == 4
    assert all(parity.bit_equal for parity in report.outputs)


def test_a_model_that_never_answers_twice_the_same(tmp_path: Path) -> None:
    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, "x")])
    def clock(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"now": tf.timestamp(), "y": tf.sin(x)}

    source = save_function(tmp_path / "model", clock)
    place(source, tmp_path / "placed", placement=_second_half(source, "Sin"))
    with pytest.raises(MoiraiError, match="two runs of the original differ in 'now'"):
        verify(source, tmp_path / "placed", SESSION_OFF)


def test_an_original_that_only_one_loader_can_run(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """`tf.saved_model.save` of a Keras 3 model leaves variables out that a Session would need."""
    source = zoo_dir("conv_net_saved")
    place(source, tmp_path / "placed", placement={})
    report = verify(source, tmp_path / "placed", VerifyOptions(grappler="off"))
    assert [proof.run for proof in report.proofs] == ["tf2, Grappler off"]
    (note,) = report.notes
    assert "the original itself cannot be run by session: Could not find variable" in note

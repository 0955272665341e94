"""Pipelines can be printed, cut short, reordered and extended; nothing is half-written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import tensorflow as tf

import moirai_tf
from moirai_tf import MoiraiError, MoiraiItem, Pass, Pipeline
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.options import options_of
from moirai_tf.passes import PASSES
from moirai_tf.report import content_of
from tests.cost_cases import saved
from tests.scatter import Scatter, logical_cluster, scatter_pipeline
from tests.zoo import ZOO

ROOT = Path(__file__).parents[1]
ZooDir = Callable[[str], Path]


def test_a_pipeline_prints_its_passes_and_options() -> None:
    text = str(moirai_tf.default_pipeline(batch_size=8, solver="heft"))
    lines = text.splitlines()
    assert [line.partition("(")[0] for line in lines] == [step.name for step in PASSES]
    assert "batch_size=8" in lines[0]
    assert "solver='heft'" in next(line for line in lines if line.startswith("place("))


def test_every_option_has_a_help_text_and_one_type() -> None:
    for step in PASSES:
        for known in options_of(step):
            assert known.help
            assert known.kind in (bool, int, float, str, tuple), known


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(MoiraiError, match="no option 'batchsize'"):
        moirai_tf.default_pipeline(batchsize=8)


def test_a_value_outside_its_choices_is_refused() -> None:
    with pytest.raises(MoiraiError, match="congestion is 'both'"):
        moirai_tf.default_pipeline(congestion="both")


def test_options_beside_a_pipeline_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MoiraiError, match="both a pipeline and the option 'solver'"):
        moirai_tf.optimize(tmp_path, pipeline=moirai_tf.default_pipeline(), solver="heft")


def test_an_unknown_pass_is_refused_by_name() -> None:
    with pytest.raises(MoiraiError, match="no pass 'fusion'"):
        moirai_tf.default_pipeline().until("fusion")


def test_a_pass_without_its_stage_says_what_is_missing(tmp_path: Path) -> None:
    pipeline = moirai_tf.default_pipeline().without("import")
    with pytest.raises(MoiraiError, match="pass 'prune' needs 'graph'"):
        pipeline.run(MoiraiItem(tmp_path, logical_cluster(2)))


def test_a_pipeline_can_be_cut_short_and_extended(zoo_dir: ZooDir) -> None:
    @dataclass(frozen=True)
    class DropColocation(Pass):
        """A pass of the user's own."""

        name: ClassVar[str] = "drop colocation"
        requires: ClassVar[tuple[str, ...]] = ("graph",)

        def __call__(self, item: MoiraiItem) -> MoiraiItem:
            assert item.graph is not None
            return replace(item, graph=replace(item.graph, colocation=()))

    seen: list[str] = []
    pipeline = moirai_tf.default_pipeline().after("prune", DropColocation()).until("fuse")
    item = pipeline.run(
        MoiraiItem(zoo_dir("mlp"), logical_cluster(2)), lambda step, _: seen.append(step.name)
    )
    assert seen == ["import", "prune", "drop colocation", "fuse"]
    assert item.coarse is not None
    assert item.coarse.fine.colocation == ()


def test_a_hook_may_replace_the_item(zoo_dir: ZooDir) -> None:
    def rename(step: Pass, item: MoiraiItem) -> MoiraiItem | None:
        if item.graph is None or step.name != "import":
            return None
        return replace(item, graph=replace(item.graph, signature="renamed"))

    item = (
        moirai_tf.default_pipeline()
        .until("prune")
        .run(MoiraiItem(zoo_dir("mlp"), logical_cluster(2)), rename)
    )
    assert item.graph is not None
    assert item.graph.signature == "renamed"


def test_a_pass_that_fails_leaves_nothing_behind(zoo_dir: ZooDir, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Fail(Pass):
        """Fails after the model was staged."""

        name: ClassVar[str] = "verify"

        def __call__(self, item: MoiraiItem) -> MoiraiItem:
            assert item.staged is not None
            assert (item.staged.directory / "saved_model.pb").is_file()
            raise MoiraiError("it does not hold", why="a test", fix="none")

    pipeline = (
        moirai_tf.default_pipeline(output_dir=str(tmp_path / "out"), source="analytical")
        .replaced(Scatter())
        .replaced(Fail())
    )
    with pytest.raises(MoiraiError, match="it does not hold"):
        pipeline.run(MoiraiItem(zoo_dir("mlp"), logical_cluster(2)))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused_before_any_work(zoo_dir: ZooDir, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    pipeline = Pipeline((moirai_tf.Import(), moirai_tf.Rewrite(output_dir=str(tmp_path))))
    seen: list[str] = []
    with pytest.raises(MoiraiError, match="exists and is not empty"):
        pipeline.run(
            MoiraiItem(zoo_dir("mlp"), logical_cluster(2)),
            lambda step, _: seen.append(step.name),
        )
    assert seen == []
    assert (tmp_path / "precious").read_text() == "kept"


def test_part_of_a_pipeline_gives_what_there_is(zoo_dir: ZooDir, tmp_path: Path) -> None:
    model, pipeline = zoo_dir("lstm"), moirai_tf.default_pipeline(batch_size=2)
    imported = moirai_tf.optimize(
        model, cluster=logical_cluster(2), pipeline=pipeline.until("import")
    )
    assert imported.operators
    assert imported.fused_operators is None
    fused = moirai_tf.optimize(model, cluster=logical_cluster(2), pipeline=pipeline.until("fuse"))
    assert fused.fused_operators
    assert fused.operators
    assert fused.fused_operators < fused.operators <= imported.operators
    assert (fused.placed, fused.output, fused.report, fused.used) == (None, None, None, ())
    assert str(fused).splitlines() == [
        "nothing was placed: the pipeline ends before that",
        "",
        f"model       {model}, signature 'serving_default': {fused.operators} operators, "
        f"{fused.fused_operators} after fusion",
    ]


def test_a_pipeline_that_does_not_publish_leaves_nothing(zoo_dir: ZooDir, tmp_path: Path) -> None:
    pipeline = scatter_pipeline(ZOO["lstm"], tmp_path / "out", 2).until("rewrite")
    summary = moirai_tf.optimize(zoo_dir("lstm"), cluster=logical_cluster(2), pipeline=pipeline)
    assert summary.placed is not None
    assert summary.output is None
    assert "\npredicted " in str(summary)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def one_cpu() -> moirai_tf.Cluster:
    return moirai_tf.Cluster("one", logical_cluster(2).devices[:1], ())


def test_one_device_alone_is_said_before_anything_is_measured(
    zoo_dir: ZooDir, tmp_path: Path
) -> None:
    """The model comes out as it was, and the plan says so; on wish it is measured and placed."""
    seen: list[str] = []
    source, output = zoo_dir("lstm"), tmp_path / "out"
    summary = moirai_tf.optimize(source, output, one_cpu(), hook=lambda s, _: seen.append(s.name))
    assert seen == ["import", "prune", "fuse", "alone", "rewrite", "verify", "publish"]
    assert summary.verdict == (
        "one device is best: CPU:0, the only one there is; nothing was measured"
    )
    assert summary.report is not None
    assert summary.report.ok
    assert "ok: nothing was placed, and the model is the original" in str(summary)
    before, after = (read_saved_model(path).proto for path in (source, output))
    assert before == after
    plan = moirai_tf.read_plan(output)
    assert (plan.placement, plan.transfers, plan.summary) == ({}, (), None)
    assert moirai_tf.load(output).signatures
    with pytest.raises(MoiraiError, match=r"(?s)nothing was placed in .*profile_anyway"):
        content_of(output)
    moirai_tf.strip(output, tmp_path / "stripped")
    assert not (tmp_path / "stripped" / "assets.extra").exists()
    placed = moirai_tf.optimize(
        source, tmp_path / "two", one_cpu(), source="analytical", profile_anyway=True, verify=False
    )
    assert placed.placed is not None


def test_a_change_to_a_model_that_is_not_placed_is_found(zoo_dir: ZooDir, tmp_path: Path) -> None:
    moirai_tf.optimize(zoo_dir("lstm"), tmp_path / "out", one_cpu())
    with pytest.raises(MoiraiError, match="is not what its plan says"):
        moirai_tf.verify(zoo_dir("mlp"), tmp_path / "out")


def test_what_no_other_device_can_run_leaves_no_choice(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """Strings have kernels for CPUs alone; a matrix product has one for GPUs."""

    @tf.function(input_signature=[tf.TensorSpec([4], tf.string, "x")])
    def shout(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.strings.upper(tf.strings.strip(x))}

    strings = saved(shout, tmp_path / "strings").path
    cluster = moirai_tf.read_cluster(ROOT / "configs" / "cpu_gpu.yaml")
    alone = moirai_tf.default_pipeline().until("alone")
    said = "CPU:0, the only one that has kernels for what computes; nothing was measured"
    assert alone.run(MoiraiItem(strings, cluster)).alone == said
    assert alone.run(MoiraiItem(zoo_dir("mlp"), cluster)).alone == ""
    limited = moirai_tf.default_pipeline(memory_limit=("/device:CPU:0=1",)).until("alone")
    assert limited.run(MoiraiItem(zoo_dir("mlp"), one_cpu())).alone == ""

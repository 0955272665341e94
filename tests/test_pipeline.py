"""Pipelines can be printed, cut short, reordered and extended; nothing is half-written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

import moirai_tf
from moirai_tf import MoiraiError, MoiraiItem, Pass, Pipeline
from moirai_tf.options import options_of
from moirai_tf.passes import PASSES
from tests.scatter import Scatter, logical_cluster, scatter_pipeline
from tests.zoo import ZOO

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
    assert str(fused).splitlines()[1:] == [
        f"operators   {fused.operators} -> {fused.fused_operators} after fusion"
    ]


def test_a_pipeline_that_does_not_publish_leaves_nothing(zoo_dir: ZooDir, tmp_path: Path) -> None:
    pipeline = scatter_pipeline(ZOO["lstm"], tmp_path / "out", 2).until("rewrite")
    summary = moirai_tf.optimize(zoo_dir("lstm"), cluster=logical_cluster(2), pipeline=pipeline)
    assert summary.placed is not None
    assert summary.output is None
    assert "\nschedule " in str(summary)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]

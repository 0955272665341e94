"""The output is whole or absent, stands apart from the input, and never leads out of the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moirai_tf.errors import MoiraiError
from moirai_tf.model import output
from moirai_tf.model.output import publish, stage, whole_directory
from moirai_tf.rewrite.directory import strip
from moirai_tf.rewrite.plan_file import PLAN_FILE
from tests.golden.__main__ import FOLDER
from tests.placements import place
from tests.saved_models import digest, edited, proto_of

ZooDir = Callable[[str], Path]


def _contents(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_every_file_arrives(tmp_path: Path, zoo_dir: ZooDir) -> None:
    source = zoo_dir("assets_extra")
    place(source, tmp_path / "out")
    before, after = digest(source), digest(tmp_path / "out")
    changed = {"saved_model.pb", "fingerprint.pb"}
    added = {str(PLAN_FILE), "assets.extra/session_config.pbtxt"}
    assert after.keys() - before.keys() == added
    assert {name for name in before if before[name] != after[name]} == changed
    assert "assets.extra/notes/owner.txt" in before
    assert _contents(tmp_path) == ["out"]


def test_assets_are_copies_and_variables_are_links(tmp_path: Path, zoo_dir: ZooDir) -> None:
    source = zoo_dir("lookup_table")
    place(source, tmp_path / "out")
    for file in source.rglob("*"):
        other = tmp_path / "out" / file.relative_to(source)
        if file.is_file():
            shared = file.stat().st_ino == other.stat().st_ino
            assert shared == (file.parent.name == "variables")


def test_variables_are_copied_where_links_are_impossible(
    tmp_path: Path, zoo_dir: ZooDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the file system has no hard links")

    monkeypatch.setattr(os, "link", refuse)
    place(zoo_dir("cond"), tmp_path / "out")
    for file in (zoo_dir("cond") / "variables").iterdir():
        copy = tmp_path / "out" / "variables" / file.name
        assert copy.read_bytes() == file.read_bytes()
        assert copy.stat().st_ino != file.stat().st_ino


def test_input_is_left_alone(tmp_path: Path, zoo_dir: ZooDir) -> None:
    source = tmp_path / "model"
    shutil.copytree(zoo_dir("lookup_table"), source)
    before = digest(source), {p: p.stat().st_mtime_ns for p in source.rglob("*")}
    place(source, tmp_path / "out")
    strip(tmp_path / "out", tmp_path / "stripped")
    assert (digest(source), {p: p.stat().st_mtime_ns for p in source.rglob("*")}) == before


def test_text_models_stay_text(tmp_path: Path) -> None:
    place(FOLDER / "siamese", tmp_path / "out")
    assert _contents(tmp_path / "out") == ["assets.extra", "saved_model.pbtxt"]


def test_existing_output_needs_overwrite(tmp_path: Path, zoo_dir: ZooDir) -> None:
    place(zoo_dir("cond"), tmp_path / "out")
    before = digest(tmp_path / "out")
    with pytest.raises(MoiraiError, match="exists and is not empty") as caught:
        place(zoo_dir("two_signatures"), tmp_path / "out")
    assert "overwrite" in caught.value.fix
    assert digest(tmp_path / "out") == before
    place(zoo_dir("two_signatures"), tmp_path / "out", overwrite=True)
    assert digest(tmp_path / "out") != before
    assert _contents(tmp_path) == ["out"]


def test_an_empty_output_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    place(FOLDER / "siamese", tmp_path / "out")
    assert (tmp_path / "out" / "saved_model.pbtxt").is_file()


def test_only_models_are_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(MoiraiError, match="is not a SavedModel"):
        place(FOLDER / "siamese", tmp_path / "out", overwrite=True)
    assert _contents(tmp_path / "out") == ["thesis.txt"]


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(MoiraiError, match="is a file"):
        place(FOLDER / "siamese", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "a file"


def test_output_behind_a_link_is_replaced_there(tmp_path: Path) -> None:
    place(FOLDER / "siamese", tmp_path / "version1")
    (tmp_path / "current").symlink_to("version1")
    place(FOLDER / "siamese", tmp_path / "current", seed=5, overwrite=True)
    assert (tmp_path / "current").is_symlink()
    assert _contents(tmp_path) == ["current", "version1"]


def test_output_in_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MoiraiError, match="cannot be written") as caught:
        place(FOLDER / "siamese", tmp_path / "file" / "out")
    assert caught.value.fix


@pytest.mark.parametrize("where", ["model", "model/out", ".", "model/../model/deep/er", "link/out"])
def test_output_must_not_overlap_the_input(where: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(FOLDER / "siamese", root / "model")
    (root / "link").symlink_to(root / "model")
    before = digest(root)
    with pytest.raises(MoiraiError, match="overlap") as caught:
        place(root / "model", root / where, overwrite=True)
    assert "outside the input" in caught.value.fix
    assert digest(root) == before


def test_input_behind_a_link_overlaps_as_well(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "siamese", tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(MoiraiError, match="overlap"):
        place(tmp_path / "link", tmp_path / "model" / "out")
    place(tmp_path / "link", tmp_path / "out")
    assert (tmp_path / "out" / "saved_model.pbtxt").is_file()


@pytest.mark.parametrize(
    "link",
    ["assets.extra/secret.txt", "variables/variables.data-00000-of-00001", "assets.extra/folder"],
)
def test_links_out_of_the_model_are_refused(link: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    source = tmp_path / "model"
    shutil.copytree(FOLDER / "siamese", source)
    (source / link).parent.mkdir()
    (source / link).symlink_to(outside if link.endswith("folder") else outside / "secret.txt")
    with pytest.raises(MoiraiError, match="a place outside the model") as caught:
        place(source, tmp_path / "out")
    assert Path(link).name in caught.value.rule
    assert _contents(tmp_path) == ["model", "outside"]


def test_links_to_directories_are_refused_rather_than_lost(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(FOLDER / "siamese", source)
    (source / "real").mkdir()
    (source / "assets").symlink_to("real")
    with pytest.raises(MoiraiError, match="assets is a link to a directory"):
        place(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_inside_the_model_become_files(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(FOLDER / "siamese", source)
    (source / "assets.extra").mkdir()
    (source / "assets.extra" / "note.txt").write_text("note")
    (source / "assets.extra" / "again.txt").symlink_to("note.txt")
    place(source, tmp_path / "out")
    copy = tmp_path / "out" / "assets.extra" / "again.txt"
    assert not copy.is_symlink()
    assert copy.read_text() == "note"


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "a/../../secret.txt"])
def test_assets_outside_the_model_are_refused(name: str, tmp_path: Path, zoo_dir: ZooDir) -> None:
    def escape(meta_graph: Any) -> None:
        meta_graph.asset_file_def[0].filename = name

    source = edited(zoo_dir("lookup_table"), tmp_path / "model", escape)
    with pytest.raises(MoiraiError, match="lies outside the model") as caught:
        place(source, tmp_path / "out")
    assert repr(name) in caught.value.rule
    assert _contents(tmp_path) == ["model"]


def _fail_halfway(output: Path, *, overwrite: bool = False) -> None:
    with whole_directory(output, overwrite=overwrite) as work:
        assert work.parent == output.parent
        (work / "half").write_text("written")
        raise RuntimeError


def test_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        _fail_halfway(tmp_path / "out")
    assert _contents(tmp_path) == []


def test_failure_in_the_middle_keeps_the_old_output(tmp_path: Path) -> None:
    place(FOLDER / "siamese", tmp_path / "out")
    before = digest(tmp_path)
    with pytest.raises(RuntimeError):
        _fail_halfway(tmp_path / "out", overwrite=True)
    assert digest(tmp_path) == before


@pytest.mark.parametrize("exchange", [True, False])
def test_failure_while_publishing_puts_the_old_output_back(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where directories can be exchanged at once, and where they cannot."""
    place(FOLDER / "siamese", tmp_path / "out")
    before = digest(tmp_path)
    rename = Path.rename

    def refuse_the_new(self: Path, target: Path) -> Path:
        if target.name == "out" and self.stat().st_ino != old:
            raise OSError("disk failure")
        return rename(self, target)

    def refuse(one: Path, two: Path) -> bool:
        if exchange:
            raise OSError("disk failure")
        return False

    old = (tmp_path / "out").stat().st_ino
    monkeypatch.setattr(Path, "rename", refuse_the_new)
    monkeypatch.setattr(output, "_exchanged", refuse)
    with pytest.raises(MoiraiError, match="cannot be put in its place: disk failure"):
        place(FOLDER / "siamese", tmp_path / "out", seed=5, overwrite=True)
    assert digest(tmp_path) == before


def test_output_that_appears_meanwhile_is_not_lost(tmp_path: Path) -> None:
    staged = stage(tmp_path / "out", overwrite=False)
    (staged.directory / "saved_model.pb").write_bytes(b"")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other").write_text("made by another process")
    with pytest.raises(MoiraiError, match="exists and is not empty"):
        publish(staged)
    assert _contents(tmp_path / "out") == ["other"]


def test_failed_write_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(FOLDER / "siamese", source)
    # A directory where the plan's file must be.
    (source / PLAN_FILE).mkdir(parents=True)
    (source / PLAN_FILE / "file").write_text("")
    with pytest.raises(MoiraiError, match="the model cannot be written") as caught:
        place(source, tmp_path / "out")
    assert caught.value.fix
    assert _contents(tmp_path) == ["model"]


def test_placed_models_run(tmp_path: Path, zoo_dir: ZooDir) -> None:
    import numpy as np
    import tensorflow as tf

    from tests.zoo import ZOO

    place(zoo_dir("cond"), tmp_path / "out")
    inputs = {k: tf.constant(v) for k, v in ZOO["cond"].inputs().items()}
    results = [
        tf.saved_model.load(str(path)).signatures["serving_default"](**inputs)["y"].numpy()
        for path in (zoo_dir("cond"), tmp_path / "out")
    ]
    np.testing.assert_array_equal(*results)
    assert proto_of(tmp_path / "out") != proto_of(zoo_dir("cond"))

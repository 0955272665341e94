"""What gives no ONNX model, and what is left of it then: nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moirai_tf import MoiraiError, OnnxRunner, export_onnx, read_plan
from tests import exports
from tests.placements import place
from tests.saved_models import edited

ZooDir = Callable[[str], Path]


def test_a_manifest_that_was_changed_is_refused(zoo_dir: ZooDir, tmp_path: Path) -> None:
    done = export_onnx(exports.in_short_runs(zoo_dir, "cond", tmp_path), tmp_path / "exported")
    manifest = done.directory / "manifest.json"
    values = json.loads(manifest.read_text())
    assert len(values["parts"]) > 1
    for change, match in (
        ({"parts": values["parts"][::-1]}, "nothing before makes"),
        ({"schema": 9}, "schema"),
        ({"outputs": ["z"]}, "'z' is missing"),
        ({"parts": [{**p, "file": "../x.onnx"} for p in values["parts"]]}, "outside"),
    ):
        manifest.write_text(json.dumps({**values, **change}))
        with pytest.raises(MoiraiError, match=match):
            OnnxRunner(done.directory)
    manifest.write_text(json.dumps(values))
    (done.directory / values["parts"][0]["file"]).write_bytes(b"no model")
    with pytest.raises(MoiraiError, match="cannot load"):
        OnnxRunner(done.directory)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"signature": "encode"}, "'encode' was not placed, but 'serving_default'"),
        ({"opset": 19}, "opset is 19"),
        ({"tolerance": 2.0}, "tolerance is 2.0"),
        ({"inputs": "nowhere.npz"}, "cannot be read"),
    ],
)
def test_options_that_give_no_model(
    options: dict[str, Any], match: str, zoo_dir: ZooDir, tmp_path: Path
) -> None:
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    with pytest.raises(MoiraiError, match=match):
        export_onnx(tmp_path / "placed", tmp_path / "exported", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["placed"]


def test_an_output_that_exists_is_left_alone(zoo_dir: ZooDir, tmp_path: Path) -> None:
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "mine").touch()
    with pytest.raises(MoiraiError, match="exists and is not empty"):
        export_onnx(tmp_path / "placed", tmp_path / "exported")
    assert [p.name for p in (tmp_path / "exported").iterdir()] == ["mine"]


def test_damaged_weights_are_told(zoo_dir: ZooDir, tmp_path: Path) -> None:
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    data = tmp_path / "placed" / "variables" / "variables.data-00000-of-00001"
    data.unlink()  # it is a link to the original's
    data.write_bytes(b"short")
    with pytest.raises(MoiraiError, match="the original cannot be run") as refused:
        export_onnx(tmp_path / "placed", tmp_path / "exported")
    assert "variables/" in refused.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["placed"]


def test_an_original_that_answers_otherwise_is_told(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """A signature that gives one tensor twice: tf2onnx has one name for it."""

    def twice(meta_graph: Any) -> None:
        outputs = meta_graph.signature_def["serving_default"].outputs
        outputs["again"].CopyFrom(outputs["logits"])

    edited(zoo_dir("two_signatures"), tmp_path / "model", twice)
    place(tmp_path / "model", tmp_path / "placed", seed=1)
    with pytest.raises(MoiraiError):
        export_onnx(tmp_path / "placed", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    "nbytes", [4_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 100, 30_000))]
)
def test_a_full_disk_leaves_nothing(nbytes: int, zoo_dir: ZooDir, tmp_path: Path) -> None:
    """The weights have 37,000 bytes; the disk is full when conversion is done."""
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    refused, said = exports.refused_on_full_disk(
        "moirai_tf.export.onnx", "convert", "export_onnx", tmp_path / "placed", tmp_path / "out",
        room=nbytes,
    )  # fmt: skip
    assert refused, said
    assert [path.name for path in tmp_path.iterdir()] == ["placed"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "tf2onnx"])
def test_without_the_extra_it_says_what_to_install(
    package: str, zoo_dir: ZooDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MoiraiError, match="not installed") as refused:
        export_onnx(tmp_path / "placed", tmp_path / "exported")
    assert "moirai_tf[onnx]" in refused.value.fix
    assert read_plan(tmp_path / "placed").signature == "serving_default"

"""Tries a model that may be broken: refused with nothing left behind, or written completely."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2

from moirai_tf.errors import MoiraiError
from moirai_tf.model.saved_model import read_saved_model
from tests.golden.__main__ import FOLDER
from tests.placements import place


def siamese() -> Any:
    text = (FOLDER / "siamese" / "saved_model.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, saved_model_pb2.SavedModel())


def written(folder: Path, proto: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "saved_model.pb").write_bytes(proto.SerializeToString(deterministic=True))
    return folder


def refusal_of(source: Path, **options: Any) -> MoiraiError | None:
    """Imports, places and writes a model; the error that refused it, or None if it is complete."""
    folder = source.with_name("outputs")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    refusal = None
    try:
        place(source, folder / "out", **options)
    except MoiraiError as error:
        refusal = error
    assert [p.name for p in folder.iterdir()] == ([] if refusal else ["out"])
    if refusal is None:
        read_saved_model(folder / "out")
    else:
        assert all((refusal.rule, refusal.why, refusal.fix))
    return refusal

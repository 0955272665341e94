"""Randomly damaged models end in a `MoiraiError` or complete, never in a traceback or half a model.

Random damage cannot always be seen (a byte of a name, say): what is not refused must be imported,
placed and written completely.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden.__main__ import FOLDER
from tests.mutations import cuts, damage_bytes, damage_fields
from tests.refusals import refusal_of, siamese, written
from tests.saved_models import proto_of, zoo_options

ZooDir = Callable[[str], Path]
SEEDS_AT_A_TIME = 50


def test_the_model_without_damage_is_sound(tmp_path: Path) -> None:
    assert refusal_of(written(tmp_path / "model", siamese())) is None


def test_truncated_at_many_points(tmp_path: Path) -> None:
    model = written(tmp_path / "model", siamese())
    data = (model / "saved_model.pb").read_bytes()
    errors = []
    for length in cuts(len(data), 100):
        (model / "saved_model.pb").write_bytes(data[:length])
        errors.append(refusal_of(model))
    # A cut between two fields still parses; all others must be noticed.
    assert sum(error is not None for error in errors) > 95


@pytest.mark.parametrize("first", range(0, 300, SEEDS_AT_A_TIME))
def test_damaged_bytes(first: int, tmp_path: Path) -> None:
    model = written(tmp_path / "model", siamese())
    data = (model / "saved_model.pb").read_bytes()
    refused = 0
    for seed in range(first, first + SEEDS_AT_A_TIME):
        (model / "saved_model.pb").write_bytes(damage_bytes(data, seed))
        refused += refusal_of(model) is not None
    assert refused > SEEDS_AT_A_TIME // 2


@pytest.mark.parametrize("first", range(0, 400, SEEDS_AT_A_TIME))
def test_damaged_fields(first: int, tmp_path: Path) -> None:
    refused = 0
    for seed in range(first, first + SEEDS_AT_A_TIME):
        proto = siamese()
        damage_fields(proto.meta_graphs[0], seed)
        refused += refusal_of(written(tmp_path / "model", proto)) is not None
    assert refused > SEEDS_AT_A_TIME // 4


@pytest.mark.parametrize("name", ["cond", "tf1", "lookup_table", "jit_compile"])
def test_damaged_fields_of_real_models(name: str, tmp_path: Path, zoo_dir: ZooDir) -> None:
    model = tmp_path / "model"
    shutil.copytree(zoo_dir(name), model)
    for seed in range(40):
        proto = proto_of(zoo_dir(name))
        damage_fields(proto.meta_graphs[0].graph_def, seed)
        refusal_of(written(model, proto), **zoo_options(name))


def test_damaged_text(tmp_path: Path) -> None:
    text = (FOLDER / "siamese" / "saved_model.pbtxt").read_bytes()
    model = tmp_path / "model"
    model.mkdir()
    for seed in range(60):
        (model / "saved_model.pbtxt").write_bytes(damage_bytes(text, seed))
        refusal_of(model)

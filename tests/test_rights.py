"""Users without rights: they read what they may, and are told what they may not."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moirai_tf.placement.compiled import compiled
from tests.hostile import CLUSTER
from tests.refusals import siamese, written

ROOT = Path(__file__).resolve().parents[1]
_PR_CAPBSET_DROP = 24
"""Of Linux's prctl."""

_SCRIPT = """
import json, os, resource, sys, tempfile
from pathlib import Path
from moirai_tf.cluster.files import cluster_from_yaml
from moirai_tf.errors import MoiraiError
from moirai_tf.passes import Fuse, Import, Place, Profile, Prune, Publish, Rewrite
from moirai_tf.pipeline import MoiraiItem, Pipeline
from moirai_tf.rewrite.directory import remap, strip

source, output, cluster = Path(sys.argv[1]), Path(sys.argv[2]), cluster_from_yaml(sys.argv[3])
if len(sys.argv) > 4:  # as on a disk that is full to the last byte
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    tempfile.tempdir = None
passes = (Import(), Prune(), Fuse(), Profile(source="analytical", links="cluster"),
          Place(solver="heft"), Rewrite(output_dir=str(output), overwrite=True), Publish())
for call in (
    lambda: Pipeline(passes).run(MoiraiItem(source, cluster)),
    lambda: strip(output, output.with_name("stripped")),
    lambda: remap(output, output.with_name("remapped"), {}),
):
    try:
        call()
        print("done")
    except MoiraiError as error:
        assert error.why and error.fix
        print(f"refused: {error.rule}".splitlines()[0])
"""


def _without_rights() -> None:
    """Takes from the superuser what sets it above the modes of files; others do not have it."""
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _told(source: Path, output: Path, *more: str) -> list[str]:
    """What a user without rights is told of placing, stripping and remapping a model."""
    command = [sys.executable, "-c", _SCRIPT, str(source), str(output), str(CLUSTER), *more]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        preexec_fn=_without_rights, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model that can only be read, and one to write to."""
    (tmp_path / "open").mkdir()
    written(tmp_path / "model", siamese())
    (tmp_path / "model" / "saved_model.pb").chmod(0o444)
    (tmp_path / "model").chmod(0o555)
    return tmp_path


def test_reading_is_enough(place: Path) -> None:
    assert _told(place / "model", place / "open" / "placed") == ["done"] * 3


def test_code_is_compiled_where_it_cannot_be_kept() -> None:
    """As of a user who may write neither the package's directory nor a home of his own."""
    names: dict[str, Callable[[int], int]] = {}
    exec("def successor(x): return x + 1", names)  # code without a file cannot be kept
    assert compiled(names["successor"])(1) == 2


_FORBIDDEN: dict[str, Callable[[Path], object]] = {
    "model": lambda folder: (folder / "model").chmod(0),
    "graph": lambda folder: (folder / "model" / "saved_model.pb").chmod(0),
    "variables": lambda folder: (
        (folder / "model").chmod(0o755),
        (folder / "model" / "variables").mkdir(0),
    ),
    "asset": lambda folder: (
        (folder / "model").chmod(0o755),
        (folder / "model" / "assets").mkdir(),
        (folder / "model" / "assets" / "words").touch(0),
    ),
    "output": lambda folder: (folder / "open").chmod(0o555),
    "hidden output": lambda folder: (folder / "open").chmod(0),
}


@pytest.mark.parametrize("kind", _FORBIDDEN)
def test_what_is_forbidden_is_told(kind: str, place: Path) -> None:
    _FORBIDDEN[kind](place)
    told = _told(place / "model", place / "open" / "placed")
    for path in place.rglob("*"):
        path.chmod(0o777)
    assert all(line.startswith("refused: ") for line in told), told
    assert len(told) == 3
    assert list((place / "open").iterdir()) == []


def test_not_one_byte_can_be_written(place: Path) -> None:
    told = _told(place / "model", place / "open" / "placed", "full")
    assert len(told) == 3
    assert all(line.startswith("refused: ") for line in told), told
    assert list((place / "open").iterdir()) == []

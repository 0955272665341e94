"""Users without rights: they read what they may, and are told what they may not."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
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

cluster = cluster_from_yaml(sys.argv[1])
for kind, folder in json.loads(sys.argv[2]).items():
    if kind == "full disk":  # to the last byte; nothing comes after
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        tempfile.tempdir = None
    source, output = Path(folder, "model"), Path(folder, "open", "placed")
    passes = (Import(), Prune(), Fuse(), Profile(source="analytical", links="cluster"),
              Place(solver="heft"), Rewrite(output_dir=str(output), overwrite=True), Publish())
    for call in (
        lambda: Pipeline(passes).run(MoiraiItem(source, cluster)),
        lambda: strip(output, output.with_name("stripped")),
        lambda: remap(output, output.with_name("remapped"), {}),
    ):
        try:
            call()
            print(f"{kind}: done")
        except MoiraiError as error:
            assert error.why and error.fix
            print(f"{kind}: refused: {error.rule}".splitlines()[0])
"""


def _without_rights() -> None:
    """Takes from the superuser what sets it above the modes of files; others do not have it."""
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


@dataclass(frozen=True)
class Told:
    """What a user without rights is told of placing, stripping and remapping a model."""

    folder: Path
    lines: list[str]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """All kinds of rights, tried by one process, since each takes seconds to start."""
    root = tmp_path_factory.mktemp("rights")
    folders = {kind: _place(root / kind) for kind in _RIGHTS}
    for kind, forbid in _RIGHTS.items():
        forbid(folders[kind])
    job = json.dumps({kind: str(folder) for kind, folder in folders.items()})
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(CLUSTER), job], cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        preexec_fn=_without_rights, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for path in root.rglob("*"):
        path.chmod(0o777)
    lines = [line.split(": ", 1) for line in done.stdout.splitlines()]
    return {
        kind: Told(folder, [line for own, line in lines if own == kind])
        for kind, folder in folders.items()
    }


def _place(folder: Path) -> Path:
    """A folder with a model that can only be read, and one to write to."""
    (folder / "open").mkdir(parents=True)
    written(folder / "model", siamese())
    (folder / "model" / "saved_model.pb").chmod(0o444)
    (folder / "model").chmod(0o555)
    return folder


def test_reading_is_enough(told: dict[str, Told]) -> None:
    assert told["reading"].lines == ["done"] * 3


def test_code_is_compiled_where_it_cannot_be_kept() -> None:
    """As of a user who may write neither the package's directory nor a home of his own."""
    names: dict[str, Callable[[int], int]] = {}
    exec("def successor(x): return x + 1", names)  # code without a file cannot be kept
    assert compiled(names["successor"])(1) == 2


_RIGHTS: dict[str, Callable[[Path], object]] = {
    "reading": lambda folder: None,
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
    "full disk": lambda folder: None,  # the last one: the process can write no more
}


@pytest.mark.parametrize("kind", [kind for kind in _RIGHTS if kind != "reading"])
def test_what_is_forbidden_is_told(kind: str, told: dict[str, Told]) -> None:
    lines = told[kind].lines
    assert all(line.startswith("refused: ") for line in lines), lines
    assert len(lines) == 3
    assert list((told[kind].folder / "open").iterdir()) == []

"""What tests of both exports share: models dealt out, and a disk that fills up on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from moirai_tf import MoiraiItem, save_inputs
from tests.scatter import Scatter, logical_cluster, scatter_pipeline
from tests.zoo import ZOO

ROOT = Path(__file__).resolve().parents[1]
_FULL = """
import importlib, resource, sys
room, module, last, export, *arguments = sys.argv[1:]
module = importlib.import_module(module)
done = getattr(module, last)
def full(*args):
    found = done(*args)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
    return found
setattr(module, last, full)
options = {"copy": True} if export == "export_serving" else {}
try:
    getattr(module, export)(*arguments, **options)
except module.MoiraiError as error:
    print("refused", error)
"""


def scattered(
    zoo_dir: Callable[[str], Path], name: str, folder: Path, scatter: Scatter | None = None
) -> Path:
    """A model of the zoo dealt out to two logical CPUs; its inputs are beside it."""
    pipeline = scatter_pipeline(ZOO[name], folder / "placed", 2).without("verify")
    if scatter is not None:
        pipeline = pipeline.replaced(scatter)
    pipeline.run(MoiraiItem(zoo_dir(name), logical_cluster(2)))
    save_inputs(folder / "inputs.npz", ZOO[name].inputs())
    return folder / "placed"


def in_short_runs(zoo_dir: Callable[[str], Path], name: str, folder: Path) -> Path:
    """The same in runs of two operators, so that there are many parts."""
    return scattered(zoo_dir, name, folder, Scatter(seed=3, run=2))


def refused_on_full_disk(
    module: str, last: str, export: str, *arguments: Path, room: int
) -> tuple[bool, str]:
    """Whether an export is refused if a file can have only so many bytes from some step on.

    Args:
      module: where the export is.
      last: the function of the module after whose call the disk is full.
      export: the function.
      *arguments: its own.
      room: bytes.

    Returns:
      Whether it is, and what the process said.
    """
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(room), module, last, export, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.startswith("refused"), done.stderr

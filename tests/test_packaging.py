"""What a user installs: wheel and source distribution, in an environment that has nothing else."""

from __future__ import annotations

import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

USE = """
import pathlib, sys
import tensorflow as tf
import moirai_tf

class Model(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([2, 3], tf.float32)])
    def __call__(self, x):
        return tf.sin(x) + 1.0

tf.saved_model.save(Model(), "model")
summary = moirai_tf.optimize("model", "placed")
assert "site-packages" in moirai_tf.__file__, moirai_tf.__file__
x = tf.constant([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
placed = moirai_tf.load("placed").signatures["serving_default"](x=x)
assert abs(float(tf.sin(x)[1, 2]) + 1.0 - float(placed["output_0"][1, 2])) < 1e-6
"""


def done(directory: Path, *command: str) -> str:
    """Standard output of a command that must succeed."""
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_is(tmp_path: Path) -> None:
    source = tmp_path / "source"
    done(ROOT, "git", "clone", "--quiet", str(ROOT), str(source))
    venv.create(tmp_path / "tools", with_pip=True)
    tools = str(tmp_path / "tools/bin/python")
    done(tmp_path, tools, "-m", "pip", "install", "--quiet", "build", "twine")
    done(source, tools, "-m", "build", "--outdir", str(tmp_path / "dist"))
    wheel, archive = sorted((tmp_path / "dist").iterdir(), key=lambda path: path.suffix != ".whl")
    done(tmp_path, tools, "-m", "twine", "check", "--strict", str(wheel), str(archive))
    names = zipfile.ZipFile(wheel).namelist()
    assert "moirai_tf/py.typed" in names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {
        "moirai_tf",
        "moirai_tf_tools",
    }
    venv.create(tmp_path / "empty", with_pip=True)
    python = str(tmp_path / "empty/bin/python")
    done(tmp_path, python, "-m", "pip", "install", "--quiet", str(wheel))
    (tmp_path / "use").mkdir()
    done(tmp_path / "use", python, "-c", USE)
    commands = sorted((tmp_path / "empty/bin").glob("moirai_*"))
    assert len(commands) >= 9
    for command in commands:
        assert "flags:" in done(tmp_path / "use", str(command), "--help")

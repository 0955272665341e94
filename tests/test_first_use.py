"""What is imported, and compiled, when the package is used for the first time on a machine."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import moirai_tf
from moirai_tf.placement import clock
from moirai_tf.placement.clock import Deadline, OutOfTimeError

ROOT = Path(__file__).resolve().parents[1]

SLOW_TO_IMPORT = ("tensorflow", "numba", "scipy", "networkx", "yaml", "grpc", "google.protobuf")

# 400 operators in two chains: too many to be placed in Python, so `place` and `trial` are compiled.
PROGRAM = """
import sys, time
from moirai_tf.placement import Device, Operator, Problem, SolveOptions, Tensor, solve
from moirai_tf.placement.clock import now_s
way = ((0, 3), (3, 0))
operators = tuple(Operator(f"o{i}", (2, 2), 1) for i in range(400))
tensors = tuple(Tensor(i, (i + 2,), way) for i in range(398))
problem = Problem("chains", (Device("a", None), Device("b", None)), operators, tensors)
began_s, began_by_clock_s = time.monotonic(), now_s()
result = solve(problem, SolveOptions(solver="heft"))
lost_s = time.monotonic() - began_s - (now_s() - began_by_clock_s)
print(result.status, result.makespan_ns, "numba" in sys.modules, lost_s > 0.1)
"""
"""Each chain on a device of its own takes 200 * 2 = 400, half of all work: optimal."""

ANSWER = "optimal 400 True True\n"


def _python(program: str, folder: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=folder,  # where Python looks first
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _answer(process: subprocess.Popen[str]) -> tuple[str, str]:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output, errors


@pytest.mark.parametrize(
    "program",
    [
        "import moirai_tf",
        "import moirai_tf.placement",
        "import atexit; from tools import moirai_place; sys.argv = ['moirai_place', '--help']; "
        "atexit.register(tell); moirai_place.entry()",
    ],
)
def test_placement_is_imported_alone(program: str) -> None:
    tell = f"""
def tell():
    print("slow", [name for name in {SLOW_TO_IMPORT} if name in sys.modules])
"""
    process = _python(f"import sys\n{tell}\n{program}\ntell()")
    output, errors = process.communicate()
    assert output.splitlines()[-1] == "slow []", errors


def test_small_problem_needs_no_machine_code() -> None:
    """Ten operators in 502 rows: HiGHS finds and proves what heuristics miss."""
    program = """
import sys
from moirai_tf.placement import solve
from tests.placement_cases import layered
result = solve(layered(10, devices=2))
heuristics = min(makespan for _, makespan in result.baselines)
print(result.status, result.makespan_ns < heuristics, "numba" in sys.modules)
"""
    assert _answer(_python(program))[0] == "optimal True False\n"


def test_every_public_name_is_there() -> None:
    """The block for type checkers says the same as what is really looked up."""
    source = ast.parse(Path(moirai_tf.__file__).read_text(encoding="utf-8"))
    (typed,) = (node for node in source.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == moirai_tf._MODULE_OF
    for name in moirai_tf.__all__:
        assert getattr(moirai_tf, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        moirai_tf.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_functions_are_not_hidden_by_modules_of_their_names() -> None:
    program = """
import moirai_tf.optimize, moirai_tf.verify.options, moirai_tf
print(type(moirai_tf.optimize).__name__, type(moirai_tf.verify).__name__)
"""
    assert _answer(_python(program))[0] == "function function\n"


def test_clock_stands_still_while_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 s of a limit of 4 s are compiling, in two parts of which one is inside the other."""
    seconds = iter((100.0, 101.0, 111.0, 112.0, 113.0, 116.0))
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(monotonic=seconds.__next__))
    deadline = Deadline(4.0)  # at 100
    with clock.stopped():  # from 101
        with clock.stopped():
            assert deadline.elapsed_s() == 1.0
        assert deadline.elapsed_s() == 1.0
    assert deadline.elapsed_s() == 2.0  # until 111; at 112
    assert deadline.remaining_s() == 1.0  # at 113
    with pytest.raises(OutOfTimeError):
        deadline.check()  # at 116


def test_compiling_is_not_part_of_the_time(tmp_path: Path) -> None:
    """Two first uses at the same time: one compiles, the other waits and loads; both answer."""
    cache = str(tmp_path / "cache")
    together = [_python(PROGRAM, NUMBA_CACHE_DIR=cache) for _ in range(2)]
    answers = [_answer(process) for process in together]
    assert [output for output, _ in answers] == [ANSWER, ANSWER]
    assert list(Path(cache).rglob("*.nbc"))
    output, errors = _answer(_python(PROGRAM, NUMBA_CACHE_DIR=cache))
    assert (output, "compiling" in errors) == (ANSWER, False)


def test_nothing_can_be_written(tmp_path: Path) -> None:
    """Files stand where a package that is only read, and a home that is not there, have folders."""
    shutil.copytree(
        ROOT / "moirai_tf", tmp_path / "moirai_tf", ignore=shutil.ignore_patterns("__pycache__")
    )
    for folder in (tmp_path / "moirai_tf" / "placement").rglob(""):
        (folder / "__pycache__").touch()
    nowhere = str(tmp_path / "home")
    Path(nowhere).touch()
    process = _python(
        PROGRAM,
        tmp_path,
        PYTHONPATH=str(tmp_path),
        PYTHONDONTWRITEBYTECODE="1",
        HOME=nowhere,
        XDG_CACHE_HOME=nowhere,
        NUMBA_CACHE_DIR="",
    )
    output, errors = _answer(process)
    assert output == ANSWER
    assert "machine code is not kept" in errors

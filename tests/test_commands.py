"""The installed commands: exit status, output, help, and what they leave behind."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from moirai_tf.cluster import write_cluster
from moirai_tf.cost.table_files import read_table
from moirai_tf.placement import check, read_problem, read_schedule
from tests.scatter import logical_cluster

ZooDir = Callable[[str], Path]

COMMANDS = (
    "optimize", "inspect", "profile", "place", "verify", "bench", "report", "strip", "remap",
    "compare", "export_onnx", "export_serving",
)  # fmt: skip

INSTANCE = """{"name": "fork", "source": "by hand",
 "devices": [{"name": "d0", "memory": null}, {"name": "d1", "memory": null}],
 "ops": [{"name": "a", "compute": [2, 9], "memory": 1},
         {"name": "b", "compute": [8, 8], "memory": 1},
         {"name": "c", "compute": [8, 8], "memory": 1}],
 "tensors": [{"producer": "a", "consumers": ["b", "c"], "time": [[0, 3], [3, 0]]}]}
"""
"""a on d0 until 2, b there until 10; a's output is on d1 at 5, c there until 13. Both on d0: 18."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run(command: str, *flags: str) -> Done:
    """Runs a command in a process of its own, forked from one that has imported TensorFlow."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moirai_tf.passes", "tools._flags"])
    with tempfile.TemporaryDirectory() as directory:
        out, err = Path(directory, "out"), Path(directory, "err")
        process = context.Process(target=_command, args=(command, flags, out, err))
        process.start()
        process.join()
        assert process.exitcode is not None
        return Done(process.exitcode, out.read_text(), err.read_text())


def _command(command: str, flags: tuple[str, ...], out: Path, err: Path) -> None:
    for file, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = [f"moirai_{command}", *flags]
    try:
        importlib.import_module(f"tools.moirai_{command}").entry()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_the_command(command: str) -> None:
    done = run(command, "--help")
    assert f"moirai_{command} --" in done.stdout
    assert "Example:" in done.stdout
    assert "--saved_model_dir" in done.stdout or "--placed_dir" in done.stdout
    if command in ("optimize", "inspect", "profile", "place"):
        assert "--batch_size" in done.stdout
    if command in ("strip", "remap"):
        assert "--[no]overwrite" in done.stdout
        assert "--order" not in done.stdout, "nothing is rewritten there"


def test_place_solves_an_instance(tmp_path: Path) -> None:
    instance, output = tmp_path / "fork.json", tmp_path / "schedule.json"
    instance.write_text(INSTANCE)
    done = run("place", f"--instance={instance}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "makespan     13 ns (optimal)" in done.stdout
    assert "best single  18 ns (d0)" in done.stdout
    assert " ns by " not in done.stderr, "progress belongs on a terminal"
    problem = read_problem(instance)
    assert check(problem, read_schedule(problem, output)) == []


def test_place_minimises_the_objective_that_was_asked_for(tmp_path: Path) -> None:
    """Loads are 10 and 8 with the 3 of the way beside them: 10, and (10 + 13) / 2 = 11.5."""
    instance, output = tmp_path / "fork.json", tmp_path / "schedule.json"
    instance.write_text(INSTANCE)
    for objective, value in (("throughput", "10"), ("weighted", "11.5")):
        flags = (f"--instance={instance}", f"--output={output}", f"--objective={objective}")
        done = run("place", *flags)
        assert done.returncode == 0, done.stderr
        assert f"{objective:<12} {value} ns (optimal)" in done.stdout
        assert "bottleneck   10 ns" in done.stdout
        problem = read_problem(instance)
        schedule = read_schedule(problem, output)
        assert schedule.claim is not None
        assert check(problem, schedule) == []
    assert run("place", *flags, "--latency_weight=2").returncode == 1
    assert "--objective" in run("optimize", "--help").stdout


def test_place_needs_a_problem(tmp_path: Path) -> None:
    done = run("place", f"--output={tmp_path / 'schedule.json'}")
    assert done.returncode == 1
    assert "there is no problem to solve" in done.stderr
    assert "fix:" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_broken_rule_is_an_exit_status_and_no_traceback(tmp_path: Path) -> None:
    done = run("optimize", f"--saved_model_dir={tmp_path / 'missing'}")
    assert done.returncode == 1
    assert "is not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stray_argument_is_refused() -> None:
    done = run("inspect", "--saved_model_dir=x", "model")
    assert done.returncode != 0
    assert "unexpected argument 'model'" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def placed(zoo_dir: ZooDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the zoo that `profile` measured and `optimize` placed."""
    folder = tmp_path_factory.mktemp("placed")
    model, cluster, costs = zoo_dir("ensemble"), folder / "c.yaml", folder / "costs.json"
    write_cluster(logical_cluster(2), cluster)
    where = (f"--saved_model_dir={model}", f"--cluster={cluster}", "--batch_size=64")

    done = run("profile", *where, f"--output={costs}", "--repeats=3")
    assert done.returncode == 0, done.stderr
    assert read_table(costs).devices

    placed = folder / "placed"
    done = run("optimize", *where, f"--costs={costs}", f"--output_dir={placed}", "--solver=heft")
    assert done.returncode == 0, done.stderr
    assert "verified    ok" in done.stdout
    assert "where the time went" not in done.stdout
    return placed


def test_verify_and_bench_a_placed_model(placed: Path, zoo_dir: ZooDir, tmp_path: Path) -> None:
    model = zoo_dir("ensemble")
    done = run("verify", f"--saved_model_dir={model}", f"--placed_dir={placed}")
    assert done.returncode == 0, done.stderr
    assert "ok" in done.stdout

    trace = tmp_path / "trace.json"
    side_by_side = (f"--saved_model_dir={model}", f"--placed_dir={placed}")
    done = run("bench", *side_by_side, "--repeats=2", "--warmup=0", f"--trace={trace}")
    assert done.returncode == 0, done.stderr
    assert "predicted speed-up" in done.stdout
    assert "share its threads" in done.stdout
    assert f"trace: {trace}" in done.stdout
    assert json.loads(trace.read_text())["traceEvents"]


def test_export_a_placed_model(placed: Path, tmp_path: Path) -> None:
    base = tmp_path / "models" / "voter"
    done = run("export_serving", f"--placed_dir={placed}", f"--base_path={base}", "--version=3")
    assert done.returncode == 0, done.stderr
    assert f"version     {base / '3'}" in done.stdout
    assert "batches     1, 2, 4, 8, 16, 32, 64" in done.stdout

    exported = tmp_path / "exported"
    done = run("export_onnx", f"--placed_dir={placed}", f"--output_dir={exported}", "--opset=17")
    assert done.returncode == 0, done.stderr
    assert "nodes by name (100%)" in done.stdout
    assert (exported / "parts" / "part_000.onnx").is_file()


def test_remap_and_strip_a_placed_model(placed: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    swap = ("--device=/device:CPU:0=/device:CPU:1", "--device=/device:CPU:1=/device:CPU:0")
    done = run("remap", f"--placed_dir={placed}", f"--output_dir={moved}", *swap)
    assert done.returncode == 0, done.stderr

    stripped = tmp_path / "stripped"
    done = run("strip", f"--placed_dir={moved}", f"--output_dir={stripped}")
    assert done.returncode == 0, done.stderr
    assert not (stripped / "assets.extra").exists()

    done = run("strip", f"--placed_dir={moved}", f"--output_dir={stripped}")
    assert done.returncode == 1
    assert "exists and is not empty" in done.stderr


def test_inspect_dumps_and_explains(zoo_dir: ZooDir) -> None:
    model = f"--saved_model_dir={zoo_dir('lookup_table')}"
    done = run("inspect", model)
    assert done.returncode == 0, done.stderr
    assert "LookupTableFindV2(" in done.stdout
    done = run("inspect", model, "--fused")
    assert "fused operators" in done.stdout
    done = run("inspect", model, "--explain=hash_table")
    assert "GPU: no, TensorFlow has no GPU kernel for HashTableV2" in done.stdout
    done = run("inspect", model, "--explain=hashtable3.*")
    assert done.returncode == 1
    assert "'hashtable3.*' is found in the name of no operator" in done.stderr
    assert "near are 'hash_table" in done.stderr
    done = run("inspect", model, "--explain=(")
    assert done.returncode == 1
    assert "is not a regular expression" in done.stderr

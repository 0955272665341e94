"""Runs that are ended at any moment, or have no room: nothing half-written, nothing left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.verify.process import _static_findings
from tests.cost_cases import saved, spec
from tests.saved_models import digest

ROOT = Path(__file__).resolve().parents[1]
MOMENTS = 5
"""Evenly spread over a run; the last ones come when it is over."""
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = [tf.Variable(np.ones([64, 64], np.float32)) for _ in range(2)]

    @tf.function(input_signature=[spec(8, 64)])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.tanh(x @ weights[0]) + tf.sin(x @ weights[1])}

    return saved(call, tmp_path_factory.mktemp("source") / "m", *weights).path


class _Run:
    """`moirai_optimize` in a process and with a directory for temporary files of its own."""

    def __init__(
        self, source: Path, folder: Path, *flags: str, limit_bytes: int | None = None
    ) -> None:
        self.output, self.temporary = folder / "placed", folder / f"tmp{time.monotonic_ns()}"
        self.temporary.mkdir()
        command = [
            sys.executable, "-m", "tools.moirai_optimize", f"--saved_model_dir={source}",
            f"--output_dir={self.output}", f"--cluster={ROOT / 'configs' / 'two_local_cpus.yaml'}",
            "--repeats=2", "--warmup=1", "--loaders=session", "--grappler=off", "--solver=heft",
            *flags,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "TMPDIR": str(self.temporary)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=lambda: _prepared(limit_bytes),
        )  # fmt: skip

    def end(self) -> tuple[int, str]:
        """Exit status, and what it said last."""
        _, said = self.process.communicate(timeout=600)
        return self.process.returncode, said

    def alive(self) -> list[str]:
        """Processes that were started for this run and are still there."""
        mark = f"TMPDIR={self.temporary}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and mark in (entry / "environ").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
        return found


def _prepared(limit_bytes: int | None) -> None:
    """Ctrl-C works, whoever ignores it here; no file may become larger, as on a full disk."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


def _eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


def _whole(source: Path, placed: Path) -> bool:
    """Whether a placed model is complete: every change is planned, every plan is written."""
    files = {name for name in digest(source) if name != "fingerprint.pb"}
    return files <= digest(placed).keys() and not _static_findings(source, placed)


@pytest.fixture(scope="module")
def seconds(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[float]:
    """What a run takes that nobody disturbs; the first may have to compile."""
    folder = tmp_path_factory.mktemp("calm")
    assert _Run(source, folder).end()[0] == 0
    start = time.monotonic()
    run = _Run(source, folder, "--overwrite")
    assert run.end()[0] == 0
    yield time.monotonic() - start
    assert list(run.temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signal_at_any_moment(
    number: signal.Signals, source: Path, seconds: float, tmp_path: Path
) -> None:
    """The output is absent or whole. Only SIGKILL can leave files, and no process, behind."""
    before = digest(source)
    for moment in range(1, MOMENTS + 1):
        run = _Run(source, tmp_path, "--overwrite")
        old = digest(run.output) if run.output.exists() else {}
        time.sleep(seconds * moment / MOMENTS)
        run.process.send_signal(number)
        status, said = run.end()
        assert "Traceback" not in said
        assert status in (0, -number, 128 + number) or number == signal.SIGINT, said
        assert _eventually(lambda run=run: not run.alive())  # type: ignore[misc]
        assert digest(source) == before
        if run.output.exists() and digest(run.output) != old:
            assert _whole(source, run.output)
        if number != signal.SIGKILL:
            assert list(run.temporary.iterdir()) == []
            assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == set()
    assert _Run(source, tmp_path, "--overwrite").end()[0] == 0
    assert _whole(source, tmp_path / "placed")
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith("tmp")] == ["placed"]


@pytest.fixture(scope="module")
def costs(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cost table, so that profiling is not what fails."""
    table = tmp_path_factory.mktemp("costs") / "costs.json"
    command = [
        sys.executable, "-m", "tools.moirai_profile", f"--saved_model_dir={source}",
        f"--cluster={ROOT / 'configs' / 'two_local_cpus.yaml'}", f"--output={table}",
        "--repeats=2", "--warmup=1",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return table


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "full later", "no directory", "a file in the way"])
def test_output_without_room(kind: str, source: Path, costs: Path, tmp_path: Path) -> None:
    """One message, whatever cannot be written; and nothing of what could.

    TensorFlow cannot even be imported where not one byte can be written.
    """
    limits = [200, 4_000] if kind.startswith("full") else [None]
    for limit in limits:
        folder = tmp_path / str(limit)
        folder.mkdir()
        flags = [f"--costs={costs}"] if kind == "full later" else []
        if kind == "no directory":
            flags = ["--output_dir=/proc/placed"]
        if kind == "a file in the way":
            (folder / "file").write_text("")
            flags = [f"--output_dir={folder / 'file' / 'placed'}"]
        run = _Run(source, folder, *flags, limit_bytes=limit)
        status, said = run.end()
        assert status == 1, said
        assert [line[:7] for line in said.splitlines() if "error: " in line[:7]] == ["error: "]
        assert "\n  fix: " in said
        assert "space" in said or not kind.startswith("full")
        assert "Traceback" not in said
        assert not run.output.exists()
        assert list(run.temporary.iterdir()) == []
        assert [p for p in folder.iterdir() if p.name.startswith(".")] == []
        assert run.alive() == []


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--overwrite",)], ids=["new", "overwrite"])
def test_two_runs_to_one_output(flags: tuple[str, ...], source: Path, tmp_path: Path) -> None:
    """At least one is done; the other too, or it says that the output is there."""
    runs = [_Run(source, tmp_path, *flags) for _ in range(2)]
    ends = [run.end() for run in runs]
    assert 0 in [status for status, _ in ends]
    for status, said in ends:
        assert status == 0 or "exists and is not empty" in said or "put in its place" in said
        assert "Traceback" not in said
    assert _whole(source, runs[0].output)
    assert read_plan(runs[0].output).placement
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith("tmp")] == ["placed"]


def test_directories_of_a_killed_run_are_removed_by_the_next(tmp_path: Path) -> None:
    """Those of a run that is still going are not."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from moirai_tf.model.output import stage\n"
        "staged = stage(Path(sys.argv[1]), overwrite=False)\n"
        "(staged.directory / 'half').write_text('')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    from moirai_tf.model.output import discard, stage

    for _ in range(2):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], cwd=ROOT, check=False)
        assert len(list(tmp_path.iterdir())) == 1
    first = stage(tmp_path / "out", overwrite=False)
    assert list(tmp_path.iterdir()) == [first.directory]
    second = stage(tmp_path / "out", overwrite=False)
    other = stage(tmp_path / "other", overwrite=False)
    assert {first.directory, second.directory, other.directory} == set(tmp_path.iterdir())
    for staged in (first, second, other):
        discard(staged)
    assert list(tmp_path.iterdir()) == []

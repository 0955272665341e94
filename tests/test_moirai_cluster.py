"""The command `moirai_cluster`: real servers, held until a signal, and nothing of them left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from moirai_tf.cluster import read_cluster
from tests.local_clusters import (
    DEVICES,
    LIMITED,
    SHARES,
    TIMEOUT_S,
    guard_of,
    line_of,
    nothing_left,
    process,
)

NOHUP = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def _command(output: Path, *more: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    return process(*_arguments(output), *more)


def _arguments(output: Path) -> list[str]:
    shares = [f"--shares={share}" for share in SHARES]
    return ["-m", "tools.moirai_cluster", *shares, f"--output={output}"]


def test_the_command_holds_a_cluster_until_ctrl_c(tmp_path: Path) -> None:
    output = tmp_path / "cluster.yaml"
    memory = "100 MB" if LIMITED else "unlimited"
    with _command(output, "--memory=unlimited", f"--memory={memory}") as command:
        lines = [line_of(command) for _ in SHARES]
        cluster = read_cluster(output)
        capacities = [device.memory_bytes for device in cluster.devices]
        assert capacities == [None, 10**8 if LIMITED else None]
        for line, device in zip(lines, cluster.devices, strict=True):
            assert line.startswith(f"{device.name} {device.address}: ")
        pids = [int(line.split()[-1]) for line in lines]
        guard = guard_of(pids[0])
        os.kill(pids[1], signal.SIGKILL)
        assert command.stderr is not None
        assert any(line.startswith(f"{DEVICES[1]} is gone") for line in command.stderr)
        command.send_signal(signal.SIGINT)
        assert command.wait(TIMEOUT_S) == 0
        assert nothing_left(pids, guard)
    assert [*tmp_path.iterdir()] == []


def test_the_command_outlives_its_terminal_under_nohup(tmp_path: Path) -> None:
    """What is ignored at its start stays ignored; then SIGTERM ends it."""
    with process("-c", NOHUP, *_arguments(tmp_path / "cluster.yaml")) as holding:
        pids = [int(line_of(holding).split()[-1]) for _ in SHARES]
        guard = guard_of(pids[0])
        holding.send_signal(signal.SIGHUP)
        os.kill(pids[1], signal.SIGKILL)
        assert holding.stderr is not None
        assert any(line.startswith(f"{DEVICES[1]} is gone") for line in holding.stderr)
        holding.send_signal(signal.SIGTERM)
        assert holding.wait(TIMEOUT_S) == 0
        assert nothing_left(pids, guard)
    assert [*tmp_path.iterdir()] == []


def test_the_command_ends_with_the_command_that_it_runs(tmp_path: Path) -> None:
    output = tmp_path / "cluster.yaml"
    with _command(output, '--run=cat "$MOIRAI_CLUSTER"; exit 7') as command:
        stdout, _ = command.communicate(timeout=TIMEOUT_S)
        assert command.returncode == 7
    for name in DEVICES:
        assert f"name: {name}\n" in stdout
    assert [*tmp_path.iterdir()] == []


def test_the_command_leaves_the_files_of_others_alone(tmp_path: Path) -> None:
    output = tmp_path / "cluster.yaml"
    output.write_text("another's")
    with _command(output) as command:
        _, stderr = command.communicate(timeout=TIMEOUT_S)
        assert command.returncode == 1
    assert f"error: the output {output} exists" in stderr
    assert output.read_text() == "another's"


def test_the_command_explains_itself() -> None:
    with process("-m", "tools.moirai_cluster", "--help") as command:
        stdout, _ = command.communicate(timeout=TIMEOUT_S)
    for text in ("Example:", "--output:", "--shares:", "--run:"):
        assert text in stdout

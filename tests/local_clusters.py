"""What tests of local clusters share: shares that the system allows, and processes to look at."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from moirai_tf.bench.guard import remove_groups
from moirai_tf.bench.worker_limits import find_controllers, make_group
from moirai_tf.errors import MoiraiError

ROOT = Path(__file__).resolve().parent.parent
DEVICES = [f"/job:worker/replica:0/task:{task}/device:CPU:0" for task in (0, 1)]
TIMEOUT_S = 60.0


def _limits_allowed() -> bool:
    try:
        for controller in find_controllers(["cpu", "memory"]):
            try:
                make_group(controller, os.getpid(), 0)
            finally:
                remove_groups([controller.prefix], os.getpid())
    except MoiraiError:
        return False
    return True


LIMITED = _limits_allowed()
SHARES = [0.6, 0.4] if LIMITED else [1.0, 1.0]
MEMORY = [None, 200_000_000 if LIMITED else None]


def status(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{key}:"))


def guard_of(pid: int) -> int:
    return int(status(pid, "PPid"))


def gone(pid: int) -> bool:
    try:
        return status(pid, "State").startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def groups_of(guard: int) -> list[Path]:
    if not LIMITED:
        return []
    folders = {controller.directory for controller in find_controllers(["cpu", "memory"])}
    return [group for folder in folders for group in folder.glob(f"moirai_{guard}_*")]


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def nothing_left(pids: list[int], guard: int) -> bool:
    return eventually(lambda: all(map(gone, [*pids, guard])) and not groups_of(guard))


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process, killed at the end if it is still there."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()

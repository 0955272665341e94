"""The parent of a local cluster's workers, which outlives its user just long enough to clean up.

Started by its path, with the standard library alone: it must be there at once and need no memory.
Its user is the process that started it. The guard reads one line of JSON from its standard input,
starts the workers, reports in lines of JSON, and waits: for the end of its input, SIGTERM or the
death of its user. Then it kills the workers and removes their control groups.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LAST_BYTES = 2000
_REMOVAL_TIMEOUT_S = 5.0


class _WorkerProcess:
    """A worker's process and what it says until it is ready."""

    def __init__(self, command: list[str], spec: dict[str, Any]) -> None:
        # A file without a name: nobody has to read it in time, and nobody has to remove it.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [*command, json.dumps({**spec, "guard": os.getpid()})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            env={**os.environ, **spec["environment"]},
        )
        assert self._process.stdout is not None
        self.report = self._process.stdout
        self.pid = self._process.pid

    def ready(self) -> bool:
        """Whether it reports to be ready; otherwise it is dying. Blocks until either."""
        return self.report.readline() == b"ready\n"

    def obituary(self, task: int) -> dict[str, Any]:
        """How it ended, of its own accord."""
        status = self._process.wait()
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _LAST_BYTES))
        text = self._stderr.read().decode(errors="replace")
        return {"died": task, "status": status, "stderr": text}

    def kill(self) -> None:
        """Ends it, running or stopped, and waits for that."""
        self._process.kill()
        self._process.wait()


def remove_groups(prefixes: Sequence[str], guard: int) -> None:
    """Removes the control groups of a guard, waiting for processes in them that are dying.

    Args:
      prefixes: path of every group up to the guard's process id.
      guard: the guard's process id.
    """
    deadline = time.monotonic() + _REMOVAL_TIMEOUT_S
    for prefix in map(Path, prefixes):
        for directory in prefix.parent.glob(f"{prefix.name}{guard}_*"):
            while not _removed(directory) and time.monotonic() < deadline:
                time.sleep(0.01)


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _watch(user: int, stop: int, workers: list[_WorkerProcess]) -> None:
    """Reports workers as they get ready; returns when they are not needed any more."""
    waiting = {worker.report.fileno(): task for task, worker in enumerate(workers)}
    poll = select.poll()
    for descriptor in (0, stop, *waiting):
        poll.register(descriptor, select.POLLIN)
    # A child that the user forked may hold the other end of the input, so look for the user too.
    while os.getppid() == user:
        for descriptor, _ in poll.poll(1000):
            if descriptor not in waiting:
                return
            poll.unregister(descriptor)
            task = waiting.pop(descriptor)
            if not workers[task].ready():
                _say(workers[task].obituary(task))
                return
            if not waiting:
                _say({"ready": True})


def _say(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _stop_pipe() -> int:
    """A descriptor that becomes readable at SIGTERM; other signals of terminals are ignored."""
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return readable


def main(user: int, prefixes: Sequence[str]) -> None:
    """Guards the workers of one cluster.

    Args:
      user: process id of the user.
      prefixes: as of `remove_groups`.
    """
    workers: list[_WorkerProcess] = []
    try:
        line = sys.stdin.readline()
        if not line:
            return
        # Until now SIGTERM just ended this process.
        stop = _stop_pipe()
        job = json.loads(line)
        for spec in job["workers"]:
            workers.append(_WorkerProcess(job["command"], spec))
        _say({"pids": [worker.pid for worker in workers]})
        _watch(user, stop, workers)
    except BrokenPipeError:  # the user is gone
        pass
    finally:
        for worker in workers:
            worker.kill()
        remove_groups(prefixes, os.getpid())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

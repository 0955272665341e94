"""Starts child processes at once: they are forked from one that has imported TensorFlow already.

That process, the nursery, has no devices and no threads of TensorFlow, so each of its forks is as
good as a fresh start. Every child has an attendant, a fork that waits for it: it says how the child
ended, and ends it, with its files, when the process that wanted it gives up or is gone.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

_MOST_BYTES = 1 << 16
"""Of a request, which holds a path and names."""
_LAST_BYTES = 4000
_REMOVALS = 3
"""How often the files of a child are removed: its own children may write more of them meanwhile."""
_MOST_PROCESSES = 3
"""Each takes a few hundred MB."""
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


class Nursery:
    """Processes that fork children: another one where they are to inherit other things."""

    def __init__(self, ignored: Sequence[str] = ()) -> None:
        self._ignored = ignored
        self._lock = threading.Lock()
        self._processes: dict[Hashable, NurseryProcess] = {}

    def start(
        self, environment: Mapping[str, str], request: Mapping[str, Any], files: Sequence[int]
    ) -> tuple[int, NurseryProcess]:
        """Starts a child that runs `main` of the module that is asked for.

        Args:
          environment: all variables of the child.
          request: `module`, whose `main(work, telling)` is called; `preload`, a module to be
            imported before the fork; `work`, a directory that goes with the child.
          files: descriptors for the child: closed when it is to end, `telling`, standard output.

        Returns:
          A descriptor to read from: a line when the child has started, its exit code in the end;
          and the process, which died if there is no line.
        """
        reading, status = os.pipe()
        with self._lock:
            inherited = _inherited({**environment, **dict.fromkeys(self._ignored, "")})
            process = self._processes.pop(inherited, None)
            if process is None or not process.alive:
                process = NurseryProcess(environment)
            self._processes[inherited] = process  # the last one, so that it stays longest
            if len(self._processes) > _MOST_PROCESSES:
                self._processes.pop(next(iter(self._processes))).close()
            process.send(json.dumps(request).encode(), [*files, status])
        os.close(status)
        return reading, process

    def close(self) -> None:
        """Ends the processes; their children go on."""
        while self._processes:
            self._processes.popitem()[1].close()


class NurseryProcess:
    """The process as its user sees it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                env=dict(environment), pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=self._stderr,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether it can still start a child."""
        return self._process.poll() is None

    def send(self, message: bytes, files: Sequence[int]) -> None:
        """Asks for a child; if the process is dying, nobody will answer."""
        with suppress(BrokenPipeError):
            socket.send_fds(self._control, [message], files)

    def close(self) -> None:
        """Ends it at once, though it may be at its imports."""
        self._control.close()
        self._process.kill()
        self._process.wait()

    def obituary(self) -> tuple[int, bytes]:
        """Exit code and last words of a process that died."""
        code, size = self._process.wait(), self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _LAST_BYTES))
        return code, self._stderr.read()


def _inherited(environment: Mapping[str, str]) -> Hashable:
    """What a child has from its parent: one that was started otherwise is of no use."""
    cores = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    limits = tuple(resource.getrlimit(limit) for limit in _LIMITS)
    user = os.geteuid(), os.getegid()
    return tuple(sorted(environment.items())), os.getcwd(), user, cores, limits


_open: ContextVar[Nursery | None] = ContextVar("nursery", default=None)


@contextmanager
def nursery(ignored: Sequence[str] = ()) -> Iterator[Nursery]:
    """Inside, children share a nursery, which is started for the first and ends with the block.

    Args:
      ignored: variables that change while children may still share it.
    """
    known = _open.get()
    if known is not None:
        yield known
        return
    own = Nursery(ignored)
    token = _open.set(own)
    try:
        yield own
    finally:
        _open.reset(token)
        own.close()


def _nurse(control: socket.socket) -> NoReturn:
    """The nursery's part: an attendant with a child for every request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the user and the children
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for attendants
    importlib.import_module("tensorflow")
    while True:
        message, files, _, _ = socket.recv_fds(control, _MOST_BYTES, 4)
        if not message:
            os._exit(0)
        request = json.loads(message)
        importlib.import_module(request["preload"])
        if os.fork() == 0:
            control.close()
            _attend(request, *files)
        for file in files:
            os.close(file)


def _attend(request: dict[str, Any], wanted: int, telling: int, said: int, status: int) -> NoReturn:
    """The attendant's part."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.close(wanted)
        os.close(status)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ["TMPDIR"], tempfile.tempdir = request["work"], None
        importlib.import_module(request["module"]).main(Path(request["work"]), telling)
        os._exit(0)
    os.close(telling)
    os.close(said)
    ended, unwanted = threading.Event(), threading.Event()

    def end_if_unwanted() -> None:
        os.read(wanted, 1)
        unwanted.set()
        if not ended.is_set():
            os.kill(child, signal.SIGKILL)

    threading.Thread(target=end_if_unwanted, daemon=True).start()
    try:
        os.write(status, b"\n")
        _, code = os.waitpid(child, 0)
        ended.set()
        if not unwanted.is_set():
            os.write(status, str(os.waitstatus_to_exitcode(code)).encode())
            os._exit(0)
    except BrokenPipeError:
        os.kill(child, signal.SIGKILL)
    for _ in range(_REMOVALS):
        shutil.rmtree(request["work"], ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    _nurse(socket.socket(fileno=int(sys.argv[1])))

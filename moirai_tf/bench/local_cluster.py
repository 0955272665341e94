"""A cluster of TensorFlow servers on this machine whose processors and memory are really unequal.

    with local_cluster([1.0, 0.5]) as workers:
        ...  # workers.cluster says where they are

Each worker is a process pinned to one core. A share below 1 is a quota of the kernel's (a control
group), so the worker is slower as a slower device is: in everything that it does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moirai_tf.bench.guard import remove_groups
from moirai_tf.bench.worker_limits import (
    MIN_SHARE,
    Controller,
    Group,
    choose_cores,
    find_controllers,
    make_group,
    remove_stale,
)
from moirai_tf.cluster import Cluster, Device, Link
from moirai_tf.errors import MoiraiError
from moirai_tf.model.op_libraries import is_file, op_libraries
from moirai_tf.options import check_seconds
from moirai_tf.progress import stage

_HERE = Path(__file__).resolve().parent
_LATENCY_NS = 200_000
_BANDWIDTH_BYTES_PER_S = 10**9
_STOP_TIMEOUT_S = 30.0
_LAST_LINES = 3


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster. Its workers exist until the block of `local_cluster` ends."""

    cluster: Cluster
    """Device i is the CPU of task i, with its address; the client is task 0. The links are rough
    values for one machine, to be replaced by measured ones."""
    pids: tuple[int, ...]
    """Process of every task."""
    cores: tuple[int, ...]
    """Core of every task."""
    pidfds: tuple[int, ...]
    """File descriptor of every process: unlike an id it never stands for another process."""

    def alive(self, task: int) -> bool:
        """Whether a worker's process exists, running or paused."""
        return not _readable(self.pidfds[task], 0.0)

    def kill(self, task: int) -> None:
        """Ends a worker at once, as a machine that loses power; returns when it is gone."""
        self._signal(task, signal.SIGKILL)
        _readable(self.pidfds[task], None)

    def pause(self, task: int) -> None:
        """Stops a worker, as a machine that hangs: its connections stay open, nothing answers."""
        self._signal(task, signal.SIGSTOP)

    def resume(self, task: int) -> None:
        """Lets a paused worker go on."""
        self._signal(task, signal.SIGCONT)

    def _signal(self, task: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it is dead already
            signal.pidfd_send_signal(self.pidfds[task], number)


@contextlib.contextmanager
def local_cluster(
    shares: Sequence[float],
    *,
    cores: Sequence[int] | None = None,
    memory_bytes: Sequence[int | None] | None = None,
    threads: int = 1,
    startup_timeout_s: float = 120.0,
) -> Iterator[LocalCluster]:
    """Starts one TensorFlow server per share; they and all they need are gone after the block.

    They also go if this process dies, by whatever signal: a guard process sees to it. They have the
    op libraries that this process has.

    Args:
      shares: the part of one core that each worker gets, above 0 and at most 1.
      cores: the core of each worker; by default this process's cores are loaded equally.
      memory_bytes: capacity of each worker's device, None for no limit. The kernel ends a worker
        that takes more. Its process with TensorFlow (300 to 400 MB) lives inside the same limit,
        so the kernel's limit is the capacity + what the worker holds when it is ready + 128 MiB.
      threads: threads of a worker within an operator; seven more than that run operators, send
        tensors and answer.
      startup_timeout_s: time for all workers to get ready.

    Raises:
      MoiraiError: a share, core or capacity is impossible, the system does not allow its limit,
        or a worker does not start.
    """
    check_seconds("startup_timeout_s", startup_timeout_s)
    memory = tuple(memory_bytes) if memory_bytes is not None else (None,) * len(shares)
    _check(shares, memory, threads)
    chosen = choose_cores(shares, cores)
    quotas = tuple(share if share < 1 else None for share in shares)
    with contextlib.ExitStack() as stack:
        addresses = [f"localhost:{stack.enter_context(reserved_port())}" for _ in shares]
        guard, groups = _guarded_groups({"cpu": quotas, "memory": memory}, stack)
        every = {"addresses": addresses, "threads": threads, "environment": {}}
        specs = [
            {**every, "task": task, "core": core, "cgroups": _directories(groups, task)}
            for task, core in enumerate(chosen)
        ]
        with stage(f"wait for {len(specs)} workers to get ready"):
            pids, pidfds = start_workers(guard, specs, startup_timeout_s, stack)
        for group, limit in groups:  # only now: under a small share the start would take minutes
            group.limit(limit)
        yield LocalCluster(_cluster(addresses, memory), pids, chosen, pidfds)


def _check(shares: Sequence[float], memory: Sequence[int | None], threads: int) -> None:
    if not hasattr(os, "pidfd_open"):
        raise _not_started("this system is not Linux 5.3 or later", "run it on such a system")
    if not shares:
        raise _fault("there are no shares")
    for share in shares:
        if not MIN_SHARE <= share <= 1:
            raise _fault(f"the share {share:g} of a core is not between {MIN_SHARE:g} and 1")
    if len(memory) != len(shares):
        raise _fault(f"{len(memory)} capacities of memory are given for {len(shares)} shares")
    if any(nbytes is not None and nbytes <= 0 for nbytes in memory):
        raise _fault(f"the capacities of memory {[*memory]} are not all positive")
    if threads < 1:
        raise _fault(f"{threads} threads are none")


def _guarded_groups(
    limits: Mapping[str, Sequence[float | None]], stack: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], list[tuple[Group, float]]]:
    """A guard that the stack ends, and the control groups of tasks that have a limit, with it.

    Args:
      limits: for each kind of controller one per task, None for none.
      stack: ends the guard.
    """
    controllers = find_controllers([name for name, of in limits.items() if set(of) != {None}])
    guard = stack.enter_context(guarded(controllers))
    return guard, [
        (make_group(controller, guard.pid, task), limit)
        for controller in controllers
        for task, limit in enumerate(limits[controller.name])
        if limit is not None
    ]


def _directories(groups: Sequence[tuple[Group, float]], task: int) -> list[str]:
    return [str(group.directory) for group, _ in groups if group.task == task]


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A free port that stays one: only a server that shares ports can take it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def guarded(controllers: Sequence[Controller]) -> Iterator[subprocess.Popen[bytes]]:
    """A guard without workers yet; at the end they and their groups under controllers are gone.

    They also go if this process dies, by whatever signal.
    """
    for controller in controllers:
        remove_stale(controller)
    prefixes = [controller.prefix for controller in controllers]
    process = subprocess.Popen(
        [sys.executable, str(_HERE / "guard.py"), str(os.getpid()), *prefixes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=_environment(),
        start_new_session=True,  # Ctrl-C is for the user, who then ends the guard
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()  # and its workers die with it
            remove_groups(prefixes, process.pid)


def _environment() -> dict[str, str]:
    """Workers are quiet, see no GPU, may take the ports that are reserved for them, and reach each
    other without a proxy, which would not answer for `localhost`.
    """
    return {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_GRPC_REUSE_PORT": "1",
        "no_grpc_proxy": "localhost",
    }


def start_workers(
    guard: subprocess.Popen[bytes],
    specs: Sequence[dict[str, Any]],
    timeout_s: float,
    stack: contextlib.ExitStack,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Process ids and descriptors of ready workers; the stack will close the descriptors.

    Args:
      guard: of `guarded`.
      specs: as `worker.main` takes them, without `guard` and without the op libraries, which are
        those of this process.
      timeout_s: time for all workers to get ready.
      stack: closes the descriptors when it ends.

    Raises:
      MoiraiError: a worker died, or was not ready in time.
    """
    libraries = op_libraries()
    ops = {
        "op_files": [*libraries.files, *filter(is_file, libraries.named)],
        "op_modules": [name for name in libraries.named if not is_file(name)],
    }
    command = [sys.executable, str(_HERE / "worker.py")]
    job = {"command": command, "workers": [{**ops, **spec} for spec in specs]}
    assert guard.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # reading will tell
        guard.stdin.write(json.dumps(job).encode() + b"\n")
    deadline = time.monotonic() + timeout_s
    pids = _report(guard, deadline)["pids"]
    pidfds = []
    for pid in pids:
        pidfds.append(os.pidfd_open(pid))
        stack.callback(os.close, pidfds[-1])
    _report(guard, deadline)
    return tuple(pids), tuple(pidfds)


def _report(guard: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
    """The guard's next line.

    Raises:
      MoiraiError: it says that a worker died, or nothing in time.
    """
    assert guard.stdout is not None
    if not _readable(guard.stdout.fileno(), max(0.0, deadline - time.monotonic())):
        raise _not_started("the workers were not ready in time", "allow more time")
    line = guard.stdout.readline()
    if not line:
        raise _not_started("the process that guards the workers died", "free memory")
    report: dict[str, Any] = json.loads(line)
    if "died" in report:
        lines = [line.strip() for line in report["stderr"].splitlines()]
        last = " | ".join([line for line in lines if line.strip("^~")][-_LAST_LINES:])
        raise _not_started(
            f"task {report['died']} died with code {report['status']}: {last or 'it said nothing'}",
            "see what it says; code -9 without a word is too little memory",
        )
    return report


def _readable(descriptor: int, timeout_s: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


def _cluster(addresses: Sequence[str], memory: Sequence[int | None]) -> Cluster:
    devices = tuple(
        Device(
            f"/job:worker/replica:0/task:{task}/device:CPU:0",
            "CPU",
            memory_bytes=nbytes,
            address=address,
        )
        for task, (address, nbytes) in enumerate(zip(addresses, memory, strict=True))
    )
    links = tuple(
        Link(source.name, target.name, _LATENCY_NS, _BANDWIDTH_BYTES_PER_S)
        for source, target in itertools.permutations(devices, 2)
    )
    return Cluster("local", devices, links)


def _fault(what: str) -> MoiraiError:
    return MoiraiError(
        what,
        why="each worker of a local cluster is one core, or a share of it, with its own memory",
        fix="give every worker a share up to 1 and, if any, a positive capacity of memory",
    )


def _not_started(what: str, fix: str) -> MoiraiError:
    return MoiraiError(
        f"the local cluster did not start: {what}",
        why="a session waits for ever for a worker that does not answer",
        fix=fix,
    )

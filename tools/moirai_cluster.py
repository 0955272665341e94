"""Describes this machine as a cluster, or runs a cluster of unequal TensorFlow servers on it.

With --describe it writes a cluster file of this machine's CPU and GPUs: their models, the memory
that TensorFlow may use, and the links between them as measured now.

With --shares it starts servers to try placed models on. Each worker is a process pinned to one core
and limited to a share of it. The cluster file is there while they run; Ctrl-C, SIGTERM or a
terminal that closes ends them, the last not under nohup.

Example:
  moirai_cluster --describe --output=this_machine.yaml
  moirai_cluster --shares=1.0 --shares=0.5 --output=cluster.yaml
  moirai_cluster --shares=1.0 --shares=0.5 --output=cluster.yaml --run='python infer.py'
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from moirai_tf.bench.local_cluster import LocalCluster, local_cluster
from moirai_tf.cluster import cluster_to_yaml, units
from moirai_tf.errors import MoiraiError
from moirai_tf.machine import this_machine
from moirai_tf.model.options import OpLibraryOptions

from . import _flags

_SHARES = flags.DEFINE_multi_float(
    "shares", None, "part of one core that a worker gets, up to 1; once per worker"
)
_DESCRIBE = flags.DEFINE_bool(
    "describe", False, "write a cluster file of this machine's CPU and GPUs, links measured"
)
_OUTPUT = flags.DEFINE_string("output", None, "cluster file to write; it must not exist")
_CORES = flags.DEFINE_multi_integer(
    "cores", None, "core of a worker, once per worker; by default the cores are loaded equally"
)
_MEMORY = flags.DEFINE_multi_string(
    "memory", None, "capacity of a worker's device, such as '2 GB', or 'unlimited'; once per worker"
)
_THREADS = flags.DEFINE_integer("threads", 1, "threads of a worker within an operator")
_STARTUP_TIMEOUT_S = flags.DEFINE_float(
    "startup_timeout_s", 120.0, "seconds for all workers to get ready"
)
_RUN = flags.DEFINE_string(
    "run", None, "shell command to run with MOIRAI_CLUSTER=<output>; the cluster ends with it"
)
flags.mark_flag_as_required("output")
flags.register_validator(
    "shares",
    lambda value: bool(value) != _DESCRIBE.value,
    message="give --shares of workers to start, or --describe",
)

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)
_ENDING = (signal.SIGINT, *_PASSED_ON)

_flags.define(OpLibraryOptions)


def main() -> int:
    """Describes this machine, or starts the cluster and holds it."""
    output = Path(_OUTPUT.value).resolve()
    if _DESCRIBE.value:
        return _describe(output)
    signal.signal(signal.SIGINT, _interrupt)
    _flags.handle(_PASSED_ON, _interrupt)
    memory = None if _MEMORY.value is None else [_capacity(text) for text in _MEMORY.value]
    try:
        _check_free(output)
        with (
            local_cluster(
                _SHARES.value,
                cores=_CORES.value,
                memory_bytes=memory,
                threads=_THREADS.value,
                startup_timeout_s=_STARTUP_TIMEOUT_S.value,
            ) as workers,
            _published(cluster_to_yaml(workers.cluster), output),
        ):
            _show(workers, _SHARES.value)
            return _hold(workers) if _RUN.value is None else _run(_RUN.value, output)
    except KeyboardInterrupt:  # before there was a cluster
        return 128 + signal.SIGINT


def _describe(output: Path) -> int:
    _check_free(output)
    cluster = this_machine(links=True)
    _write_whole(cluster_to_yaml(cluster), output)
    lines = []
    for device in cluster.devices:
        memory = "" if device.memory_bytes is None else f", {device.memory_bytes / 1e6:.0f} MB"
        lines.append(f"{device.name}  {device.model or device.type}{memory}")
    facts = {"devices": cluster.devices, "links": cluster.links, "output": output}
    _flags.tell("\n".join([*lines, str(output)]), facts)
    return 0


def _interrupt(*_: object) -> None:
    """The first signal ends the command; more of them must not disturb its cleaning up."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _show(workers: LocalCluster, shares: Sequence[float]) -> None:
    known = [
        {
            "device": device.name,
            "address": device.address,
            "share": share,
            "core": core,
            "process": pid,
        }
        for device, share, core, pid in zip(
            workers.cluster.devices, shares, workers.cores, workers.pids, strict=True
        )
    ]
    lines = "{device} {address}: {share:g} of core {core}, process {process}"
    _flags.tell("\n".join(lines.format(**worker) for worker in known), {"workers": known})


def _hold(workers: LocalCluster) -> int:
    """Waits for a signal, and tells of workers that die meanwhile.

    Raises:
      MoiraiError: no worker is left.
    """
    alive = {pidfd: task for task, pidfd in enumerate(workers.pidfds)}
    poll = select.poll()
    for pidfd in alive:
        poll.register(pidfd, select.POLLIN)
    with contextlib.suppress(KeyboardInterrupt):
        while alive:
            for pidfd, _ in poll.poll():
                poll.unregister(pidfd)
                task = alive.pop(pidfd)
                name = workers.cluster.devices[task].name
                print(f"{name} is gone: process {workers.pids[task]} died", file=sys.stderr)
        raise MoiraiError(
            "every worker has died",
            why="a cluster without workers answers nobody",
            fix="start it again, with more memory if the kernel ended the workers for want of it",
        )
    return 0


def _run(command: str, output: Path) -> int:
    """The status of a shell command. Ctrl-C reaches it from the terminal; the rest is passed on."""
    signal.signal(signal.SIGINT, lambda *_: None)
    environment = {**os.environ, "MOIRAI_CLUSTER": str(output)}
    process = subprocess.Popen(command, shell=True, env=environment, stderr=sys.stderr)
    _flags.handle(_PASSED_ON, lambda number, _: process.send_signal(number))
    status = process.wait()
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _published(text: str, output: Path) -> Iterator[None]:
    """A file that appears whole, and goes again unless somebody else has replaced it."""
    ours = _write_whole(text, output)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(output), ours):
                output.unlink()


def _write_whole(text: str, output: Path) -> os.stat_result:
    """Writes a new file that is never seen in part; says which file it is."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=output.parent, prefix=f".{output.name}.") as file:
            file.write(text)
            file.flush()
            os.chmod(file.name, 0o644)
            os.link(file.name, output)
            return os.fstat(file.fileno())
    except OSError as error:
        _check_free(output)
        raise MoiraiError(
            f"{output} cannot be written: {error.strerror}",
            why="the cluster file says which devices there are, and where",
            fix="choose an output in a directory that you can write",
        ) from error


def _check_free(output: Path) -> None:
    if os.path.lexists(output):
        raise MoiraiError(
            f"the output {output} exists",
            why="it may describe a cluster that is running",
            fix="choose another file, or remove this one",
        )


def _capacity(text: str) -> int | None:
    if text == "unlimited":
        return None
    try:
        return units.parse(text, units.BYTES)
    except ValueError as error:
        raise MoiraiError(
            f"--memory: {error}",
            why="it is the memory of a worker's device",
            fix="write --memory='2 GB' or --memory=unlimited, once per worker",
        ) from error


def entry() -> None:
    """The command `moirai_cluster`."""
    _flags.run(main, patient=True)


if __name__ == "__main__":
    entry()

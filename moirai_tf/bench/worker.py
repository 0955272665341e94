"""One TensorFlow server on one core; the guard starts this file by its path.

It imports nothing of moirai_tf: the package imports TensorFlow, whose threads would then not be
pinned.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import struct
import sys
import threading
import time
from typing import Any

_PR_SET_PDEATHSIG = 1
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}.get(os.uname().machine, -1)
"""Number of the system call, for which the C library has no function."""
_SLICE_NS = 100_000
_TURN_S = 0.0003
_COMPUTE_THREADS = "tf_Compute"
_MORE_NICE = 5
_MORE_THREADS = 7
"""The pool that runs operators also sends tensors and answers other workers, first come, first
served. With few threads a tensor waits until whole branches that became ready with it are done."""


def main(spec: dict[str, Any]) -> None:
    """Serves until it is killed.

    Args:
      spec: `guard` (its process id), `core` (None for all, as they are), `cgroups` (directories to
        join), `addresses` of all workers, `task` (which of them this is), `threads` of either of
        TensorFlow's pools, `environment` (more variables, which it was started with), `op_files`
        (shared objects that define ops) and `op_modules` (modules that do).
    """
    _die_with(spec["guard"])
    if spec["core"] is not None:
        os.sched_setaffinity(0, {spec["core"]})
        _answer_soon()
    for directory in spec["cgroups"]:
        _join(directory)
    # What TensorFlow prints must neither be taken for a report nor fill the guard's pipe.
    report = os.dup(1)
    os.dup2(2, 1)
    server = _server(spec)
    if spec["core"] is not None:
        _compute_after_messages()
        threading.Thread(target=_take_turns, daemon=True).start()
    os.write(report, b"ready\n")
    os.close(report)
    server.join()


def _answer_soon() -> None:
    """Lets threads that wake up interrupt those that compute after a tenth of a millisecond.

    With slices of some 3 ms, the default, they would wait for the rest of one, which no device with
    a network card of its own does. Linux heeds this from 6.12 on.
    """
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, _niceness(), 0, _SLICE_NS, 0, 0)
    ctypes.CDLL(None).syscall(_SCHED_SETATTR, 0, attributes, 0)


def _niceness() -> int:
    """That of this thread, which the command that started it may have raised."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def _compute_after_messages() -> None:
    """Puts the threads that run operators behind those that receive and send."""
    niceness = _niceness() + _MORE_NICE
    for thread in os.listdir("/proc/self/task"):
        with (
            contextlib.suppress(OSError),  # it has ended meanwhile
            open(f"/proc/self/task/{thread}/comm", encoding="utf-8") as file,
        ):
            if file.read().startswith(_COMPUTE_THREADS):
                os.setpriority(os.PRIO_PROCESS, int(thread), niceness)


def _take_turns() -> None:
    """Sleeps and wakes for ever, which makes Linux choose anew which thread goes on.

    Otherwise, once an operator computes, a thread that is ready but was not chosen when it woke up
    waits for the kernel's next tick, 4 ms at 250 Hz: most tensors would, at the start of a step.
    """
    while True:
        time.sleep(_TURN_S)


def _die_with(guard: int) -> None:
    """The kernel kills this process when its parent dies, however that comes about."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != guard:
        sys.exit("the guard died")


def _join(directory: str) -> None:
    """Enters a control group; threads that come later are in it too, and their memory counts."""
    with open(os.path.join(directory, "cgroup.procs"), "w") as file:
        file.write("0")


def _server(spec: dict[str, Any]) -> Any:
    # The directory of this file is no place to import from.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    import tensorflow as tf

    for file in spec["op_files"]:
        tf.load_op_library(file)
    for module in spec["op_modules"]:
        importlib.import_module(module)
    threads = spec["threads"]
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads,
        inter_op_parallelism_threads=threads + _MORE_THREADS,
        device_count={"CPU": 1},
    )
    return tf.distribute.Server(
        {"worker": spec["addresses"]}, job_name="worker", task_index=spec["task"], config=config
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""One TensorFlow server on one core; the guard starts this file by its path.

It imports nothing of moirai_tf: the package imports TensorFlow, whose threads would then not be
pinned.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def main(spec: dict[str, Any]) -> None:
    """Serves until it is killed.

    Args:
      spec: `guard` (its process id), `core`, `cgroups` (directories to join), `addresses` of all
        workers, `task` (which of them this is) and `threads` of either of TensorFlow's pools.
    """
    _die_with(spec["guard"])
    os.sched_setaffinity(0, {spec["core"]})
    for directory in spec["cgroups"]:
        _join(directory)
    # What TensorFlow prints must neither be taken for a report nor fill the guard's pipe.
    report = os.dup(1)
    os.dup2(2, 1)
    server = _server(spec["addresses"], spec["task"], spec["threads"])
    os.write(report, b"ready\n")
    os.close(report)
    server.join()


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


def _server(addresses: list[str], task: int, threads: int) -> Any:
    # The directory of this file is no place to import from.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads,
        # One more, since the pool that runs operators also answers the other workers: with a
        # single thread a tensor that is long there would wait until nothing is left to compute.
        inter_op_parallelism_threads=threads + 1,
        device_count={"CPU": 1},
    )
    return tf.distribute.Server(
        {"worker": addresses}, job_name="worker", task_index=task, config=config
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

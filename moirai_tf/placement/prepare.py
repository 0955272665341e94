"""Compiles what block searches need on another core, while the search is at something else."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from functools import cache

from moirai_tf.placement.compiled import is_missing
from moirai_tf.placement.exact.blocks.search import search_block
from moirai_tf.placement.problem import Device, Operator, Problem, Tensor

_PROGRAM = """
import ctypes, sys
ctypes.CDLL(None).prctl(1, 9)  # killed if its parent dies, however that comes about
sys.path[:] = sys.argv[1:]
from moirai_tf.placement import SolveOptions, solve
from moirai_tf.placement.prepare import sample
solve(sample(), SolveOptions(solver="decomposition", mip_gap=0.0, time_limit_s=3600))
"""


@cache
def compile_beside() -> None:
    """Starts a process that compiles, unless that was done; it ends with this one at the latest.

    Whoever needs a function that it is at waits for it.
    """
    if len(os.sched_getaffinity(0)) < 2 or not sys.executable or not is_missing(search_block):
        return
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *map(os.path.abspath, sys.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(process.kill)


def sample() -> Problem:
    """Equal layers of two branches that the faster device cannot hold, so every part has work."""
    operators, tensors = [Operator("in", (1, 2), 1)], []
    way = ((0, 3), (3, 0))
    for last in range(0, 12, 3):
        operators += [Operator(f"{part}{last}", (5, 9), 2) for part in ("left", "right")]
        operators.append(Operator(f"sum{last}", (1, 2), 1))
        tensors.append(Tensor(last, (last + 1, last + 2), way))
        tensors += [Tensor(last + branch, (last + 3,), way) for branch in (1, 2)]
    devices = (Device("a", 12), Device("b", 12))
    return Problem("sample", devices, tuple(operators), tuple(tensors))

"""Seconds of `moirai_place` from its start where nothing was compiled yet, and at the next use.

python -m benchmarks.first_use --instances=FOLDER --rows=example-1,googlenet
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

_INSTANCES = flags.DEFINE_string("instances", None, "folder of instance files (JSON)")
_ROWS = flags.DEFINE_list("rows", None, "names of files; default: all")
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", 60.0, "seconds for each solution")
flags.mark_flag_as_required("instances")

_HEADER = (
    "| instance | first use: answer | seconds | of processors | next use: answer | seconds "
    "| of processors |\n|---|---|---|---|---|---|---|"
)


def main(_: list[str]) -> None:
    seconds = [_used("--help")[1:] for _ in range(3)]
    best_s, processor_s = min(seconds)
    print(f"`moirai_place --help`: {best_s:.2f} s, {processor_s:.2f} s of processors\n")
    print(_HEADER)
    for path in sorted(Path(_INSTANCES.value).glob("*.json")):
        if _ROWS.value is None or path.stem in _ROWS.value:
            with tempfile.TemporaryDirectory() as folder:
                print(f"| {path.stem} | {_row(path, folder)} | {_row(path, folder)} |", flush=True)


def _row(instance: Path, folder: str) -> str:
    """What one use says, and how long it takes, with the code that is in a folder."""
    text, seconds, processor_s = _used(
        f"--instance={instance}",
        f"--output={folder}/schedule.json",
        f"--time_limit_s={_TIME_LIMIT_S.value}",
        "--transfers=per_edge",
        "--congestion=port",
        cache=f"{folder}/cache",
    )
    (answer,) = (line for line in text.splitlines() if line.startswith("makespan"))
    return f"{answer.split(maxsplit=1)[1]} | {seconds:.1f} | {processor_s:.1f}"


def _used(*flags_: str, cache: str = "") -> tuple[str, float, float]:
    """Output, seconds and processor seconds of the command."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "tools.moirai_place", *flags_],
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, time.monotonic() - began, processor_s


if __name__ == "__main__":
    app.run(main)

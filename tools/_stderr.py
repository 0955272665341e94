"""Keeps lines off the terminal that TensorFlow writes while it loads, for which it has no switch.

They come before TensorFlow heeds `TF_CPP_MIN_LOG_LEVEL`, straight to descriptor 2. A process of a
few lines stands between that descriptor and what it was, and passes on everything else: it outlives
a crash, whose last words it still shows. What Python writes to `sys.stderr` goes there directly.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence

_PLACE = rb"0000 00:00:\d+\.\d+ +\d+ \S+:\d+\] "
"""Time, thread and line of source, after the letter of the severity."""
_NOISE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|[IW]" + _PLACE + rb"|E" + _PLACE + rb"Unable to register cu[A-Z]+ factory: "
)
"""Information and warnings, in the form that they have before logging is set up; of errors only
that of TensorFlow 2.18, which registers CUDA's libraries twice, whether there is a GPU or not."""
_COMMAND = re.compile(r"(?:^|[./])(?:moirai_[a-z_]+|benchmarks\.demo)(?:\.py)?$")


def is_command(words: Sequence[str]) -> bool:
    """Whether a command line, as in `sys.orig_argv`, starts one of moirai_tf's programs."""
    return any(_COMMAND.search(word) for word in words[1:4] if not word.startswith("--"))


def filter_descriptor() -> None:
    """From now on what is written to descriptor 2 loses the noise; `sys.stderr` is as it was.

    It forks, and so has to come before there are threads.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends when nobody writes any more
        try:
            os.close(0)
            os.close(1)
            _pass_on(reading, 2)
        finally:
            os._exit(0)
    os.close(reading)
    sys.stderr = open(  # noqa: SIM115  as long as the process
        os.dup(2), "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors, buffering=1
    )
    os.dup2(writing, 2)
    os.close(writing)


def _pass_on(reading: int, to: int) -> None:
    """Copies lines but noise; at once, and what has no end of line at the end."""
    rest = b""
    while chunk := os.read(reading, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        os.write(to, b"".join(line + b"\n" for line in lines if not _NOISE.match(line)))
    os.write(to, rest)

"""Command-line programs of moirai_tf (absl flags); installed as `moirai_*` commands."""

import os
import re
import signal
import sys
from collections.abc import Sequence

from ._stderr import filter_descriptor, is_command


def asked_verbosity(arguments: Sequence[str]) -> int | None:
    """The value of `--verbosity`, read before flags are: TensorFlow wants it before its import."""
    for argument, value in zip(arguments, (*arguments[1:], ""), strict=False):
        name, separator, after = argument.partition("=")
        if name in ("--verbosity", "-verbosity", "--v", "-v"):
            text = after if separator else value
            return int(text) if re.fullmatch(r"-?\d+", text) else None
    return None


VERBOSITY = asked_verbosity(sys.argv[1:])
"""None is quiet: no line of TensorFlow's, of this process or one that it starts; its failures are
exceptions, and a crash still says why."""


def end_at_start(number: int, _: object) -> None:
    """Ctrl-C while a command is still importing."""
    os.write(sys.stderr.fileno(), b"interrupted at the start; nothing was written\n")
    os._exit(128 + number)


if is_command(sys.orig_argv):
    if VERBOSITY is None:
        filter_descriptor()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_start)
os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "3" if VERBOSITY is None else str(min(3, max(0, -VERBOSITY)))
)

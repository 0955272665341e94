"""Ctrl-C: the command ends within two seconds, whatever it is in, and says what was kept."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time

from ._display import Display

STATUS = 128 + signal.SIGINT
_PATIENCE_S = 1.2
"""From Ctrl-C until a command that is still there is ended."""
_CLEANING_S = 0.6


class Interrupted:
    """Watches for Ctrl-C from a thread of its own.

    Python calls handlers of signals between two of its instructions, and TensorFlow or a solver may
    not come back to it for long.
    """

    def __init__(self, display: Display, *, patient: bool) -> None:
        self._display = display
        self._happened = self._ended = False
        if patient or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            return
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        sys.unraisablehook = _told_unless_interrupted
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(readable,), daemon=True).start()

    def told(self) -> int:
        """Says where the command was, and that nothing is half-written; the exit status."""
        if self._ended:
            return STATUS
        self._ended = True
        self._display.stop()
        where = f" during {self._display.where}" if self._display.where else ""
        print(
            f"interrupted{where}, after {self._display.elapsed}; nothing was written, inputs are "
            "as they were",
            file=sys.stderr,
            flush=True,
        )
        return STATUS

    def kept(self, status: int) -> int:
        """The exit status of a command that came to its end."""
        self._ended = True
        if not self._happened:
            return status
        print("interrupted; what was found until then is kept", file=sys.stderr, flush=True)
        return STATUS

    def _watch(self, readable: int) -> None:
        while os.read(readable, 1) != bytes([signal.SIGINT]):
            pass
        self._happened = True
        time.sleep(_PATIENCE_S)
        status = self.told()
        ending = threading.Timer(_CLEANING_S, os._exit, (status,))
        ending.daemon = True
        ending.start()
        atexit._run_exitfuncs()  # removes temporary files, and what is staged beside an output
        os._exit(status)


def _told_unless_interrupted(unraisable: sys.UnraisableHookArgs) -> None:
    """A Ctrl-C that comes while an object goes is lost there; who watches ends the command."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)

"""What a command shows on standard error while it works: a line that changes, or now and then one.

On a terminal the stage that is open, how far it is and since when; elsewhere the same as a plain
line twice a minute; with --quiet nothing.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from moirai_tf.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_EVERY_S = 30.0
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_WORTH_A_LINE_S = 1.0
"""Stages that took less leave no line behind."""


class Display:
    """An observer that shows stages, and a place for log messages beside them."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._open: dict[tuple[str, ...], Progress] = {}
        self._began_s = time.monotonic()
        self._done = threading.Event()
        self._live: Any = None
        self._console: Console | None = None

    def __enter__(self) -> Display:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._console = Console(stderr=True, highlight=False)
            self._live = Live(
                get_renderable=self._rendered, console=self._console, transient=True,
                redirect_stdout=False, redirect_stderr=False, refresh_per_second=8,
            )  # fmt: skip
            self._live.start()
        elif not self._quiet:
            threading.Thread(target=self._now_and_then, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Shows nothing any more: results, or an error, follow."""
        self._done.set()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, told: Progress) -> None:
        """Takes notice of a stage."""
        around = {path: p for path, p in self._open.items() if told.path[: len(path)] == path}
        if told.seconds is None:
            self._open = {**around, told.path: told}
            return
        around.pop(told.path, None)
        self._open = around
        if len(told.path) == 1 and told.seconds >= _WORTH_A_LINE_S and self._console is not None:
            self._console.print(f"{told.path[0]:<24} {_duration(told.seconds):>8}", style="dim")

    @property
    def where(self) -> str:
        """The stage that is open, with those around it: `profile: GPU:0: trace 3/20`."""
        if not self._open:
            return ""
        path, told = max(self._open.items(), key=lambda known: len(known[0]))
        far = "" if not told.total else f" {min(told.done + 1, told.total)}/{told.total}"
        return f"{': '.join(path)}{far}{f' ({told.note})' if told.note else ''}"

    @property
    def elapsed(self) -> str:
        """Since the command began."""
        return _duration(time.monotonic() - self._began_s)

    def log(self, text: str) -> None:
        """A line that stays."""
        if self._console is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._console.print(text, markup=False)

    def _rendered(self) -> Any:
        from rich.text import Text

        turn = _SPINNER[int(time.monotonic() * 8) % len(_SPINNER)]
        text = f"{turn} {self.elapsed}  {self.where}" if self.where else ""
        return Text(text, no_wrap=True, overflow="ellipsis")

    def _now_and_then(self) -> None:
        while not self._done.wait(_PLAIN_EVERY_S):
            if self.where:
                self.log(f"{self.elapsed}  {self.where}")


class DisplayHandler(logging.Handler):
    """Log messages of moirai_tf, above the line that changes."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Shows one message."""
        self._display.log(self.format(record))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"

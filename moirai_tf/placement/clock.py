"""The time limit: deadlines by a clock of this process that stands still while code is compiled."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside, _stopped_at_s, _lost_s = 0, 0.0, 0.0


def now_s() -> float:
    """Seconds since some moment, without those for which the clock was stopped."""
    with _lock:
        return (_stopped_at_s if _inside else time.monotonic()) - _lost_s


@contextmanager
def stopped() -> Iterator[None]:
    """Inside, no time passes, whoever else stops the clock meanwhile."""
    global _inside, _stopped_at_s, _lost_s
    with _lock:
        if _inside == 0:
            _stopped_at_s = time.monotonic()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _lost_s += time.monotonic() - _stopped_at_s


class OutOfTimeError(Exception):
    """The time limit passed inside a long loop; what was offered before stands."""


class Deadline:
    """Counts from its making; compiling takes none of the time."""

    def __init__(self, limit_s: float) -> None:
        self._began = now_s()
        self._limit_s = limit_s

    @property
    def limit_s(self) -> float:
        """Seconds from the start to the end."""
        return self._limit_s

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return now_s() - self._began

    def remaining_s(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._limit_s - self.elapsed_s())

    def check(self) -> None:
        """Raises OutOfTimeError when no time is left."""
        if self.elapsed_s() >= self._limit_s:
            raise OutOfTimeError

    @contextmanager
    def limited(self, share: float) -> Iterator[None]:
        """Inside, only a share of what is left is left; when that is over, the block ends."""
        whole_s = self._limit_s
        self._limit_s = self.elapsed_s() + share * self.remaining_s()
        try:
            yield
        except OutOfTimeError:
            if self.elapsed_s() >= whole_s:
                raise
        finally:
            self._limit_s = whole_s

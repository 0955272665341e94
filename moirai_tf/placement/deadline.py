"""The time limit, as something that long loops ask."""

from __future__ import annotations

import time


class OutOfTimeError(Exception):
    """The time limit passed inside a long loop; what was offered before stands."""


class Deadline:
    """Counts from its making."""

    def __init__(self, limit_s: float) -> None:
        self._began = time.monotonic()
        self._limit_s = limit_s

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def remaining_s(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._limit_s - self.elapsed_s())

    def check(self) -> None:
        """Raises OutOfTimeError when no time is left."""
        if self.elapsed_s() >= self._limit_s:
            raise OutOfTimeError

    def part(self, share: float) -> Deadline:
        """A deadline after a share of what is left."""
        return Deadline(share * self.remaining_s())

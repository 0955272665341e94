"""Seconds that a search had: this process's clock, which stands still while code is compiled."""

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

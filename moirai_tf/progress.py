"""What is being done at the moment, told to whoever observes: a display, or a table of times.

Whoever takes long opens a `stage`; stages lie inside each other, also across child processes. Where
nobody observes, nothing is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage that has begun, gone on, or ended."""

    path: tuple[str, ...]
    """What is being done, the outermost stage first."""
    done: int = 0
    total: int | None = None
    """Steps of the stage, if they can be counted."""
    note: str = ""
    """What there is to say of it at the moment, such as the best latency so far."""
    seconds: float | None = None
    """What it took; None while it goes on."""


T = TypeVar("T")
Observer = Callable[[Progress], None]

_observers: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())
_path: ContextVar[tuple[str, ...]] = ContextVar("path", default=())


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Inside, an observer is told of every stage, beside those that are told already."""
    token = _observers.set((*_observers.get(), observer))
    try:
        yield
    finally:
        _observers.reset(token)


def reporter() -> Observer:
    """Tells the observers of here, inside the stages of here: for another thread or process."""
    observers, path = _observers.get(), _path.get()

    def report(told: Progress) -> None:
        inside = Progress((*path, *told.path), told.done, told.total, told.note, told.seconds)
        for observer in observers:
            observer(inside)

    return report


class Stage:
    """A stage that is open."""

    def __init__(self, total: int | None) -> None:
        self._report, self._done, self._total = reporter(), 0, total

    def advance(self, note: str = "", seconds: float | None = None) -> None:
        """One more step is done."""
        self._done += seconds is None
        self._report(Progress((), self._done, self._total, note, seconds))

    def counted(self, value: T) -> T:
        """The value, of which each is a step."""
        self.advance()
        return value

    def note(self, note: str) -> None:
        """There is something to say."""
        self._report(Progress((), self._done, self._total, note))


@contextmanager
def stage(what: str, total: int | None = None) -> Iterator[Stage]:
    """A stage, which ends with the block; one that fails is not told to have ended.

    Args:
      what: what is done, as in `verify` or `loading the model on GPU:0`.
      total: how many steps it has, if that is known.
    """
    token = _path.set((*_path.get(), what))
    opened, began_s = Stage(total), time.monotonic()
    try:
        opened.note("")
        yield opened
        opened.advance(seconds=time.monotonic() - began_s)
    finally:
        _path.reset(token)


def note(text: str) -> None:
    """Says something of the stage that is open."""
    reporter()(Progress((), note=text))


@dataclass(frozen=True, slots=True)
class StageTime:
    """How long a stage took, all its turns together."""

    path: tuple[str, ...]
    seconds: float


@dataclass
class Stopwatch:
    """An observer that adds up times."""

    _seconds: dict[tuple[str, ...], float] = field(default_factory=dict)

    def __call__(self, told: Progress) -> None:
        """Takes the time of a stage that has ended."""
        self._seconds[told.path] = self._seconds.get(told.path, 0.0) + (told.seconds or 0.0)

    @property
    def times(self) -> tuple[StageTime, ...]:
        """Every stage, in the order in which they began, the inner ones behind the outer."""
        order = list(self._seconds)

        def key(path: tuple[str, ...]) -> tuple[int, ...]:
            return tuple(order.index(path[:depth]) for depth in range(1, len(path) + 1))

        return tuple(StageTime(path, self._seconds[path]) for path in sorted(order, key=key))


def time_table(times: Sequence[StageTime]) -> list[str]:
    """Where the time went: stages that took a tenth of a second, with what lies inside them."""
    whole_s = sum(time.seconds for time in times if len(time.path) == 1)
    rows = [("where the time went", whole_s)]
    rows += [
        ("  " * (len(time.path) - 1) + time.path[-1], time.seconds)
        for time in times
        if time.seconds >= _SHOWN_S
    ]
    width = max(len(title) for title, _ in rows)
    return [f"{title:<{width}}  {seconds:>7.1f} s" for title, seconds in rows]


_SHOWN_S = 0.1

"""Compilation to machine code, typed; the code is kept on disk between runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """The function in machine code, made at its first call."""
    return _compiled(function)


def compiled_lean(function: _Function) -> _Function:
    """The same for a function that allocates nothing: integers, arrays, named tuples of them.

    Without numba's runtime arrays are not counted as references, which took three quarters of the
    time of small functions.
    """
    return _compiled(function, _nrt=False)


def _compiled(function: _Function, **options: bool) -> _Function:
    try:
        result: _Function = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no place that this user can write: made anew by every process
        result = numba.njit(**options)(function)
    return result


def is_compiled() -> bool:
    """Whether this room's machine code has been kept on disk by an earlier run."""
    return any(Path(__file__).parent.rglob("*.nbc"))

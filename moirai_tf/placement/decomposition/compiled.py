"""Numba's compiler with a type that says a compiled function keeps its signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Machine code at the first call, kept on disk for later processes; one thread."""
    return cast("Function", numba.njit(cache=True)(function))

"""Compilation to machine code, typed: at first use, kept on disk, outside of every time limit."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, cached_property, update_wrapper
from pathlib import Path
from typing import Any, TypeVar, cast

from moirai_tf.placement.clock import stopped

_Function = TypeVar("_Function", bound=Callable[..., object])
_LOG = logging.getLogger(__name__)
_FEW_OPERATORS = 300
"""Up to so many are placed in Python before machine code for it could be loaded."""
_interpreting = ContextVar("interpreting", default=False)


def compiled(function: _Function) -> _Function:
    """The function in machine code, made at its first call."""
    return cast(_Function, _Kernel(function))


def compiled_lean(function: _Function) -> _Function:
    """The same for a function that allocates nothing: integers, arrays, named tuples of them.

    Without numba's runtime arrays are not counted as references, which took three quarters of the
    time of small functions.
    """
    return cast(_Function, _Kernel(function, _nrt=False))


@contextmanager
def interpreted(operators: int) -> Iterator[None]:
    """Inside, if operators are few, such functions run as the Python they are.

    Only for what sees each operator a few times, and draws no random numbers: in Python they come
    from another generator.
    """
    token = _interpreting.set(operators <= _FEW_OPERATORS)
    try:
        yield
    finally:
        _interpreting.reset(token)


def is_missing(function: Callable[..., object]) -> bool:
    """Whether the machine code of such a function could be on disk, but is not."""
    return isinstance(function, _Kernel) and function.missing


class _Kernel:
    """A function that Python calls, and other kernels, each in machine code made for it.

    What only kernels call gets no entrance for Python and is not kept on disk: it becomes a part
    of its callers.
    """

    def __init__(self, function: Callable[..., object], **options: bool) -> None:
        self._function, self._options = function, options
        update_wrapper(self, function)

    def __call__(self, *arguments: object) -> object:
        if _interpreting.get():
            return self._function(*arguments)
        return self._entrance(*arguments)

    @cached_property
    def _entrance(self) -> Any:
        """Called from Python; loaded, or compiled if it is the first use, while the clock stands.

        Of several processes one compiles and the others wait for what it has put on disk.
        """
        with stopped():
            dispatcher = self._dispatcher()
            try:
                dispatcher.enable_caching()
                dispatcher._cache._cache_file._source_stamp = _sources()
            except RuntimeError as error:  # neither the package's folder nor the user's is ours
                _LOG.warning("machine code is not kept, set NUMBA_CACHE_DIR (%s)", error)
        compile_one = dispatcher.compile

        def compile_alone(signature: object) -> object:
            name = self._function.__qualname__
            with stopped(), _locked(dispatcher.stats.cache_path, name):
                if self.missing:
                    _announce()
                return compile_one(signature)

        dispatcher.compile = compile_alone
        return dispatcher

    @property
    def missing(self) -> bool:
        """Whether it should be on disk, made from these sources, and is not."""
        cache = self._entrance._cache
        return hasattr(cache, "_cache_file") and not cache._cache_file._load_index()

    @cached_property
    def _inner(self) -> Any:
        return self._dispatcher(no_cpython_wrapper=True, no_cfunc_wrapper=True)

    @property
    def _numba_type_(self) -> object:
        """How numba learns what a kernel is that another one calls."""
        return self._inner._numba_type_

    def _dispatcher(self, **options: bool) -> Any:
        import numba  # Takes a second, and many problems never need it.

        return numba.njit(**self._options, **options)(self._function)


@cache
def _announce() -> None:
    _LOG.warning("compiling the solver, which happens once on a machine; no time limit counts it")


@cache
def _sources() -> str:
    """What all kernels were made from; numba looks only at the file of the one that is called."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    texts = [text for file in files if b"import compiled" in (text := file.read_bytes())]
    return hashlib.sha256(b"".join(texts)).hexdigest()


@contextmanager
def _locked(folder: str | None, name: str) -> Iterator[None]:
    """Inside, no other process compiles the function of this name into the folder."""
    if folder is None:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    with Path(folder, f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

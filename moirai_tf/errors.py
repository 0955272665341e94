"""The one exception that users meet: it names the broken rule, the reason and the way out."""

from __future__ import annotations

import difflib
import errno
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_MOST_CHARACTERS = 8_000
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class MoiraiError(Exception):
    """A rule of moirai_tf was broken by its input, its options or its surroundings.

    Attributes:
      rule: which rule was broken, with the offending names and values.
      why: why the rule matters.
      fix: what the user can do.
    """

    def __init__(self, rule: str, *, why: str, fix: str) -> None:
        super().__init__(rule, why, fix)
        self.rule = _readable(rule)
        self.why = _readable(why)
        self.fix = _readable(fix)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.rule, self.why, self.fix)

    def __str__(self) -> str:
        return f"{self.rule}\n  why: {self.why}\n  fix: {self.fix}"


def _readable(text: str) -> str:
    """A text without the middle of it, if that quotes names or values of no length to be read."""
    most = _MOST_CHARACTERS // 2
    return text if len(text) <= 2 * most else f"{text[:most]} [...] {text[-most:]}"


def _again(rule: str, why: str, fix: str) -> MoiraiError:
    """The same error in another process."""
    return MoiraiError(rule, why=why, fix=fix)


def near_names(wanted: str, names: Iterable[str], most: int = 5) -> str:
    """What somebody may have meant who asked for a name, or by a pattern, that is not there.

    Args:
      wanted: what was asked for.
      names: what there is; parts of it between slashes count too.
      most: how many are told.

    Returns:
      `'a', 'b'`, or nothing if nothing is similar.
    """
    known = {part: name for name in names for part in (*name.split("/"), name)}
    plain = re.sub(r"\\.|[^\w/]", "", wanted).lower()
    lower = {part.lower(): part for part in known}
    found = difflib.get_close_matches(plain, lower, n=most, cutoff=0.6)
    return ", ".join(dict.fromkeys(repr(known[lower[part]]) for part in found))


def file_error(what: str, error: OSError) -> MoiraiError:
    """An error for users out of one of the file system.

    Args:
      what: what could not be done, such as `pass 'profile' cannot read or write a file`.
      error: what the system said.
    """
    if error.errno in _FULL:
        fix = "free space there, or raise its limit (ulimit -f)"
    else:
        fix = "choose a place that you can read and write"
    return MoiraiError(
        f"{what}: {error}",
        why=f"models and tables are written whole or not at all; temporary files go to "
        f"{_temporary()} (TMPDIR)",
        fix=fix,
    )


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "a directory that can be written, of which there is none"


@contextmanager
def file_errors(what: str) -> Iterator[None]:
    """Around what uses files, or as its decorator: `OSError` comes out as `file_error`."""
    try:
        yield
    except OSError as error:
        raise file_error(what, error) from error

"""Reading parsed JSON or YAML field by field, so that an error names the field that is wrong."""

from __future__ import annotations

import errno
import json
import math
import os
import reprlib
import stat
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from moirai_tf.errors import MoiraiError

_WHOLE_BITS = 63
"""Whole numbers of files fit the 64 bits that solvers and TensorFlow count in."""


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file to be read; a pipe that nobody writes, say, would make its reader wait for ever.

    Raises:
      OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        text = os.strerror(number) if stat.S_ISDIR(mode) else "Not a regular file"
        raise OSError(number, text, str(path))
    return os.fdopen(descriptor, "rb")


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file: what its errors say besides the field."""

    why: str
    """Why every field matters."""
    fix: str
    """Where the format is described."""
    most_bytes: int = 1 << 30
    """A larger file is refused before it is read."""

    def fault(self, path: str, what: str) -> MoiraiError:
        """An error at a field."""
        return MoiraiError(f"{path or 'the file'}: {what}", why=self.why, fix=self.fix)

    def read_text(self, path: str | Path) -> str:
        """The content of a file.

        Raises:
          MoiraiError: it cannot be read, is no regular file, too large or not UTF-8.
        """
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size > self.most_bytes:
                    raise OSError(errno.EFBIG, f"it has more than {self.most_bytes} bytes")
                return file.read(self.most_bytes).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise MoiraiError(
                f"{path} cannot be read: {error}",
                why=self.why,
                fix="give the path of a readable UTF-8 file",
            ) from error

    def read_json(self, path: str | Path) -> Field:
        """The root of a JSON file.

        Raises:
          MoiraiError: it cannot be read, is not JSON, or an object has a key twice.
        """
        text = self.read_text(path)
        try:
            return Field(json.loads(text, object_pairs_hook=_object), self)
        except (ValueError, RecursionError) as error:
            raise self.fault(str(path), f"not JSON: {error}") from error


class Field:
    """A parsed value that knows its path, as in `devices[1].memory`."""

    def __init__(self, value: Any, form: Format, path: str = "") -> None:
        self.value = value
        self.path = path
        self._form = form

    def __getitem__(self, key: str) -> Field:
        """An entry of an object that must be there."""
        found = self.get(key)
        if found is None:
            raise self._form.fault(self._inner(key), "missing")
        return found

    def get(self, key: str) -> Field | None:
        """An entry of an object, or None if it is missing or null."""
        entries = self._typed(dict, "an object")
        value = entries.get(key)
        return None if value is None else Field(value, self._form, self._inner(key))

    def only(self, *known: str) -> None:
        """Refuses entries of an object that have other names."""
        for key in self._typed(dict, "an object"):
            if key not in known:
                fault = f"unknown; known here are {', '.join(known)}"
                raise self._form.fault(self._inner(key if type(key) is str else _shown(key)), fault)

    def items(self) -> list[tuple[str, Field]]:
        """The entries of an object."""
        entries = self._typed(dict, "an object")
        found = [(key, Field(v, self._form, f"{self.path}[{key!r}]")) for key, v in entries.items()]
        for key, entry in found:
            entry._encodable(key)
        return found

    def elements(self) -> list[Field]:
        """The elements of a list."""
        values = self._typed(list, "a list")
        return [Field(v, self._form, f"{self.path}[{i}]") for i, v in enumerate(values)]

    def text(self) -> str:
        """A string."""
        text = str(self._typed(str, "a string"))
        self._encodable(text)
        return text

    def integer(self, least: int | None = None) -> int:
        """A whole number, not below `least`."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.fault(f"{_shown(self.value)} is not a whole number")
        if self.value.bit_length() > _WHOLE_BITS:
            raise self.fault(f"a whole number of more than {_WHOLE_BITS} bits")
        if least is not None and self.value < least:
            raise self.fault(f"{self.value} is less than {least}")
        return self.value

    def number(self) -> float:
        """A finite number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.fault(f"{_shown(self.value)} is not a number")
        number = self.value if isinstance(self.value, float) else float(self.integer())
        if not math.isfinite(number):
            raise self.fault(f"{number} is not finite")
        return number

    def one_of(self, known: Collection[str], noun: str) -> str:
        """A string that is one of the known ones."""
        name = self.text()
        if name not in known:
            raise self.fault(f"there is no {noun} {name!r}; known are {', '.join(known)}")
        return name

    def shown(self) -> str:
        """The value in a few characters, for messages."""
        return _shown(self.value)

    def fault(self, what: str) -> MoiraiError:
        """An error at this field."""
        return self._form.fault(self.path, what)

    def _inner(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _encodable(self, text: str) -> None:
        """Half a surrogate pair, as `\\ud800`, is no text: it cannot be written or printed."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.fault(f"{_shown(text)} is not Unicode text") from error

    def _typed(self, kind: type, noun: str) -> Any:
        if not isinstance(self.value, kind):
            raise self.fault(f"{_shown(self.value)} is not {noun}")
        return self.value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON's own reader keeps the last of two equal keys without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _shown(value: Any) -> str:
    """A value in a few characters, however large it is or however often it holds another."""
    try:
        text = reprlib.repr(value) if isinstance(value, list | dict | tuple | set) else repr(value)
    except ValueError:  # Python writes out no number of thousands of digits
        return "a huge number"
    return text if len(text) <= 40 else f"{text[:37]}..."

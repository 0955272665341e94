"""Reading parsed JSON or YAML field by field, so that an error names the field that is wrong."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moirai_tf.errors import MoiraiError


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file: what its errors say besides the field."""

    why: str
    """Why every field matters."""
    fix: str
    """Where the format is described."""

    def fault(self, path: str, what: str) -> MoiraiError:
        """An error at a field."""
        return MoiraiError(f"{path or 'the file'}: {what}", why=self.why, fix=self.fix)

    def read_text(self, path: str | Path) -> str:
        """The content of a file.

        Raises:
          MoiraiError: it cannot be read or is not UTF-8.
        """
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MoiraiError(
                f"{path} cannot be read: {error}",
                why=self.why,
                fix="give the path of a readable UTF-8 file",
            ) from error

    def read_json(self, path: str | Path) -> Field:
        """The root of a JSON file.

        Raises:
          MoiraiError: it cannot be read or is not JSON.
        """
        text = self.read_text(path)
        try:
            return Field(json.loads(text), self)
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
                raise self._form.fault(self._inner(str(key)), fault)

    def items(self) -> list[tuple[str, Field]]:
        """The entries of an object."""
        entries = self._typed(dict, "an object")
        return [(key, Field(v, self._form, f"{self.path}[{key!r}]")) for key, v in entries.items()]

    def elements(self) -> list[Field]:
        """The elements of a list."""
        values = self._typed(list, "a list")
        return [Field(v, self._form, f"{self.path}[{i}]") for i, v in enumerate(values)]

    def text(self) -> str:
        """A string."""
        return str(self._typed(str, "a string"))

    def integer(self, least: int | None = None) -> int:
        """A whole number, not below `least`."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.fault(f"{_shown(self.value)} is not a whole number")
        if least is not None and self.value < least:
            raise self.fault(f"{self.value} is less than {least}")
        return self.value

    def number(self) -> float:
        """Any number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.fault(f"{_shown(self.value)} is not a number")
        return float(self.value)

    def one_of(self, known: Collection[str], noun: str) -> str:
        """A string that is one of the known ones."""
        name = self.text()
        if name not in known:
            raise self.fault(f"there is no {noun} {name!r}; known are {', '.join(known)}")
        return name

    def fault(self, what: str) -> MoiraiError:
        """An error at this field."""
        return self._form.fault(self.path, what)

    def _inner(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _typed(self, kind: type, noun: str) -> Any:
        if not isinstance(self.value, kind):
            raise self.fault(f"{_shown(self.value)} is not {noun}")
        return self.value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

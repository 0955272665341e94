"""Frozen dataclasses and typed dictionaries out of JSON or YAML; an error names the field's path.

The types of a record are the format of its file: pydantic checks values against them and converts
none. A field must be there unless it can be None.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import reprlib
import stat
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import typing_extensions
from annotated_types import Ge
from pydantic_core import SchemaValidator, ValidationError

from moirai_tf.errors import MoiraiError

T = TypeVar("T")

Natural = Annotated[int, Ge(0)]
"""A whole number of 0 or more."""
Positive = Annotated[int, Ge(1)]

_NOUNS: Mapping[str, str] = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "an object",
    "mapping_type": "an object",
    "dataclass_type": "an object",
}
"""Kind of pydantic's error -> what the value is not."""
MOST_WHOLE = 2**63 - 1
"""Whole numbers of files fit the 64 bits that solvers and TensorFlow count in."""
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
    """A kind of file: what its errors say besides the field."""

    why: str
    """Why every field matters."""
    fix: str
    """Where the format is described."""
    closed: bool = True
    """Whether fields that nobody knows are refused."""
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

    def read_json(self, path: str | Path) -> dict[str, Any]:
        """The values of a JSON file, whose root is an object.

        Raises:
          MoiraiError: it cannot be read, is not JSON, or has a key twice or a NaN.
        """
        text = self.read_text(path)
        try:
            found = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refused)
        except (ValueError, RecursionError) as error:
            raise self.fault(str(path), f"not JSON: {error}") from error
        if not isinstance(found, dict):
            raise self.fault("", f"{_shown(found)} is not an object")
        return found

    def record(self, values: Any, kind: type[T], *, absent: Collection[str] = ()) -> T:
        """Parsed values as a record.

        Args:
          values: of JSON or YAML.
          kind: a dataclass or typed dictionary of such, of tuples, mappings and plain values.
          absent: fields that may be missing although their default is not None: older files have
            none.

        Raises:
          MoiraiError: naming the field that is missing, unknown or of another type.
        """
        check = _validator(typing.cast(Any, kind), frozenset(absent)).validate_json
        extra = "forbid" if self.closed else "ignore"
        try:
            text = json.dumps(values, default=str)
        except (TypeError, ValueError, RecursionError) as error:  # keys or numbers of YAML alone
            raise self.fault("", f"it cannot be written as JSON: {error}") from error
        try:
            return typing.cast(T, check(text, strict=True, extra=extra))
        except ValidationError as error:
            found = min(error.errors(include_url=False), key=lambda e: e["type"] not in _UNKNOWN)
            raise self.fault(_path(kind, found["loc"]), _sentence(kind, found)) from error


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


@functools.cache
def _validator(kind: Any, absent: frozenset[str]) -> Any:
    import pydantic  # here, since it takes longer to import than all of placement/

    def strict(schema: Any, field: str = "") -> Any:
        """Without defaults for fields that cannot be None; numbers as solvers can count them."""
        if isinstance(schema, list):
            return [strict(part) for part in schema]
        if not isinstance(schema, dict):
            return schema
        has_default = schema.get("type") == "default" and schema.get("default", "") is not None
        if has_default and field not in absent:
            return strict(schema["schema"])
        if schema.get("type") == "int":
            return {"le": MOST_WHOLE, **schema}
        if schema.get("type") == "float":
            return {**schema, "allow_inf_nan": False}
        name = schema.get("name", "") if schema.get("type") == "dataclass-field" else ""
        return {key: strict(part, name) for key, part in schema.items()}

    return SchemaValidator(strict(pydantic.TypeAdapter(kind).core_schema))


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _refused(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _fields(hint: Any) -> Mapping[str, Any] | None:
    """Field -> type; None if the type is no record."""
    hint = _without_none(hint)
    if dataclasses.is_dataclass(hint) or typing_extensions.is_typeddict(hint):
        return typing_extensions.get_type_hints(hint)
    return None


def _inside(hint: Any, part: str | int) -> Any:
    """The type of a field, of an element or of a mapping's value."""
    fields = _fields(hint)
    if fields is not None:
        return fields.get(str(part))
    arguments = typing.get_args(_without_none(hint))
    return arguments[-1 if isinstance(part, str) else 0] if arguments else None


def _without_none(hint: Any) -> Any:
    arguments = typing.get_args(hint)
    if types.NoneType not in arguments:
        return hint
    return next(argument for argument in arguments if argument is not types.NoneType)


def _path(hint: Any, location: Sequence[str | int]) -> str:
    path = ""
    for part in location:
        field = _fields(hint) is not None
        path += f".{part}" if field else f"[{part!r}]"
        hint = _inside(hint, part)
    return path.removeprefix(".")


def _sentence(hint: Any, error: Any) -> str:
    """What pydantic found wrong, in the words of this package."""
    kind, value = error["type"], error["input"]
    if kind in _UNKNOWN:
        for part in error["loc"][:-1]:
            hint = _inside(hint, part)
        return f"unknown; known here are {', '.join(_fields(hint) or ())}"
    if kind == "missing" or (value is None and error["loc"]):
        return "missing"
    if kind == "greater_than_equal":
        return f"{value} is less than {error['ctx']['ge']}"
    if kind == "less_than_equal":
        return "a whole number of more than 63 bits"
    if kind == "finite_number":
        return f"{value} is not finite"
    if kind == "literal_error":
        noun = error["loc"][-1]
        return f"there is no {noun} {value!r}; known are {error['ctx']['expected']}"
    return f"{_shown(value)} is not {_NOUNS[kind]}" if kind in _NOUNS else str(error["msg"])


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 63:
        return "a huge number"
    text = reprlib.repr(value) if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def write_text(text: str, path: Path) -> None:
    """Writes a file whole or not at all.

    Raises:
      MoiraiError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise MoiraiError(
            f"{path} cannot be written: {error}",
            why="the result is kept in this file",
            fix="give a path in an existing, writable directory",
        ) from error


@contextmanager
def whole_files(texts: Mapping[Path, str]) -> Iterator[None]:
    """Files that all take their places when the block ends without an error, or none does.

    Raises:
      OSError: one cannot be written.
    """
    partial = {path: path.with_name(f".{path.name}.partial") for path in texts}
    old = {path: path.read_bytes() for path in texts if path.is_file()}
    done: list[Path] = []
    try:
        for path, text in texts.items():
            partial[path].write_text(text, encoding="utf-8")
        yield
        for path in texts:
            os.replace(partial[path], path)
            done.append(path)
    except BaseException:
        for path in done:
            path.write_bytes(old[path]) if path in old else path.unlink()
        raise
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)

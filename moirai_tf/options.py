"""Options are fields: one definition gives the argument, the flag and the line in a report."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from moirai_tf.errors import MoiraiError

_LONGEST_S = 10**6
"""What all that waits can wait: the system's `poll` counts milliseconds in 32 bits."""


def option(default: Any, help: str, *, choices: Sequence[str] | None = None) -> Any:
    """A dataclass field that is also a user's option.

    Args:
      default: value when the user says nothing; must be immutable.
      help: one sentence, shown by `--help` and in reports; units belong in it.
      choices: the allowed strings, if there are only a few.
    """
    metadata = {"help": help, "choices": None if choices is None else tuple(choices)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of one option: enough to make a flag or a line of a report from it."""

    name: str
    default: Any
    help: str
    kind: type
    """bool, int, float, str, or tuple (of strings)."""
    choices: tuple[str, ...] | None


def options_of(cls: type) -> Iterator[Option]:
    """Every field of a dataclass that was made by `option`, in order of definition."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if "help" not in field.metadata:
            continue
        kind = _plain_type(hints[field.name])
        yield Option(
            field.name, field.default, field.metadata["help"], kind, field.metadata["choices"]
        )


def check_options(instance: Any) -> None:
    """Refuses a value outside an option's `choices`.

    Raises:
      MoiraiError: naming the option, the value and the choices.
    """
    for known in options_of(type(instance)):
        value = getattr(instance, known.name)
        if known.choices is None or value in known.choices:
            continue
        raise MoiraiError(
            f"option {known.name} is {value!r}",
            why=f"it selects one of a fixed set: {known.help}",
            fix=f"use one of {', '.join(known.choices)}",
        )


def check_seconds(name: str, value: object) -> None:
    """Refuses a time limit that is none.

    Raises:
      MoiraiError: naming the option and its value.
    """
    if not (isinstance(value, int | float) and 0 < value <= _LONGEST_S):
        raise MoiraiError(
            f"option {name} is {value!r}",
            why="what it limits takes some time, and nothing may wait for ever",
            fix=f"give a number of seconds above 0, at most {_LONGEST_S}",
        )


def _plain_type(hint: Any) -> type:
    """`int | None` -> int, `tuple[str, ...]` -> tuple."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    plain: type = typing.get_origin(hint) or hint
    return plain

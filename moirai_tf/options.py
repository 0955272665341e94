"""Options are fields: one definition gives the argument, the flag and the line in a report."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moirai_tf.errors import MoiraiError


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


def recorded(cls: type, values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of a class's options that a plan has kept, in their types; of these names, if any.

    Raises:
      MoiraiError: naming the option whose value is of another type.
    """
    found = {}
    for known in options_of(cls):
        if known.name not in values or (names and known.name not in names):
            continue
        value = values[known.name]
        if known.kind is tuple and isinstance(value, list):
            value = tuple(value)
        parts = value if isinstance(value, tuple) else ()
        if type(value) is not known.kind or not all(isinstance(part, str) for part in parts):
            raise MoiraiError(
                f"option {known.name} of the plan is no {known.kind.__name__}",
                why="the model is run as it was when the plan was made",
                fix="optimise the original model again; its plan was changed",
            )
        found[known.name] = value
    return found


def _plain_type(hint: Any) -> type:
    """`int | None` -> int, `tuple[str, ...]` -> tuple."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    plain: type = typing.get_origin(hint) or hint
    return plain

"""Random damage to protobufs, by bytes and by fields; the same seed does the same damage."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from typing import Any

from google.protobuf.message import Message

_NUMBERS = (0, -1, 1, 2, 3, 7, 9, 20, 101, 2**31 - 1, 2**31, 2**62, -(2**40))
_TEXTS: tuple[Callable[[str], str], ...] = (
    lambda text: "",
    lambda text: text[: len(text) // 2],
    lambda text: f"^{text}",
    lambda text: f"{text}:1",
    lambda text: f"{text}:-1",
    lambda text: f"{text}:",
    lambda text: text.replace("a", "b"),
    lambda text: f"{text}/é\n",
)


def damage_bytes(data: bytes, seed: int) -> bytes:
    """Some bytes changed, lost or added."""
    rng = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        i = rng.randrange(len(damaged))
        kind = rng.randrange(4)
        if kind == 0:
            damaged[i] = rng.randrange(256)
        elif kind == 1:
            damaged[i] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del damaged[i : i + rng.choice((1, 2, 8))]
        else:
            damaged[i:i] = rng.randbytes(2)
    return bytes(damaged)


def damage_fields(message: Any, seed: int) -> None:
    """Changes one to three fields somewhere in a message, in place; it stays parsable."""
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, field = rng.choice(list(_fields(message)))
        _damage_field(holder, field, rng)


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every (message, field) below a message that has a value."""
    for field, value in message.ListFields():
        yield message, field
        if _is_map(field):
            children = [v for _, v in sorted(value.items()) if isinstance(v, Message)]
        elif isinstance(value, Message):
            children = [value]
        else:
            children = list(value) if field.message_type else []
        for child in children:
            yield from _fields(child)


def _damage_field(holder: Any, field: Any, rng: random.Random) -> None:
    value = getattr(holder, field.name)
    if _is_map(field):
        _damage_map(value, rng)
    elif isinstance(value, Message):
        holder.ClearField(field.name)
    elif isinstance(value, MutableSequence):
        _damage_list(value, field, rng)
    else:
        setattr(holder, field.name, _other(value, rng))


def _damage_map(value: Any, rng: random.Random) -> None:
    one, two = rng.choice(sorted(value)), rng.choice(sorted(value))
    if one == two:
        del value[one]
    elif isinstance(value[one], Message):
        value[one].CopyFrom(value[two])
    else:
        value[one] = value[two]


def _damage_list(values: Any, field: Any, rng: random.Random) -> None:
    i, j = rng.randrange(len(values)), rng.randrange(len(values))
    kind = rng.randrange(3)
    if kind == 0:
        del values[i]
    elif field.message_type and kind == 1:
        values.add().CopyFrom(values[i])
    elif field.message_type:
        values[i].CopyFrom(values[j])
    elif kind == 1:
        values.append(values[j])
    else:
        values[i] = _other(values[i], rng)


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([n for n in _NUMBERS if -(2**31) <= n < 2**31 or abs(value) > 2**31])
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, float("nan"), float("inf")))
    if isinstance(value, bytes):
        return value[: len(value) // 2]
    return rng.choice(_TEXTS)(value)


def _is_map(field: Any) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def cuts(length: int, most: int) -> Sequence[int]:
    """Lengths to truncate to, evenly spread and at both ends."""
    step = max(1, length // most)
    return [*range(0, length, step), length - 1]


_VALUES: tuple[Any, ...] = (
    None, True, False, "", "a", "/device:CPU:0", "/device:CPU:99999999", "é\n", "\ud800", "1e400",
    "0x10", 0, 1, -1, 2, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e308,
    5e-324, float("nan"), float("inf"), float("-inf"), [], [0], {}, {"a": 1}, [[]], "x" * 10_000,
)  # fmt: skip
"""What stands in the place of other values: other types, and numbers at which things overflow."""


def damage_json(data: Any, seed: int) -> str:
    """The text of a JSON value with one to three places changed; some are no JSON any more."""
    rng = random.Random(seed)
    damaged = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(damaged))
        if places:
            _damage_place(*rng.choice(places), places, rng)
    text = json.dumps(damaged)
    kind = rng.randrange(40)
    if kind == 0:  # a key twice
        return text.replace("{", '{"name": 0, ', 1 + rng.randrange(3))
    if kind == 1:  # numbers that no float holds
        return text.replace(": 1", ": 1e400", 1).replace(": 2", ": -1e999", 1)
    if kind == 2:
        at, depth = rng.randrange(len(text)), rng.choice((50, 5_000, 200_000))
        return text[:at] + "[" * depth + "]" * depth + text[at:]
    return text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside a value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _damage_place(holder: Any, key: Any, places: Sequence[Any], rng: random.Random) -> None:
    kind = rng.randrange(10)
    if kind >= 6:
        holder[key] = rng.choice(_alike(holder[key], places))
    elif kind <= 1:
        holder[key] = rng.choice(_VALUES)
    elif kind == 2:
        del holder[key]
    elif kind == 3:  # what stands elsewhere, which may be of the right type
        other, at = rng.choice(places)
        holder[key] = copy.deepcopy(other[at]) if _has(other, at) else None
    elif kind == 4 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif isinstance(holder, dict):
        holder[rng.choice(("a", "", f"{key}x", "name", "d"))] = holder.pop(key)
    else:
        holder[key] = [holder[key]]


def _alike(value: Any, places: Sequence[Any]) -> list[Any]:
    """Values of the same type, so that more than types is tried."""
    kind = (int, float) if isinstance(value, int | float) else type(value)
    elsewhere = [other[at] for other, at in places if _has(other, at)]
    found = [other for other in (*_VALUES, *elsewhere) if isinstance(other, kind)]
    return copy.deepcopy(found) or [value]


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)

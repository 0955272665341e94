"""Wishes of the user as a new problem: pins, forbidden devices and memory limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from moirai_tf.errors import MoiraiError
from moirai_tf.placement.collisions import Limit, check_collisions
from moirai_tf.placement.problem import Device, Operator, Problem
from moirai_tf.placement.validation import require_valid


def restrict(
    problem: Problem,
    *,
    pins: Sequence[str] = (),
    forbidden: Sequence[str] = (),
    memory_limits: Sequence[str] = (),
    limits: Sequence[Limit] = (),
) -> Problem:
    """The problem with fewer freedoms.

    Args:
      problem: the problem to narrow.
      pins: `regex=device`: operators whose name the regex is found in run only there.
      forbidden: names of devices that run nothing.
      memory_limits: `device=bytes`: at most so much of the device's memory is used.
      limits: wishes that were read elsewhere, and reasons for what the problem itself rules out.

    Raises:
      MoiraiError: for a wish that cannot be read, names no device or no operator, or collides with
        another, with the problem or with a colocation group; it names all of them.
    """
    memory = [_split(limit, "memory_limits") for limit in memory_limits]
    known = [*limits, *_pinned(problem, pins), *_forbidden(problem, forbidden)]
    allowed = [set(range(len(problem.devices))) for _ in problem.operators]
    for limit in known:
        allowed[limit.operator] &= limit.devices
    operators = tuple(map(_narrow, problem.operators, allowed))
    restricted = replace(problem, operators=operators, devices=_limited(problem, memory))
    check_collisions(problem, known)
    require_valid(restricted)
    return restricted


def _pinned(problem: Problem, pins: Sequence[str]) -> Iterator[Limit]:
    for pin in pins:
        pattern, name = _split(pin, "pins")
        devices = frozenset({device_index(problem, name, "pins")})
        for operator in _matching(problem, pattern, pin):
            reason = f"pin {pin!r} holds {problem.operators[operator].name!r}"
            yield Limit(operator, devices, reason, f"pin {pin!r}")


def _forbidden(problem: Problem, names: Sequence[str]) -> Iterator[Limit]:
    everywhere = frozenset(range(len(problem.devices)))
    for name in names:
        devices = everywhere - {device_index(problem, name, "forbidden")}
        for operator in range(len(problem.operators)):
            yield Limit(operator, devices, f"{name!r} is forbidden", f"forbidden {name!r}")


def _narrow(operator: Operator, allowed: set[int]) -> Operator:
    if all(device in allowed for device in range(len(operator.compute_ns))):
        return operator
    times = enumerate(operator.compute_ns)
    return replace(
        operator, compute_ns=tuple(time if device in allowed else None for device, time in times)
    )


def _limited(problem: Problem, limits: Iterable[tuple[str, str]]) -> tuple[Device, ...]:
    devices = list(problem.devices)
    for name, text in limits:
        index = device_index(problem, name, "memory_limits")
        if not text.isdecimal():
            raise _refusal(f"memory_limits: {text!r} is not a number of bytes", "device=bytes")
        present = devices[index].memory_bytes
        limit = int(text) if present is None else min(present, int(text))
        devices[index] = replace(devices[index], memory_bytes=limit)
    return tuple(devices)


def _split(text: str, option: str) -> tuple[str, str]:
    left, separator, right = text.rpartition("=")
    if not separator or not left or not right:
        raise _refusal(f"{option}: {text!r} has no '='", "name=value")
    return left, right


def device_index(problem: Problem, name: str, option: str) -> int:
    """The device of that name.

    Raises:
      MoiraiError: there is none; it names the option.
    """
    for index, device in enumerate(problem.devices):
        if device.name == name:
            return index
    known = problem.device_names(range(len(problem.devices)))
    raise _refusal(f"{option}: there is no device {name!r}", f"one of {known}")


def _matching(problem: Problem, pattern: str, pin: str) -> list[int]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise _refusal(f"pins: {pin!r} is not a regular expression: {error}", "regex=device") from (
            error
        )
    matching = [i for i, operator in enumerate(problem.operators) if regex.search(operator.name)]
    if not matching:
        raise _refusal(f"pins: {pin!r} matches no operator", "a pattern found in operator names")
    return matching


def _refusal(rule: str, form: str) -> MoiraiError:
    return MoiraiError(
        rule,
        why="a wish that has no effect would go unnoticed",
        fix=f"give {form}",
    )

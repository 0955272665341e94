"""Wishes of the user as a new problem: pins, forbidden devices and memory limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from moirai_tf.errors import MoiraiError, near_names
from moirai_tf.placement.problem import Device, Operator, Problem
from moirai_tf.placement.validation import require_valid

_PIN = "pin='regex=/device:CPU:1'; moirai_inspect lists the operators of a model"
_MOST = 5
"""Collisions that one error spells out."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One reason why an operator cannot be on every device."""

    operator: int
    devices: frozenset[int]
    """Where it still can be."""
    reason: str
    """Part of a sentence, as in `pin 'a=d0' holds 'a'`."""
    wish: str = ""
    """The user's wish behind it, as in `pin 'a=d0'`; empty if it is in the nature of things."""


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
        for operator, name, devices in pinned(problem, pin, [[o.name] for o in problem.operators]):
            yield Limit(operator, devices, f"pin {pin!r} holds {name!r}", f"pin {pin!r}")


def pinned(
    problem: Problem, pin: str, names: Sequence[Sequence[str]]
) -> list[tuple[int, str, frozenset[int]]]:
    """(operator, its first name that matches, devices) of all that a pin holds.

    Args:
      problem: what is placed.
      pin: `regex=device`.
      names: for each operator, the names that the regex is searched in.

    Raises:
      MoiraiError: the pin is not of that form, or names no device or no operator.
    """
    pattern, _, name = pin.rpartition("=")
    if not pattern or not name:
        raise _refusal(f"pin {pin!r}: it is not regex=device", _PIN)
    devices = frozenset({device_index(problem, name, f"pin {pin!r}")})
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise _refusal(f"pin {pin!r}: its regular expression is broken: {error}", _PIN) from error
    found = [
        (operator, first, devices)
        for operator, known in enumerate(names)
        if (first := next(filter(regex.search, known), None)) is not None
    ]
    if not found:
        near = near_names(pattern, (name for known in names for name in known))
        raise _refusal(
            f"pin {pin!r}: it matches no operator{f'; near are {near}' if near else ''}", _PIN
        )
    return found


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


def _refusal(rule: str, form: str) -> MoiraiError:
    return MoiraiError(
        rule,
        why="a wish that has no effect would go unnoticed",
        fix=f"give {form}",
    )


def check_collisions(problem: Problem, limits: Iterable[Limit]) -> None:
    """Refuses limits that leave an operator, or what must share its device, without one.

    Args:
      problem: operators with the devices that can run them, before any wish.
      limits: wishes, and reasons for what the problem itself rules out.

    Raises:
      MoiraiError: naming the limits that collide, and what to give up.
    """
    of_unit: dict[int, list[Limit]] = {}
    for limit in limits:
        of_unit.setdefault(problem.unit_of[limit.operator], []).append(limit)
    everywhere = frozenset(range(len(problem.devices)))
    collisions: dict[tuple[str, ...], tuple[str, str]] = {}
    for unit, given in sorted(of_unit.items()):
        known = _distinct([*given, *_natural(problem, unit, given)])
        if not _left(everywhere, known):
            core = _fewest(everywhere, known)
            key = tuple(limit.wish or limit.reason for limit in core)
            collisions.setdefault(key, _told(problem, unit, core, known))
    if not collisions:
        return
    told = list(collisions.values())
    more = f"\n  and {len(told) - _MOST} more" if len(told) > _MOST else ""
    raise MoiraiError(
        "\n  ".join(rule for rule, _ in told[:_MOST]) + more,
        why="an operator runs on one device, together with what is fused or colocated with it",
        fix="; ".join(dict.fromkeys(fix for _, fix in told[:_MOST])),
    )


def _natural(problem: Problem, unit: int, given: Sequence[Limit]) -> Iterator[Limit]:
    """What the problem rules out and no limit gives a reason for."""
    reasoned = {limit.operator for limit in given if not limit.wish}
    for operator in problem.units[unit]:
        times = problem.operators[operator].compute_ns
        devices = frozenset(k for k, time in enumerate(times) if time is not None)
        if operator not in reasoned and len(devices) < len(times):
            names = problem.device_names(sorted(devices)) or "no device"
            name = problem.operators[operator].name
            yield Limit(operator, devices, f"{name!r} can run only on {names}")


def _distinct(limits: Iterable[Limit]) -> list[Limit]:
    """One limit of those that say the same; the nature of things first, as it cannot be changed."""
    first: dict[tuple[str, frozenset[int]], Limit] = {}
    for limit in sorted(limits, key=lambda limit: bool(limit.wish)):
        first.setdefault((limit.wish, limit.devices), limit)
    return list(first.values())


def _left(devices: frozenset[int], limits: Iterable[Limit]) -> frozenset[int]:
    return devices.intersection(*(limit.devices for limit in limits))


def _fewest(everywhere: frozenset[int], limits: Sequence[Limit]) -> list[Limit]:
    """Limits of which none can be left out without leaving a device."""
    natural = [limit for limit in limits if not limit.wish]
    core = natural if not _left(everywhere, natural) else list(limits)
    for limit in list(core):
        rest = [other for other in core if other is not limit]
        if not _left(everywhere, rest):
            core = rest
    return core


def _told(
    problem: Problem, unit: int, core: Sequence[Limit], known: Sequence[Limit]
) -> tuple[str, str]:
    """What collides, and what to do about it."""
    members = problem.units[unit]
    sharing = ", which must share one" if len(members) > 1 else ""
    names = problem.operator_names(members)
    rule = f"no device is left for {names}{sharing}: {'; '.join(limit.reason for limit in core)}"
    wishes = list(dict.fromkeys(limit.wish for limit in core if limit.wish))
    if not wishes:
        return rule, "give the cluster a device that can run all of it"
    everywhere = frozenset(range(len(problem.devices)))
    ways = []
    for wish in wishes:
        left = _left(everywhere, [limit for limit in known if limit.wish != wish])
        if left:
            ways.append(f"{wish} (then {problem.device_names(sorted(left))} can run it)")
    return rule, f"leave out {' or '.join(ways) or ' and '.join(wishes)}"

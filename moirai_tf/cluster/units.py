"""Sizes, durations and bandwidths as people write them, converted exactly both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

BYTES: Mapping[str, Fraction] = {
    "B": Fraction(1),
    "KB": Fraction(10**3),
    "MB": Fraction(10**6),
    "GB": Fraction(10**9),
    "TB": Fraction(10**12),
    "KiB": Fraction(2**10),
    "MiB": Fraction(2**20),
    "GiB": Fraction(2**30),
    "TiB": Fraction(2**40),
}
NANOSECONDS: Mapping[str, Fraction] = {
    "ns": Fraction(1),
    "us": Fraction(10**3),
    "ms": Fraction(10**6),
    "s": Fraction(10**9),
}
BYTES_PER_S: Mapping[str, Fraction] = {
    **{f"{unit}/s": size for unit, size in BYTES.items()},
    "Mbit/s": Fraction(10**6, 8),
    "Gbit/s": Fraction(10**9, 8),
}

_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z/]+)\s*")


def parse(text: str, units: Mapping[str, Fraction]) -> int:
    """`16 GB`, `20 us` or `12.5 GB/s` in the base unit, rounded to a whole number.

    Raises:
      ValueError: saying what is wrong with the text.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        raise ValueError(f"{text!r} is not a number of 0 or more and one of {', '.join(units)}")
    return round(Fraction(match[1]) * units[match[2]])


def show(value: int, units: Mapping[str, Fraction]) -> str:
    """The value in the largest unit that divides it; `parse` gives the value back."""
    whole = [unit for unit, size in units.items() if value % size == 0]
    unit = max(whole, key=lambda unit: units[unit] if value else -units[unit])
    return f"{value // units[unit]} {unit}"


def milliseconds(time_ns: int) -> str:
    """Nanoseconds as text in milliseconds."""
    return f"{time_ns / 1e6:.3f} ms"


def megabytes(nbytes: int) -> str:
    """Bytes as text in megabytes (10^6 bytes)."""
    return f"{nbytes / 1e6:.1f} MB"

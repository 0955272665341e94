"""The corpus: small functions over many operators, as models of TensorFlow 1 and 2."""

from __future__ import annotations

from tests.corpus import arrays, calls, flow, media, numeric, text
from tests.corpus.entry import ENTRIES, Entry

MODULES = (arrays, calls, flow, media, numeric, text)

CASES: tuple[tuple[str, str], ...] = tuple(
    (name, flavour) for name, known in ENTRIES.items() for flavour in known.flavours
)
"""Every model: (function, flavour)."""

FEW: tuple[tuple[str, str], ...] = tuple(
    (name, known.flavours[i % len(known.flavours)])
    for i, (name, known) in enumerate(list(ENTRIES.items())[::2])
)
"""Every other function once, the flavours in turn."""

__all__ = ["CASES", "ENTRIES", "FEW", "Entry"]

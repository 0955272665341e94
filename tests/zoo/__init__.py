"""The model zoo of tests, demo and benchmarks: real SavedModels, weights randomised from a seed."""

from __future__ import annotations

from tests.zoo import applications, layers, modules, tf1, transformers
from tests.zoo.applications import application
from tests.zoo.entry import ZooEntry

ZOO: dict[str, ZooEntry] = {
    **applications.ENTRIES,
    **transformers.ENTRIES,
    **layers.ENTRIES,
    **modules.ENTRIES,
    **tf1.ENTRIES,
}
"""Every model by name."""

SMALL: tuple[str, ...] = tuple(name for name, known in ZOO.items() if known.small)
"""The models that every run of the tests can build."""

LARGE: tuple[str, ...] = tuple(name for name in ZOO if name not in SMALL)
"""The models that belong in slow tests and benchmarks."""

__all__ = ["LARGE", "SMALL", "ZOO", "ZooEntry", "application"]

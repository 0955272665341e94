"""What is known of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PaperModel:
    """A model that is built without weights."""

    make: Callable[[], Any]
    """Gives a Keras model whose inputs have full shapes."""
    source: str
    """Where its configuration was published."""
    dtype: str = "float32"

    def build(self, path: Path) -> None:
        """Writes the SavedModel."""
        from laboratory.graph_only import write_graph_only

        write_graph_only(self.make, path, self.dtype)

"""Prints a golden file: `python -m tests.golden NAME > tests/golden/NAME.txt`."""

from __future__ import annotations

import sys
from pathlib import Path

from moirai_tf.graph.graph import dump_graph
from tests.saved_models import graph_of

FOLDER = Path(__file__).parent


def render(name: str) -> str:
    """The command, and the flat graph of `tests/golden/NAME` for a batch of two."""
    command = f"# python -m tests.golden {name} > tests/golden/{name}.txt"
    return f"{command}\n{dump_graph(graph_of(FOLDER / name, batch_size=2))}"


if __name__ == "__main__":
    sys.stdout.write(render(sys.argv[1]))

"""What Grappler still fuses after a placement, with and without coarsening: a table.

python -m benchmarks.fusion_grappler --models=inception_v3,bert
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags

from tests import grappler
from tests.zoo import ZOO

_MODELS = flags.DEFINE_list(
    "models",
    [
        "conv_net_export",
        "inception_v3",
        "resnet50",
        "densenet121",
        "efficientnet_b0",
        "nasnet_mobile",
        "bert",
    ],
    "models of tests/zoo",
)
_DEVICES = flags.DEFINE_integer("devices", 2, "CPU devices that operators are spread over")

_HEADER = (
    "| model | placement | placed units | nodes after Grappler | fused by Grappler "
    "| lost | not where placed |\n|---|---|---|---|---|---|---|"
)


def main(_: list[str]) -> None:
    print(_HEADER)
    for name in _MODELS.value:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / name
            ZOO[name].build(directory)
            for line in rows(name, directory, _DEVICES.value):
                print(line, flush=True)


def rows(name: str, directory: Path, devices: int) -> Iterator[str]:
    """The table's lines for one model."""
    graph = grappler.flat_graph(directory, ZOO[name].inputs())
    weights = grappler.variable_values(directory, graph)
    single = grappler.optimise(graph, weights, [0] * len(graph))
    for kind, (units, device_of) in grappler.placements(graph, devices).items():
        placed = grappler.optimise(graph, weights, device_of)
        yield (
            f"| {name} | {kind} | {units} | {placed.computing} | {len(placed.fused)} "
            f"| {len(placed.lost(single))} | {placed.moved} |"
        )


if __name__ == "__main__":
    app.run(main)

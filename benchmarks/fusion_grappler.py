"""What Grappler still fuses after a placement, with and without coarsening: a table.

python -m benchmarks.fusion_grappler --models=inception_v3,bert

With --gpu, what it fuses on a virtual GPU, and what our rules say of one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags

from moirai_tf.fusion.coarsen import coarsen
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

_GPU = flags.DEFINE_bool("gpu", False, "compare a virtual GPU with the rules for GPUs")

_GPU_HEADER = (
    "| model | fused on a CPU | fused on a GPU | by our rules | only Grappler | only our rules |\n"
    "|---|---|---|---|---|---|"
)
_HEADER = (
    "| model | placement | placed units | nodes after Grappler | fused by Grappler "
    "| lost | not where placed |\n|---|---|---|---|---|---|---|"
)


def main(_: list[str]) -> None:
    print(_GPU_HEADER if _GPU.value else _HEADER)
    for name in _MODELS.value:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / name
            ZOO[name].build(directory)
            lines = (
                gpu_row(name, directory) if _GPU.value else rows(name, directory, _DEVICES.value)
            )
            for line in lines:
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


def gpu_row(name: str, directory: Path) -> Iterator[str]:
    """Fused operators of Grappler's on a virtual GPU, and ours, by the names they may keep."""
    graph = grappler.flat_graph(directory, ZOO[name].inputs())
    weights = grappler.variable_values(directory, graph)
    on_cpu = grappler.optimise(graph, weights, [0] * len(graph))
    on_gpu = grappler.optimise_on_gpu(graph, weights)
    fused = {n.name for n in on_gpu.graph_def.node if n.op.startswith("_Fused")}
    left = on_gpu.working.keys()
    kernels = [{root, *others} for root, others in
               grappler.kernels_of(coarsen(graph)[0], "GPU").items()]  # fmt: skip
    ours = [kernel for kernel in kernels if len(kernel & left) == 1]
    yield (
        f"| {name} | {len(on_cpu.fused)} | {len(fused)} | {len(kernels)} "
        f"| {len(fused.difference(*kernels))} | {len(kernels) - len(ours)} |"
    )


if __name__ == "__main__":
    app.run(main)

"""Places every model of the zoo at random on two and on four devices and proves the result.

Prints a Markdown table: parity of values and proof of placement and transfers, per model. The
placement is the worst case for rewriting: runs of about four fused operators, dealt out at random.

    python -m benchmarks.model_table [--models=bert,tf1] [--devices=2,4]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from moirai_tf import MoiraiError, MoiraiItem
from moirai_tf.pipeline import need
from tests.scatter import logical_cluster, scatter_pipeline
from tests.zoo import ZOO

_MODELS = flags.DEFINE_list("models", [], "names in the zoo; all by default")
_DEVICES = flags.DEFINE_list("devices", ["2", "4"], "numbers of devices")

_HEAD = (
    "| model | devices | operators | fused | transfers planned | happened | weights moved "
    "| outputs equal to the bit | verdict |\n|---|---|---|---|---|---|---|---|---|"
)


def row(name: str, model: Path, output: Path, devices: int) -> str:
    """One line of the table."""
    pipeline = scatter_pipeline(ZOO[name], output, devices)
    try:
        item = pipeline.run(MoiraiItem(model, logical_cluster(devices)))
    except MoiraiError as error:
        return f"| {name} | {devices} | | | | | | | {error.rule.splitlines()[-1].strip()} |"
    report = need(item.report)
    exact = report.proofs[0]
    equal = sum(parity.bit_equal for parity in report.outputs)
    return (
        f"| {name} | {devices} | {len(need(item.graph))} | {len(need(item.coarse))} "
        f"| {exact.planned} | {exact.transfers + exact.kept} | {exact.planned_weights} "
        f"| {equal} of {len(report.outputs)} | proved |"
    )


def main(_: Sequence[str]) -> None:
    """Prints the table row by row."""
    print(_HEAD, flush=True)
    for name in _MODELS.value or ZOO:
        with tempfile.TemporaryDirectory() as directory:
            model = Path(directory) / "model"
            ZOO[name].build(model)
            for devices in map(int, _DEVICES.value):
                print(row(name, model, Path(directory) / f"placed{devices}", devices), flush=True)


if __name__ == "__main__":
    app.run(main)

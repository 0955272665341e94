"""Finds what every operator costs on every device and writes the cost table.

Example:
  moirai_profile --saved_model_dir=model --cluster=configs/two_local_cpus.yaml --output=costs.json
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from moirai_tf.cluster import read_cluster
from moirai_tf.cost import write_table
from moirai_tf.optimize import this_machine
from moirai_tf.passes import Import, Profile, Prune
from moirai_tf.pipeline import MoiraiItem, Pipeline, need

from . import _flags

_SAVED_MODEL_DIR = flags.DEFINE_string("saved_model_dir", None, "the model; only read")
_CLUSTER = flags.DEFINE_string(
    "cluster", None, "YAML file of devices and links; by default the devices of this machine"
)
_OUTPUT = flags.DEFINE_string("output", None, "cost table to write (JSON)")
flags.mark_flags_as_required(["saved_model_dir", "output"])
_flags.define(Import, Profile)


def main() -> None:
    """Profiles and writes the table."""
    cluster = read_cluster(_CLUSTER.value) if _CLUSTER.value else this_machine()
    pipeline = Pipeline((_flags.build(Import), Prune(), _flags.build(Profile)))
    item = pipeline.run(MoiraiItem(Path(_SAVED_MODEL_DIR.value), cluster))
    write_table(need(item.costs), _OUTPUT.value)
    print(
        f"costs of {len(need(item.graph))} operators on {len(cluster.devices)} devices: "
        f"{_OUTPUT.value}"
    )


def entry() -> None:
    """The command `moirai_profile`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

"""Finds what every operator costs on every device and writes the cost table.

Example:
  moirai_profile --saved_model_dir=model --cluster=configs/two_local_cpus.yaml --output=costs.json
  moirai_profile --saved_model_dir=model --cluster=cluster.yaml --costs=costs.json \
    --refresh=changed --output=costs.json
  moirai_profile --merge=one.json --merge=other.json --output=costs.json
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from moirai_tf.cluster import read_cluster
from moirai_tf.cost.table import CostTable
from moirai_tf.cost.table_files import merged, read_table, table_text, write_table
from moirai_tf.machine import this_machine
from moirai_tf.passes import Fuse, Import, Profile, Prune
from moirai_tf.pipeline import MoiraiItem, Pipeline, need

from . import _flags

_SAVED_MODEL_DIR = flags.DEFINE_string("saved_model_dir", None, "the model; only read")
_CLUSTER = flags.DEFINE_string(
    "cluster", None, "YAML file of devices and links; by default the devices of this machine"
)
_MERGE = flags.DEFINE_multi_string(
    "merge", [], "cost tables to put together instead of profiling; the last one wins (repeatable)"
)
_OUTPUT = flags.DEFINE_string("output", None, "cost table to write (JSON)")
flags.mark_flag_as_required("output")
flags.register_validator(
    "saved_model_dir",
    lambda value: bool(value) != bool(_MERGE.value),
    message="give a model, or else tables to --merge",
)
_flags.define(Import, Fuse, Profile)


def main() -> None:
    """Profiles or merges, writes the table and says what is in it."""
    tables = [read_table(path) for path in _MERGE.value]
    table = merged(tables) if tables else _profiled()
    write_table(table, _OUTPUT.value)
    _flags.tell(
        f"{table_text(table)}\n{_OUTPUT.value}",
        {
            "operators": len(table.operators),
            "devices": table.devices,
            "links": table.links,
            "step": table.step,
            "output": _OUTPUT.value,
        },
    )


def _profiled() -> CostTable:
    cluster = read_cluster(_CLUSTER.value) if _CLUSTER.value else this_machine()
    passes = (_flags.build(Import), Prune(), _flags.build(Fuse), _flags.build(Profile))
    pipeline = Pipeline(passes)
    return need(pipeline.run(MoiraiItem(Path(_SAVED_MODEL_DIR.value), cluster)).costs)


def entry() -> None:
    """The command `moirai_profile`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

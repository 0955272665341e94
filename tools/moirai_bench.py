"""Measures placed models on their cluster and compares with what their plans predict.

Example:
  moirai_bench --saved_model_dir=model --placed_dir=placed --cluster=cluster.yaml --trace=trace.json
"""

from __future__ import annotations

from absl import flags

from moirai_tf.bench import BenchOptions, bench
from moirai_tf.cluster import read_cluster
from moirai_tf.model.options import OpLibraryOptions

from . import _flags

_SAVED_MODEL_DIR = flags.DEFINE_string("saved_model_dir", None, "the original model; only read")
_PLACED_DIR = flags.DEFINE_multi_string(
    "placed_dir", None, "a placed model; only read (repeatable: all run side by side)"
)
_CLUSTER = flags.DEFINE_string(
    "cluster",
    None,
    "YAML file of the devices with the addresses of their TensorFlow servers; by default the "
    "plan's devices are logical CPUs of this process",
)
flags.mark_flags_as_required(["saved_model_dir", "placed_dir"])
_flags.define(BenchOptions, OpLibraryOptions)


def main() -> None:
    """Measures, prints the table and writes the trace."""
    cluster = read_cluster(_CLUSTER.value) if _CLUSTER.value else None
    options = _flags.build(BenchOptions)
    report = bench(_SAVED_MODEL_DIR.value, _PLACED_DIR.value, cluster, options)
    trace = f"\ntrace: {options.trace}" if options.trace else ""
    _flags.tell(f"{report}{trace}", {**report.facts, "trace": options.trace or None})


def entry() -> None:
    """The command `moirai_bench`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

"""Places the operators of a SavedModel on the devices of a cluster and writes the placed model.

Example:
  moirai_optimize --saved_model_dir=model --output_dir=placed --cluster=configs/two_local_cpus.yaml
"""

from __future__ import annotations

from absl import flags

from moirai_tf.optimize import optimize
from moirai_tf.passes import PASSES
from moirai_tf.pipeline import Pipeline

from . import _flags

_SAVED_MODEL_DIR = flags.DEFINE_string("saved_model_dir", None, "the model; it is never modified")
_CLUSTER = flags.DEFINE_string(
    "cluster", None, "YAML file of devices and links; by default the devices of this machine"
)
_VERIFY = flags.DEFINE_bool("verify", True, "run and prove the placed model before it is put there")
flags.mark_flag_as_required("saved_model_dir")
_flags.define(*PASSES)


def main() -> None:
    """Runs the pipeline and prints its summary."""
    pipeline = Pipeline(tuple(_flags.build(step) for step in PASSES))
    if not _VERIFY.value:
        pipeline = pipeline.without("verify")
    summary = optimize(_SAVED_MODEL_DIR.value, cluster=_CLUSTER.value, pipeline=pipeline)
    _flags.tell(summary.text(verbose=_flags.VERBOSE.value), summary.facts)


def entry() -> None:
    """The command `moirai_optimize`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

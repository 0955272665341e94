"""Proves that a placed model computes the same as the original and runs where its plan says.

Example:
  moirai_verify --saved_model_dir=model --placed_dir=placed
"""

from __future__ import annotations

from absl import flags

from moirai_tf.model.options import OpLibraryOptions
from moirai_tf.passes import Verify
from moirai_tf.verify import verify

from . import _flags

_SAVED_MODEL_DIR = flags.DEFINE_string("saved_model_dir", None, "the original model; only read")
_PLACED_DIR = flags.DEFINE_string("placed_dir", None, "the placed model; only read")
_CLUSTER = flags.DEFINE_string(
    "cluster", None, "YAML file of the plan's cluster; with addresses the workers run the model too"
)
flags.mark_flags_as_required(["saved_model_dir", "placed_dir"])
_flags.define(Verify, OpLibraryOptions)


def main() -> None:
    """Verifies and prints the report."""
    options = _flags.build(Verify)
    report = verify(_SAVED_MODEL_DIR.value, _PLACED_DIR.value, options, _CLUSTER.value)
    _flags.tell(str(report), {"ok": report.ok, "report": report})


def entry() -> None:
    """The command `moirai_verify`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

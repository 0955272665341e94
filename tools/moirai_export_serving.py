"""Lays a placed model out for TensorFlow Serving: the next version, and the server's files.

Example:
  moirai_export_serving --placed_dir=placed --base_path=models/ranker
"""

from __future__ import annotations

from absl import flags

from moirai_tf.export.options import ServingOptions
from moirai_tf.model.options import OpLibraryOptions

from . import _flags

_PLACED_DIR = flags.DEFINE_string("placed_dir", None, "the placed model; only read")
_BASE_PATH = flags.DEFINE_string(
    "base_path", None, "directory of the model's versions; its last part is the model's name"
)
flags.mark_flags_as_required(["placed_dir", "base_path"])
_flags.define(ServingOptions, OpLibraryOptions)


def main() -> None:
    """Writes the version and prints what was done."""
    from moirai_tf.export.serving import export_serving

    done = export_serving(_PLACED_DIR.value, _BASE_PATH.value, _flags.build(ServingOptions))
    _flags.tell(str(done), {"export": done})


def entry() -> None:
    """The command `moirai_export_serving`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

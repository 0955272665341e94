"""Takes the plan out of a placed model: every device is what it was before.

Example:
  moirai_strip --placed_dir=placed --output_dir=original
"""

from __future__ import annotations

from absl import flags

from moirai_tf.model.options import OpLibraryOptions
from moirai_tf.rewrite.directory import strip

from . import _flags

_PLACED_DIR = flags.DEFINE_string("placed_dir", None, "the placed model; only read")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "directory to write")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace the output directory if it exists")
flags.mark_flags_as_required(["placed_dir", "output_dir"])
_flags.define(OpLibraryOptions)


def main() -> None:
    """Writes the stripped model."""
    strip(_PLACED_DIR.value, _OUTPUT_DIR.value, overwrite=_OVERWRITE.value)
    _flags.tell(f"without placement: {_OUTPUT_DIR.value}", {"output": _OUTPUT_DIR.value})


def entry() -> None:
    """The command `moirai_strip`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

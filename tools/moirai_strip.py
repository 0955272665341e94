"""Takes the plan out of a placed model: every device is what it was before.

Example:
  moirai_strip --placed_dir=placed --output_dir=original
"""

from __future__ import annotations

from absl import flags

from moirai_tf.model.options import OpLibraryOptions
from moirai_tf.passes import Rewrite
from moirai_tf.rewrite.directory import strip

from . import _flags

_PLACED_DIR = flags.DEFINE_string("placed_dir", None, "the placed model; only read")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "directory to write")
flags.mark_flags_as_required(["placed_dir", "output_dir"])
_flags.define(Rewrite, OpLibraryOptions, skip=("output_dir",))


def main() -> None:
    """Writes the stripped model."""
    options = _flags.build(Rewrite, output_dir=_OUTPUT_DIR.value)
    strip(_PLACED_DIR.value, options.output_dir, overwrite=options.overwrite)
    print(f"without placement: {options.output_dir}")


def entry() -> None:
    """The command `moirai_strip`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

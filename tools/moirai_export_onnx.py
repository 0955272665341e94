"""Exports a placed model to ONNX: the whole, and parts that run on one device each.

Example:
  moirai_export_onnx --placed_dir=placed --output_dir=exported
"""

from __future__ import annotations

from absl import flags

from moirai_tf.export.options import OnnxOptions
from moirai_tf.model.options import OpLibraryOptions

from . import _flags

_PLACED_DIR = flags.DEFINE_string("placed_dir", None, "the placed model; only read")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "directory to make")
flags.mark_flags_as_required(["placed_dir", "output_dir"])
_flags.define(OnnxOptions, OpLibraryOptions)


def main() -> None:
    """Writes the models and prints how they compare."""
    from moirai_tf.export.onnx import export_onnx

    done = export_onnx(_PLACED_DIR.value, _OUTPUT_DIR.value, _flags.build(OnnxOptions))
    _flags.tell(str(done), {"export": done})


def entry() -> None:
    """The command `moirai_export_onnx`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

"""Renames the devices of a placed model, for a machine or a cluster with other names.

Example:
  moirai_remap --placed_dir=placed --output_dir=moved --device=/device:CPU:1=/device:GPU:0
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from moirai_tf.errors import MoiraiError
from moirai_tf.model.options import OpLibraryOptions
from moirai_tf.rewrite.directory import remap

from . import _flags

_PLACED_DIR = flags.DEFINE_string("placed_dir", None, "the placed model; only read")
_DEVICE = flags.DEFINE_multi_string(
    "device", None, "old=new: a device of the plan and its new name"
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "directory to write")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace the output directory if it exists")
flags.mark_flags_as_required(["placed_dir", "output_dir", "device"])
_flags.define(OpLibraryOptions)


def main() -> None:
    """Writes the model with other device names."""
    names = _names(_DEVICE.value)
    plan = remap(_PLACED_DIR.value, _OUTPUT_DIR.value, names, overwrite=_OVERWRITE.value)
    devices = [device.name for device in plan.devices]
    _flags.tell(
        f"devices {', '.join(devices)}: {_OUTPUT_DIR.value}",
        {"devices": devices, "output": _OUTPUT_DIR.value},
    )


def _names(pairs: Sequence[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for pair in pairs:
        old, separator, new = pair.partition("=")
        if not separator or not old or not new or old in names:
            raise MoiraiError(
                f"--device={pair!r} does not rename a device once",
                why="every device of the plan has one name",
                fix="write --device=/device:CPU:1=/device:GPU:0",
            )
        names[old] = new
    return names


def entry() -> None:
    """The command `moirai_remap`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

"""The demo: builds a real branching model, places it on a heterogeneous cluster, proves it.

InceptionV3 with randomised weights; `make demo` runs this with everything it needs installed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from absl import flags

import moirai_tf
from tests.zoo import application

from . import _flags

_WORK_DIR = flags.DEFINE_string("work_dir", "build/demo", "where model and output go")
_CLUSTER = flags.DEFINE_string("cluster", "configs/four_local_cpus.yaml", "cluster file")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 299, "height and width of the images")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "images of one inference")

_NEXT_STEPS = """
Load it:
  import moirai_tf
  moirai_tf.configure_logical_cpus({count})  # before TensorFlow is used
  placed = moirai_tf.load("{output}")
  placed.signatures["serving_default"]

Serve it (<models>/1 is a copy of {output}):
  tensorflow_model_server --model_base_path=<models> \\
    --tensorflow_session_config_file={output}/assets.extra/session_config.pbtxt"""


def main() -> None:
    """Builds, optimises, verifies and prints."""
    work = Path(_WORK_DIR.value)
    model = work / "inception_v3"
    if model.exists():
        shutil.rmtree(model)
    work.mkdir(parents=True, exist_ok=True)
    print(f"building InceptionV3 with randomised weights in {model}", flush=True)
    application("InceptionV3", _IMAGE_SIZE.value).build(model)
    summary = moirai_tf.optimize(
        model,
        work / "inception_v3_placed",
        _CLUSTER.value,
        batch_size=_BATCH_SIZE.value,
        overwrite=True,
    )
    print(summary)
    print(_NEXT_STEPS.format(count=len(summary.devices), output=summary.output))


def entry() -> None:
    """The demo as a command."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

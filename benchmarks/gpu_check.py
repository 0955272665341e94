"""Whether a GPU says of itself what moirai_tf expects: to be run once on real hardware.

What CUPTI records, what TensorFlow makes of it, and how a host behaves beside a GPU was read in
TensorFlow's source and tried on emulated GPUs. This runs a small model on every GPU there is and
prints, line by line, what agrees and what does not. Exit status 1 if anything does not.

    python -m benchmarks.gpu_check                  # the GPUs of this machine
    python -m benchmarks.gpu_check --emulated=gpus  # emulated ones; needs a C compiler
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags, logging

from benchmarks.emulated_clusters import emulated_cluster
from benchmarks.gpu_checks import check
from laboratory import emulated_gpu
from moirai_tf.runtime.child import Child

_EMULATED = flags.DEFINE_string("emulated", "", "gpu, gpus or equal_gpus: emulated GPUs instead")


def main(_: Sequence[str]) -> None:
    """Prints a line for every expectation."""
    logging.set_verbosity(logging.WARNING)
    kind = _EMULATED.value
    environment = emulated_gpu.environment(emulated_cluster(kind)) if kind else {}
    child = Child("the check", timeout_s=3600, longer="look why", environment=environment)
    lines = child.call(check)
    for line in lines:
        verdict = "ok " if line.agrees else "NOT"
        print(f"{verdict}  {line.what}: {line.found} (expected {line.expected})")
    sys.exit(not all(line.agrees for line in lines))


if __name__ == "__main__":
    app.run(main)

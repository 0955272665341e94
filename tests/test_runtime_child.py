"""Child processes: which GPUs they have, and what they say went wrong."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextvars import Context
from pathlib import Path

import pytest

from laboratory import emulated_gpu
from moirai_tf.cluster import read_cluster
from moirai_tf.errors import MoiraiError
from moirai_tf.runtime.child import Child
from tests.local_clusters import gone, status

ROOT = Path(__file__).resolve().parent.parent
CHILD = Child("a test", timeout_s=600.0, longer="look why")

DIVIDED = """
import sys
import tensorflow as tf
from moirai_tf import MoiraiError
from moirai_tf.runtime.child import Child, without_gpus
from moirai_tf.runtime.devices import local_devices
from tests.test_runtime_child import CHILD

gpus = tf.config.list_physical_devices("GPU")
if sys.argv[1] == "hidden":
    tf.config.set_visible_devices([gpus[3], gpus[1]], "GPU")
else:
    part = tf.config.LogicalDeviceConfiguration
    tf.config.set_logical_device_configuration(gpus[1], [part(100), part(200)])
print([device.model for device in local_devices()])
try:
    CHILD.call(local_devices)
except MoiraiError as error:
    print(error.rule)
CHILD.environment.update(without_gpus([]))
print([device.name for device in CHILD.call(local_devices)])
"""


@pytest.mark.parametrize(
    ("how", "models"), [("hidden", ["B", "D"]), ("divided", ["A", "B", "B", "C", "D"])]
)
def test_gpus_that_are_not_whole(how: str, models: list[str]) -> None:
    """A child could not have them, unless it needs none."""
    cluster = read_cluster(ROOT / "configs" / "emulated_four_gpus.yaml")
    done = subprocess.run(
        [sys.executable, "-c", DIVIDED, how],
        cwd=ROOT,
        env={**os.environ, **emulated_gpu.environment(cluster)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        str(["", *(f"Emulated {model}" for model in models)]),
        "a test cannot have the GPUs that tf.config hides or divides here",
        "['/device:CPU:0']",
    ]


def long_answer() -> bytes:
    """More than its process may write."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    return bytes(2000)


def test_an_answer_that_cannot_be_written() -> None:
    with pytest.raises(MoiraiError, match=r"a test cannot use a file: .*File too large") as caught:
        CHILD.call(long_answer)
    assert "free space there" in caught.value.fix
    assert "TMPDIR" in caught.value.why


def nursery_of_this_child() -> int:
    """Its attendant's parent."""
    return int(status(os.getppid(), "PPid"))


def test_children_share_a_nursery_that_has_what_they_inherit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = (CHILD.call(nursery_of_this_child) for _ in range(2))
    assert one == other != os.getpid()
    monkeypatch.setenv("MOIRAI_TEST", "changed")
    assert CHILD.call(nursery_of_this_child) != one
    assert CHILD.call(os.getenv, "MOIRAI_TEST") == "changed"
    alone = Context().run(CHILD.call, nursery_of_this_child)
    assert gone(alone), "without a block a nursery ends with its child"
    assert not gone(one)

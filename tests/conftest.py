"""What all tests share: a quiet TensorFlow and models of the zoo, built once per run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from moirai_tf.bench.local_cluster import LocalCluster
    from moirai_tf.fusion.coarse import CoarseGraph
    from moirai_tf.graph.graph import Graph
    from tests.examiner import Examiner

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow switches oneDNN on by the processor's instructions; what is fused must not differ.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


_LONG = {
    *("gpu_host", "verify_cluster", "export_serving", "verify_models", "connect", "cost_workers"),
    *("end_to_end", "placement_objective", "placement_local_search", "op_libraries"),
    *("emulated_gpu", "export_onnx", "runtime_child", "moirai_cluster", "runtime_devices"),
}
"""Files that take longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that no worker is left with one when the other has nothing."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in _LONG)


@pytest.fixture(scope="session")
def zoo_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`zoo_dir(name)` is the SavedModel directory of that entry; tests only read it.

    A model is built at its first use, by whichever worker asks first.
    """
    from tests.zoo import ZOO  # Here, so that tests without TensorFlow start at once.

    folder = tmp_path_factory.getbasetemp()
    root = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "zoo"
    root.mkdir(exist_ok=True)

    def built(name: str) -> Path:
        path = root / name
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                partial = root / f"{name}.partial"
                ZOO[name].build(partial)
                partial.rename(path)
        return path

    return built


@pytest.fixture(scope="session", autouse=True)
def _one_nursery() -> Iterator[None]:
    """Child processes of all tests start at once, without importing TensorFlow again."""
    from moirai_tf.runtime.nursery import nursery

    with nursery(ignored=["PYTEST_CURRENT_TEST"]):
        yield


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalCluster]:
    """Two equal workers of a whole core, which no test of the file breaks for good."""
    from moirai_tf.bench.local_cluster import local_cluster

    with local_cluster([1.0, 1.0]) as running:
        yield running


@pytest.fixture(scope="session")
def examiner() -> Iterator[Examiner]:
    """`examiner(model, seed)` deals a model's operators out over two devices and verifies it."""
    from tests.examiner import Examiner

    found = Examiner()
    yield found
    found.close()


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The flat graph of three operators in turn, `tests.cost_cases.tanh_sin_cos`."""
    from tests.cost_cases import tanh_sin_cos

    return tanh_sin_cos(tmp_path_factory.mktemp("chain") / "m")


@pytest.fixture(scope="session")
def coarse(chain: Graph) -> CoarseGraph:
    """The same, nothing fused."""
    from moirai_tf.fusion.coarsen import coarsen
    from moirai_tf.fusion.options import FuseOptions

    return coarsen(chain, FuseOptions(coarsen=False), ["CPU"])[0]

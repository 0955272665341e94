"""Verification on real workers: TensorFlow servers on this machine, whole and broken on purpose."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from moirai_tf import Cluster, MoiraiError, optimize
from moirai_tf.bench.local_cluster import LocalCluster, local_cluster
from moirai_tf.rewrite.plan_file import PLAN_FILE, plan_to_json, read_plan
from moirai_tf.verify import VerifyOptions, VerifyReport, inspect_placed, verify
from tests.placements import place
from tests.saved_models import digest, edited, save_function

ZooDir = Callable[[str], Path]

ONE, TWO = (f"/job:worker/replica:0/task:{i}/device:CPU:0" for i in range(2))
OFF = VerifyOptions(loaders=("cluster",), grappler="off")
RUN = "cluster, Grappler off"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """y = sin(tanh(x) @ weights), from the sine on with worker two; and its placed copy."""
    folder = tmp_path_factory.mktemp("pair")
    weights = tf.Variable(np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([2, 8], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.sin(tf.tanh(x) @ weights)}

    source = save_function(folder / "model", serve, weights=weights)
    plan = place(source, folder / "placed", placement={}, devices=(ONE, TWO))
    sine = {name: TWO for name in plan.placement if name.endswith("/Sin")}
    place(source, folder / "placed", placement=sine, devices=(ONE, TWO), overwrite=True)
    return source, folder / "placed"


def _texts(report: VerifyReport) -> list[str]:
    return [f.text for f in report.findings if f.text.startswith("cluster")]


@pytest.mark.parametrize("name", ["module", "lstm", "tf1", "tied_embeddings"])
def test_scattered_models_run_where_they_should(
    name: str, zoo_dir: ZooDir, tmp_path: Path, workers: LocalCluster
) -> None:
    """Convolutions, loops, a TF1 graph and copied constants, all over both workers."""
    plan = place(zoo_dir(name), tmp_path / "placed", seed=3, devices=(ONE, TWO))
    report = verify(zoo_dir(name), tmp_path / "placed", OFF, workers.cluster)
    (proof,) = report.proofs
    assert proof.run == RUN
    assert proof.planned == len([t for t in plan.transfers if t.port >= 0]) > 0
    assert proof.transfers + proof.replicated == proof.planned
    # An operator that oneDNN merged into its reader does not bear its own name in the statistics.
    assert 0 <= proof.operators - proof.executed <= 1
    assert all(parity.bit_equal for parity in report.outputs)


def test_addresses_are_used_by_default(pair: tuple[Path, Path], workers: LocalCluster) -> None:
    report = verify(*pair, cluster=workers.cluster)
    runs = [proof.run for proof in report.proofs]
    assert runs[-2:] == [RUN, "cluster, Grappler on"]
    assert len(runs) == 6
    off = report.proofs[-2]
    assert (off.planned, off.transfers) == (2, 2)
    assert off.operators == off.executed


def test_a_plan_and_a_model_that_disagree(
    pair: tuple[Path, Path], tmp_path: Path, workers: LocalCluster
) -> None:
    """Both ways: the plan says another device for the sine, and the sine was moved."""
    plan = read_plan(pair[1])
    (sine,) = (name for name in plan.placement if name.endswith("/Sin"))

    def move(meta_graph: Any) -> None:
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                node.device = ONE if node.op == "Sin" else node.device

    moved = edited(pair[1], tmp_path / "moved", move)
    texts = _texts(inspect_placed(pair[0], moved, OFF, workers.cluster))
    assert f"{RUN}: operator {sine!r} (Sin) runs on {ONE}, planned on {TWO}" in texts
    assert any("is planned but does not happen" in text for text in texts)

    wrong = replace(plan, placement={**plan.placement, sine: ONE}, transfers=())
    copied = edited(pair[1], tmp_path / "wrong", lambda _: None)
    (copied / PLAN_FILE).write_text(plan_to_json(wrong), encoding="utf-8")
    texts = _texts(inspect_placed(pair[0], copied, OFF, workers.cluster))
    assert f"{RUN}: operator {sine!r} (Sin) runs on {TWO}, planned on {ONE}" in texts
    assert any("is not planned; read by" in text for text in texts)


def test_addresses_that_were_swapped(pair: tuple[Path, Path], workers: LocalCluster) -> None:
    one, two = workers.cluster.devices
    devices = (replace(one, address=two.address), replace(two, address=one.address))
    with pytest.raises(MoiraiError, match=r"worker /job:worker/replica:0/task:0 at .* is another"):
        verify(*pair, OFF, replace(workers.cluster, devices=devices))


def test_clusters_that_do_not_fit(pair: tuple[Path, Path], workers: LocalCluster) -> None:
    with pytest.raises(MoiraiError, match="no workers are known"):
        verify(*pair, OFF)
    one, _ = workers.cluster.devices
    with pytest.raises(MoiraiError, match=f"cluster 'small' has no '{TWO}'"):
        verify(*pair, OFF, Cluster("small", (one,)))


def test_a_model_that_no_session_can_load(
    zoo_dir: ZooDir, tmp_path: Path, workers: LocalCluster
) -> None:
    """`tf.saved_model.save` of a Keras 3 model leaves variables out that a Session would need."""
    source = zoo_dir("conv_net_saved")
    place(source, tmp_path / "placed", placement={}, devices=(ONE, TWO))
    with pytest.raises(MoiraiError, match="no Session can run the original"):
        verify(source, tmp_path / "placed", OFF, workers.cluster)


def _blocking_model(folder: Path, fifo: Path) -> Path:
    """Writes more than a pipe holds, and so waits for somebody who reads it."""
    os.mkfifo(fifo)

    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.io.write_file(str(fifo), "a" * 100_000)]):
            return {"y": tf.sin(x)}

    return save_function(folder, serve)


@contextmanager
def _at_second_writing(fifo: Path, act: Callable[[], None]) -> Iterator[None]:
    """Acts while a worker writes; the original wrote before."""
    readers: list[int] = []

    def watch() -> None:
        fifo.read_bytes()
        readers.append(os.open(fifo, os.O_RDONLY))
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(10)
        for reader in readers:
            os.close(reader)
    assert readers


def _children() -> set[str]:
    files = Path("/proc/self/task").glob("*/children")
    return {pid for file in files for pid in file.read_text().split()}


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_worker_that_fails_during_a_step(how: str, tmp_path: Path) -> None:
    """It is named, no output appears, the input stays as it was, and no process is left."""
    source = _blocking_model(tmp_path / "model", tmp_path / "fifo")
    before = digest(source)
    with local_cluster([1.0, 1.0]) as local:
        devices = tuple(
            replace(d, frequency_mhz=1000, num_cores=1, memory_bytes_per_s=10**9)
            for d in local.cluster.devices
        )
        cluster = replace(local.cluster, devices=devices)
        children = _children()
        with (
            _at_second_writing(tmp_path / "fifo", lambda: getattr(local, how)(1)),
            pytest.raises(
                MoiraiError, match=r"worker /job:worker/replica:0/task:1 at .* does not answer"
            ),
        ):
            Context().run(  # without the nursery of the tests, as for a user
                optimize, source, tmp_path / "placed", cluster, loaders=("cluster",),
                grappler="off", step_timeout_s=2.0, source="analytical", solver="heft",
                pin=(f"WriteFile={TWO}",),
            )  # fmt: skip
        assert _children() == children
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "model"]
    assert digest(source) == before


def test_a_worker_that_is_missing(pair: tuple[Path, Path], workers: LocalCluster) -> None:
    one, two = workers.cluster.devices
    nobody = replace(workers.cluster, devices=(one, replace(two, address="localhost:1")))
    with pytest.raises(MoiraiError, match=r"worker .*/task:1 at localhost:1 does not answer"):
        verify(*pair, OFF, nobody)

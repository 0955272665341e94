"""Placed models called on real servers, which are killed, paused, restarted and mixed up."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import moirai_tf
from laboratory.emulated_gpu import servers
from moirai_tf import Cluster, MoiraiError
from moirai_tf.bench.local_cluster import (
    LocalCluster,
    guarded,
    local_cluster,
    start_workers,
)
from moirai_tf.cluster import read_cluster, write_cluster
from moirai_tf.rewrite.plan_file import PLAN_FILE, plan_to_json
from moirai_tf.runtime.identity import worker_devices
from tests.placements import place
from tests.saved_models import edited, save_function
from tests.zoo import ZOO

ZooDir = Callable[[str], Path]

ROOT = Path(__file__).resolve().parent.parent
ONE, TWO = (f"/job:worker/replica:0/task:{task}/device:CPU:0" for task in range(2))
X = np.array([[0.0, 0.5], [1.0, -1.0]], np.float32)
WEIGHTS = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
Y = np.sin(np.tanh(X) @ WEIGHTS)


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = sin(tanh(x) @ weights), and a loop; all but the hyperbolic tangent with worker two."""
    folder = tmp_path_factory.mktemp("connect")
    weights = tf.Variable(WEIGHTS)
    specs = [tf.TensorSpec([None, 2], tf.float32, "x"), tf.TensorSpec([], tf.int32, "steps")]

    @tf.function(input_signature=specs)
    def serve(x: tf.Tensor, steps: tf.Tensor) -> dict[str, tf.Tensor]:
        done = tf.while_loop(lambda i: i < steps, lambda i: i + 1, [tf.constant(0)])[0]
        return {"y": tf.sin(tf.tanh(x) @ weights), "steps": done}

    source = save_function(folder / "model", serve, weights=weights)
    options = {"batch_size": 2}
    plan = place(source, folder / "first", placement={}, devices=(ONE, TWO), **options)
    moved = ("matmul", "Sin", "while", "Variable")
    later = {name: TWO for name in plan.placement if any(part in name for part in moved)}
    place(source, folder / "placed", placement=later, devices=(ONE, TWO), **options)
    return folder / "placed"


@contextmanager
def _restarted(local: LocalCluster, task: int) -> Iterator[None]:
    """Another server in the place of one that was killed, which knows nothing of its past."""
    spec = {
        "core": local.cores[task],
        "cgroups": [],
        "addresses": [device.address for device in local.cluster.devices],
        "task": task,
        "threads": 1,
        "environment": {},
    }
    with guarded(()) as guard, ExitStack() as stack:
        start_workers(guard, [spec], 120.0, stack)
        yield


def _check(model: moirai_tf.ConnectedModel) -> None:
    outputs = model(x=X, steps=3)
    assert sorted(outputs) == ["steps", "y"]
    np.testing.assert_allclose(outputs["y"], Y, rtol=1e-5)
    assert outputs["steps"] == 3


def test_a_model_is_called_by_name(placed: Path, workers: LocalCluster, tmp_path: Path) -> None:
    write_cluster(workers.cluster, tmp_path / "cluster.yaml")
    with moirai_tf.connect(placed, tmp_path / "cluster.yaml") as model:
        _check(model)
        assert model.inputs == {
            "steps": tf.TensorSpec([], tf.int32),
            "x": tf.TensorSpec([None, 2], tf.float32),
        }
        # Lists and other types of numbers are taken as long as nothing is lost.
        outputs = model({"x": X.astype(np.float64).tolist()}, steps=np.int64(2))
        np.testing.assert_allclose(outputs["y"], Y, rtol=1e-5)
        # The caller's own TensorFlow is as it was.
        assert tf.executing_eagerly()
        assert float(tf.constant(1.0) + 1) == 2.0
        model.reload()
        _check(model)
    with pytest.raises(MoiraiError, match="the model is closed"):
        model(x=X, steps=3)
    model.close()


def test_a_model_that_another_thread_loads_is_closed(placed: Path, workers: LocalCluster) -> None:
    """Closing does not wait for it."""
    with moirai_tf.connect(placed, workers.cluster) as model, model._lock:
        model.close()
    with pytest.raises(MoiraiError, match="the model is closed"):
        model(x=X, steps=3)
    with pytest.raises(MoiraiError, match="the model is closed"):
        model.reload()


def test_strings_and_scattered_operators(
    zoo_dir: ZooDir, tmp_path: Path, workers: LocalCluster
) -> None:
    """A table of strings, on both workers, says what the model says here."""
    entry = ZOO["lookup_table"]
    place(zoo_dir("lookup_table"), tmp_path / "placed", seed=1, devices=(ONE, TWO))
    original = tf.saved_model.load(str(zoo_dir("lookup_table")))
    given = {name: tf.constant(value) for name, value in entry.inputs().items()}
    expected = original.signatures[entry.signature](**given)
    with moirai_tf.connect(tmp_path / "placed", workers.cluster) as model:
        outputs = model(entry.inputs())
        (name,) = entry.inputs()
        for wrong in ([1, 2], [["a"], ["b", "c"]]):
            with pytest.raises(MoiraiError, match=f"input '{name}' holds values that are no str"):
                model({name: wrong})
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[name], value.numpy())


def test_inputs_that_do_not_fit(placed: Path, workers: LocalCluster) -> None:
    wrong = (
        ({"x": X}, "input 'steps' is missing"),
        ({"x": X, "steps": 1, "z": 0}, "input 'z' is unknown"),
        ({"x": X[0], "steps": 1}, r"input 'x' has shape \[2\], not \(None, 2\)"),
        ({"x": X, "steps": 1.5}, "input 'steps' is of type float64, not int32"),
        ({"x": X, "steps": 2**40}, "input 'steps' has values beyond int32"),
        ({"x": [["a", "b"]], "steps": 1}, "input 'x' is of type <U1, not float32"),
        ({"x": [[1.0], [1.0, 2.0]], "steps": 1}, "input 'x' is no array: .*inhomogeneous"),
        ({"x": X, "steps": []}, r"input 'steps' has shape \[0\], not \(\)"),
        ({"x": np.zeros([0, 2], str), "steps": 1}, "input 'x' is of type <U1, not float32"),
    )
    with moirai_tf.connect(placed, workers.cluster) as model:
        for inputs, rule in wrong:
            with pytest.raises(MoiraiError, match=rule):
                model(inputs)
        _check(model)
        # Unsigned numbers that the type holds; no rows at all.
        assert model(x=X, steps=np.uint64(3))["steps"] == 3
        assert model(x=np.empty([0, 2]), steps=1)["y"].size == 0


def test_a_call_that_takes_too_long(placed: Path, workers: LocalCluster) -> None:
    """Its error says so, and the next call runs without loading anew."""
    with moirai_tf.connect(placed, workers.cluster, timeout_s=1.0) as model:
        loaded = model._loaded
        with pytest.raises(MoiraiError, match="took longer than 1 s"):
            model(x=X, steps=2**31 - 1)
        _check(model)
        assert model._loaded is loaded
    with pytest.raises(MoiraiError, match=r"took longer than 0\.0001 s"):
        moirai_tf.connect(placed, workers.cluster, load_timeout_s=0.0001)


def test_a_paused_worker(placed: Path, workers: LocalCluster) -> None:
    """It is named, by a call and by connecting; when it goes on, so do calls."""
    with moirai_tf.connect(placed, workers.cluster, timeout_s=2.0) as model:
        workers.pause(1)
        try:
            for _ in range(2):
                with pytest.raises(MoiraiError, match=r"worker .*/task:1 at \S+ does not answer"):
                    model(x=X, steps=3)
            with pytest.raises(MoiraiError, match=r"worker .*/task:1 at \S+ does not answer"):
                moirai_tf.connect(placed, workers.cluster)
        finally:
            workers.resume(1)
        _check(model)


def test_workers_that_die_and_come_back(placed: Path) -> None:
    """Worker 0 is the master. A restart that no call saw is told once; then the model is loaded."""
    with (
        local_cluster([1.0, 1.0]) as local,
        moirai_tf.connect(placed, local.cluster, timeout_s=60.0) as model,
        ExitStack() as stack,
    ):
        _check(model)
        killer = threading.Timer(1.0, local.kill, [1])
        killer.start()
        with pytest.raises(MoiraiError, match=r"worker .*/task:1 at \S+ does not answer"):
            model(x=X, steps=2**31 - 1)
        killer.join()
        with pytest.raises(MoiraiError, match=r"worker .*/task:1 at \S+ does not answer"):
            model(x=X, steps=3)
        stack.enter_context(_restarted(local, 1))
        _check(model)
        local.kill(0)
        stack.enter_context(_restarted(local, 0))
        with pytest.raises(MoiraiError, match=r"worker .*/task:0 at \S+ was restarted"):
            model(x=X, steps=3)
        _check(model)


@pytest.mark.slow
@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("seen", [False, True])
def test_every_death(placed: Path, task: int, seen: bool) -> None:
    with (
        local_cluster([1.0, 1.0]) as local,
        moirai_tf.connect(placed, local.cluster, timeout_s=20.0) as model,
    ):
        _check(model)
        local.kill(task)
        if seen:
            with pytest.raises(MoiraiError, match=rf"worker .*/task:{task} at \S+ does not ans"):
                model(x=X, steps=3)
        with _restarted(local, task):
            if not seen:
                with pytest.raises(MoiraiError, match=rf"worker .*/task:{task} at .* restarted"):
                    model(x=X, steps=3)
            _check(model)


def test_the_servers_must_be_the_right_ones(placed: Path, workers: LocalCluster) -> None:
    one, two = workers.cluster.devices
    swapped = (replace(one, address=two.address), replace(two, address=one.address))
    with pytest.raises(MoiraiError, match="is another"):
        moirai_tf.connect(placed, replace(workers.cluster, devices=swapped))
    nobody = (one, replace(two, address="localhost:1"))
    with pytest.raises(MoiraiError, match=r"worker .*/task:1 at localhost:1 does not answer"):
        moirai_tf.connect(placed, replace(workers.cluster, devices=nobody))
    nobodies = tuple(replace(device, address="localhost:1") for device in (one, two))
    with pytest.raises(MoiraiError, match=r"task:0 at localhost:1 \(and 1 more\) does not answer"):
        worker_devices(replace(workers.cluster, devices=nobodies))
    with pytest.raises(MoiraiError, match=f"cluster 'small' has no '{TWO}'"):
        moirai_tf.connect(placed, Cluster("small", (one,)))


def test_gpus_of_servers(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """Two servers with emulated GPUs; task 1 has an `Emulated B`."""
    entry = ZOO["mlp"]
    cluster = read_cluster(ROOT / "configs" / "emulated_two_servers.yaml")
    devices = (ONE, TWO, TWO.replace("CPU", "GPU"))
    plan = place(zoo_dir("mlp"), tmp_path / "placed", seed=1, devices=devices)
    original = tf.saved_model.load(str(zoo_dir("mlp"))).signatures[entry.signature]
    with servers(cluster) as running:
        for model in ("Emulated B", "Emulated A"):
            gpu = replace(plan.devices[2], model=model)
            text = plan_to_json(replace(plan, devices=(*plan.devices[:2], gpu)))
            (tmp_path / "placed" / PLAN_FILE).write_text(text, encoding="utf-8")
            if model == "Emulated B":
                with moirai_tf.connect(tmp_path / "placed", running) as connected:
                    outputs = connected(entry.inputs())
                continue
            with pytest.raises(MoiraiError, match="is 'Emulated B', but the plan was made for"):
                moirai_tf.connect(tmp_path / "placed", running)
    given = {name: tf.constant(value) for name, value in entry.inputs().items()}
    for name, value in original(**given).items():
        np.testing.assert_allclose(outputs[name], value.numpy(), rtol=1e-3, atol=1e-4)


def test_only_servers_of_the_plan_are_needed(
    zoo_dir: ZooDir, tmp_path: Path, workers: LocalCluster
) -> None:
    entry = ZOO["cond"]
    place(zoo_dir("cond"), tmp_path / "placed", placement={}, devices=(ONE, TWO))
    one, two = workers.cluster.devices
    nobody = replace(workers.cluster, devices=(one, replace(two, address="localhost:1")))
    with moirai_tf.connect(tmp_path / "placed", nobody) as model:
        assert model(entry.inputs())


def _ask_for_another_variable(meta_graph: Any) -> None:
    for node in meta_graph.graph_def.node:
        texts = node.attr["value"].tensor.string_val if node.op == "Const" else []
        for i, text in enumerate(texts):
            texts[i] = text.replace(b"reference/kernel", b"nobody")


def test_what_cannot_be_connected(
    placed: Path, zoo_dir: ZooDir, tmp_path: Path, workers: LocalCluster
) -> None:
    one, two = (replace(device, address="") for device in workers.cluster.devices)
    with pytest.raises(MoiraiError, match="gives no addresses of servers") as caught:
        moirai_tf.connect(placed, replace(workers.cluster, devices=(one, two)))
    assert "moirai_tf.load" in caught.value.fix
    for limit in (0, -1.0, float("inf"), float("nan"), None, "5"):
        with pytest.raises(MoiraiError, match=f"option timeout_s is {limit!r}"):
            moirai_tf.connect(placed, workers.cluster, timeout_s=limit)  # type: ignore[arg-type]
    with pytest.raises(MoiraiError, match="holds no assets"):
        moirai_tf.connect(zoo_dir("cond"), workers.cluster)
    place(zoo_dir("tf1"), tmp_path / "tf1", placement={}, devices=(ONE, TWO))
    unknown = edited(tmp_path / "tf1", tmp_path / "unknown", _ask_for_another_variable)
    with pytest.raises(MoiraiError, match="not found in checkpoint") as caught:
        moirai_tf.connect(unknown, workers.cluster)
    assert "copy the whole model directory" in caught.value.fix
    os.symlink(placed / "saved_model.pb", tmp_path / "saved_model.pb")
    os.symlink(placed / "assets.extra", tmp_path / "assets.extra")
    with pytest.raises(MoiraiError, match=f"{tmp_path} cannot be loaded: .* checkpoint"):
        moirai_tf.connect(tmp_path, workers.cluster)

"""Devices that a plan needs: found in this process and in servers, missing, or of another model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import tensorflow as tf

import moirai_tf
from laboratory.emulated_gpu import environment
from moirai_tf.bench.local_cluster import LocalCluster
from moirai_tf.cluster import read_cluster
from moirai_tf.errors import MoiraiError
from moirai_tf.rewrite.plan import Plan, PlanDevice
from moirai_tf.rewrite.plan_file import PLAN_FILE, plan_to_json, read_plan
from moirai_tf.runtime.devices import (
    FoundDevice,
    check_plan_devices,
    local_devices,
    server_devices,
)
from tests.placements import CPUS, place

ZooDir = Callable[[str], Path]

ROOT = Path(__file__).resolve().parent.parent
CPU, GPU = "/device:CPU:0", "/device:GPU:0"
WORKERS = tuple(f"/job:worker/replica:0/task:{task}/device:CPU:0" for task in range(2))

ON_A_GPU = """
import sys
import moirai_tf
from moirai_tf.runtime.devices import local_devices
from moirai_tf.verify import VerifyOptions, verify
print([(device.model, device.architecture) for device in local_devices()])
original, *directories = sys.argv[1:]
for placed in directories:
    for act in (
        lambda: moirai_tf.load(placed),
        lambda: verify(original, placed, VerifyOptions(loaders=("session",), grappler="off")),
    ):
        try:
            act()
            print("ok")
        except moirai_tf.MoiraiError as error:
            print(error.rule)
"""

IN_A_PROCESS = """
import sys
import tensorflow as tf
import moirai_tf
from moirai_tf.runtime.devices import local_devices
moirai_tf.configure_logical_cpus(int(sys.argv[2]))
print([device.name for device in local_devices()])
try:
    model = moirai_tf.load(sys.argv[1])
except moirai_tf.MoiraiError as error:
    moirai_tf.configure_logical_cpus(2)  # listing did not start TensorFlow
    print(error.rule, error.fix, sep="; ")
else:
    print(sorted({v.device[-5:] for v in model.signatures["serving_default"].variables}))
"""


def _plan(*devices: PlanDevice, used: str) -> Plan:
    return Plan("serving_default", ("serve",), devices, CPU, {"a": CPU, "b": used}, ())


def test_the_gpu_of_the_plan_is_needed() -> None:
    """It must be there and of the plan's model, as far as both are known."""
    cpu, gpu = PlanDevice(CPU, "CPU", None), PlanDevice(GPU, "GPU", None, "Tesla T4")
    plan = _plan(cpu, gpu, used=GPU)
    t4, l4 = (FoundDevice(GPU, "GPU", model=model) for model in ("Tesla T4", "NVIDIA L4"))
    here = FoundDevice("/job:localhost/replica:0/task:0/device:CPU:0", "CPU")
    check_plan_devices(plan, [here, t4], "it")
    with pytest.raises(MoiraiError, match=r"it has no device '/device:GPU:0'.*; it has /job:local"):
        check_plan_devices(plan, [here], "it")
    with pytest.raises(
        MoiraiError, match="'/device:GPU:0' of it is 'NVIDIA L4', but the plan was made for 'Tesla"
    ):
        check_plan_devices(plan, [here, l4], "it")
    check_plan_devices(plan, [here, replace(t4, model="")], "it")
    check_plan_devices(_plan(cpu, replace(gpu, model=""), used=GPU), [here, l4], "it")
    # Nothing of the plan runs there.
    check_plan_devices(_plan(cpu, gpu, used=CPU), [here], "it")


@pytest.fixture(scope="module")
def on_two_cpus(zoo_dir: ZooDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    placed = tmp_path_factory.mktemp("two") / "placed"
    place(zoo_dir("lstm"), placed, seed=1)
    return placed


@pytest.mark.parametrize(
    ("cpus", "said"),
    [
        (2, "['CPU:0', 'CPU:1']"),
        (
            1,
            "this process has no device '/device:CPU:1', where the plan has operators; it has "
            "/device:CPU:0; call moirai_tf.configure_logical_cpus(2) before TensorFlow is used",
        ),
    ],
)
def test_loading_needs_the_logical_cpus(cpus: int, said: str, on_two_cpus: Path) -> None:
    """Variables go to both devices, or nothing is loaded and nothing was started."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, str(on_two_cpus), str(cpus)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [str([*CPUS[:cpus]]), said], done.stderr


def test_loading_needs_gpus_and_workers(zoo_dir: ZooDir, tmp_path: Path) -> None:
    place(zoo_dir("lstm"), tmp_path / "gpu", seed=1, devices=(CPU, GPU))
    with pytest.raises(MoiraiError, match=f"this process has no device '{GPU}'") as caught:
        moirai_tf.load(tmp_path / "gpu")
    assert "CUDA_VISIBLE_DEVICES" in caught.value.fix
    place(zoo_dir("lstm"), tmp_path / "workers", seed=1, devices=WORKERS)
    with pytest.raises(MoiraiError, match=f"this process has no device '{WORKERS[0]}'") as caught:
        moirai_tf.load(tmp_path / "workers")
    assert "moirai_tf.connect" in caught.value.fix


def test_models_without_a_plan_are_loaded(zoo_dir: ZooDir) -> None:
    model = moirai_tf.load(zoo_dir("lstm"))
    assert model.signatures["serving_default"].variables


def test_plans_know_the_models_of_gpus(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """Since schema 3; a renamed GPU is of the same model, and a CPU of none."""
    placed = tmp_path / "placed"
    plan = place(zoo_dir("lstm"), placed, seed=1, devices=(CPU, GPU))
    cpu, gpu = plan.devices
    plan = replace(plan, devices=(cpu, replace(gpu, model="Tesla T4")))
    (placed / PLAN_FILE).write_text(plan_to_json(plan), encoding="utf-8")
    assert read_plan(placed) == plan
    moved = moirai_tf.remap(placed, tmp_path / "moved", {GPU: "/device:GPU:1"})
    assert moved.devices[1] == PlanDevice("/device:GPU:1", "GPU", None, "Tesla T4")
    moved = moirai_tf.remap(placed, tmp_path / "cpus", {GPU: CPUS[1]})
    assert moved.devices[1] == PlanDevice(CPUS[1], "CPU", None, "")

    values = json.loads((placed / PLAN_FILE).read_text())
    del values["devices"][1]["model"]
    (placed / PLAN_FILE).write_text(json.dumps(values))
    with pytest.raises(MoiraiError, match=r"devices\[1\]\.model: missing"):
        read_plan(placed)
    (placed / PLAN_FILE).write_text(json.dumps({**values, "schema": 2}))
    assert read_plan(placed).devices == (cpu, gpu)


def test_a_gpu_of_another_model_is_refused(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """The emulated one is an `Emulated A`. One that is missing is verified by CPUs, not loaded."""
    cases = (("a", GPU, "Emulated A"), ("b", GPU, "B"), ("c", "/device:GPU:1", "Emulated A"))
    for name, gpu, model in cases:
        plan = place(zoo_dir("mlp"), tmp_path / name, seed=1, devices=(CPU, gpu))
        devices = (plan.devices[0], replace(plan.devices[1], model=model))
        text = plan_to_json(replace(plan, devices=devices))
        (tmp_path / name / PLAN_FILE).write_text(text, encoding="utf-8")
    emulated = environment(read_cluster(ROOT / "configs" / "emulated_cpu_gpu.yaml"))
    placed = [str(tmp_path / name) for name in "abc"]
    done = subprocess.run(
        [sys.executable, "-c", ON_A_GPU, str(zoo_dir("mlp")), *placed],
        cwd=ROOT, env={**os.environ, **emulated}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    here = "'/device:GPU:0' of this process is 'Emulated A', but the plan was made for 'B'"
    gone = "this process has no device '/device:GPU:1', where the plan has operators; it has"
    assert done.stdout.splitlines() == [
        "[('', ''), ('Emulated A', '7.0')]",
        *("ok", "ok"),
        *(here, here),
        *(f"{gone} /device:CPU:0, /device:GPU:0", "ok"),
    ], done.stderr[-3000:]


def test_servers_say_what_they_have(workers: LocalCluster) -> None:
    devices = [server_devices(d.address, 10.0) for d in workers.cluster.devices]
    assert [[device.name for device in found] for found in devices] == [[w] for w in WORKERS]
    target = f"grpc://{workers.cluster.devices[0].address}"
    with tf.compat.v1.Session(target, graph=tf.Graph()) as session:
        known = {d.name: d.incarnation % 2**64 for d in session.list_devices()}
    assert {device.name: device.incarnation for (device,) in devices} == known
    workers.pause(1)
    try:
        with pytest.raises(grpc.RpcError):
            server_devices(workers.cluster.devices[1].address, 0.5)
    finally:
        workers.resume(1)


def test_listing_with_memory_says_the_same() -> None:
    assert [d.name for d in local_devices(memory=True)] == [d.name for d in local_devices()]

"""GPUs that are emulated: seen, filled, kept busy and traced by processes of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laboratory import emulated_gpu
from laboratory.emulated_gpu.environment import describe, peak_flops_per_s
from moirai_tf.cluster import Cluster, read_cluster
from moirai_tf.errors import MoiraiError

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300


def cluster(name: str) -> Cluster:
    return read_cluster(ROOT / "configs" / f"emulated_{name}.yaml")


def run(module: str, *arguments: str, cuda_properties: bool = False) -> Any:
    """The JSON that a module prints as its last line, run with the four GPUs."""
    more = emulated_gpu.environment(cluster("four_gpus"), cuda_properties=cuda_properties)
    environment = {**os.environ, **more}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def facts() -> Any:
    return run("tests.emulated_gpu_facts")


def test_devices_are_those_of_the_cluster(facts: Any) -> None:
    # As TensorFlow shows GPUs with CUDA; memory is what it may use.
    assert facts["devices"]["details"][1] == {
        "device_name": "Emulated B",
        "compute_capability": [7, 5],
    }
    assert facts["devices"]["local"] == [
        [
            memory,
            f"device: {number}, name: Emulated {model}, pci bus id: 0000:0{number + 1}:00.0, "
            f"compute capability: {capability}",
        ]
        for number, (memory, model, capability) in enumerate(
            [
                (1_000_000_000, "A", "7.0"),
                (768_000_000, "B", "7.5"),
                (512_000_000, "C", "6.0"),
                (256_000_000, "D", "8.6"),
            ]
        )
    ]


def test_memory_has_an_end(facts: Any) -> None:
    assert facts["memory"] == {"200 MB": True, "280 MB": False}


def test_fake_work_takes_its_time_on_the_stream(facts: Any) -> None:
    assert facts["fake_work"]["values"] == [[1.0, 2.0], [3.0, 4.0], [1.0]]
    records = facts["fake_work"]["records"]
    for number in range(2):
        [[name, start_us, duration_us]] = records[f"/device:GPU:{number}/stream:all"]
        assert (name, duration_us) == (f"work{number}:FakeWork", 200_000)
        # The fetch waits for it.
        back = [one for one in records[f"/device:GPU:{number}/memcpy"] if one[0] == "MemcpyD2H"]
        assert back[0][1] >= start_us + 200_000 - 1  # each is rounded down


def test_kernels_take_what_the_cost_model_says(facts: Any) -> None:
    # 2 x 512^3 = 268,435,456 operations at 2 x 64 x 16 x 0.8 GHz: 163.84 us, and 20 us of launch;
    # at 2 x 128 x 2 x 0.8 GHz: 655.36 us, and 30 us.
    assert facts["kernel"]["/device:GPU:0/stream:all"][0][0] == "product0:MatMul"
    assert facts["kernel"]["/device:GPU:0/stream:all"][0][2] == 183
    assert facts["kernel"]["/device:GPU:3/stream:all"][0][2] == 685


def test_copies_take_latency_and_bytes_by_bandwidth(facts: Any) -> None:
    copies = {
        name: duration
        for device in ("GPU:0", "GPU:1")
        for name, _, duration in facts["copies"][f"/device:{device}/memcpy"]
    }
    # 6 MB at 6 GB/s after 100 us; between the two GPUs at 10 GB/s after 80 us.
    assert copies == {"MemcpyH2D": 1100, "MemcpyP2P": 680, "MemcpyD2H": 1100}


def test_a_port_carries_one_tensor_at_a_time(facts: Any) -> None:
    spans = sorted(
        (start, start + duration)
        for number in range(2)
        for name, start, duration in facts["port"][f"/device:GPU:{number}/memcpy"]
        if name == "MemcpyD2H"
    )
    # 12 MB at 6 GB/s after 100 us each; starts are rounded down.
    assert [end - start for start, end in spans] == [2100, 2100]
    assert spans[1][0] >= spans[0][1]


def test_control_flow_stays_right_when_only_the_clock_moves(facts: Any) -> None:
    assert facts["later_steps"] == [[2.0, 5.0], [0.0, 5.0], [1.0, 5.0]] * 3


def test_channels_first_is_right(facts: Any) -> None:
    assert facts["channels_first"] < 1e-5


def test_references_are_assigned(facts: Any) -> None:
    """TensorFlow's own kernel copies a value that something else holds with CUDA, and crashes."""
    assert facts["references"] == [[[3.0, 3.0], [3.0, 3.0]], [[1.0, 2.0], [3.0, 4.0]]]


def test_what_is_not_emulated_fails_by_name(facts: Any) -> None:
    assert "AssignAddVariableOp is not emulated" in facts["refused"]


def test_layers_of_cudnn_are_right(facts: Any) -> None:
    assert facts["recurrent"]["lstm"] < 1e-6
    assert facts["recurrent"]["gru"] < 1e-6


def test_models_compute_what_they_compute_on_the_cpu(zoo_dir: Callable[[str], Path]) -> None:
    """Whole models on one GPU; what these CPU operators do, no GPU can."""
    host = {"NoOp", "_Arg", "_Retval", "_SwitchN", "Const", "Merge", "Identity", "_SOURCE"}
    used = {
        "conv_net_export": "Conv2D",
        "bert": "Softmax",
        "lstm": "MatMul",
        "module": "_FusedBatchNormEx",
        "tied_embeddings": "ResourceGather",
        "cond": "MatMul",
    }
    results = run("tests.emulated_gpu_zoo", *(f"{name}={zoo_dir(name)}" for name in used))
    for name, kernel in used.items():
        assert results[name]["difference"] < 1e-5, (name, results[name])
        assert kernel in results[name]["kernels"], (name, results[name])
        assert {*results[name]["on_cpu"]} <= host, (name, results[name])


def test_grappler_changes_layouts_if_it_knows_the_gpus(zoo_dir: Callable[[str], Path]) -> None:
    argument = f"module={zoo_dir('module')}"
    result = run("tests.emulated_gpu_zoo", argument, cuda_properties=True)["module"]
    assert result["difference"] < 1e-5
    assert "Transpose" in result["kernels"]  # the images, to NCHW


def test_a_description_has_gpus_and_links() -> None:
    lines = describe(cluster("two_servers"), "/job:worker/replica:0/task:1").splitlines()
    # 2 x 64 lanes x 8 multiprocessors x 1000 MHz
    gpu = "512000000 8 1000 1024000000000 160000000000 20000 1.0 7.5 Emulated B"
    assert lines[:2] == [f"gpu 0 {gpu}", f"gpu 1 {gpu}"]
    assert "link -1 1 100000 6000000000" in lines
    assert len(lines) == 2 + 6  # 3 devices linked both ways; not to the other server


def test_what_cannot_be_emulated_is_named() -> None:
    whole = cluster("cpu_gpu")
    with pytest.raises(MoiraiError, match="task:7 has no GPU"):
        describe(whole, "/job:worker/replica:0/task:7")
    gpu = whole.device("/device:GPU:0")
    with pytest.raises(MoiraiError, match="needs num_cores"):
        peak_flops_per_s(dataclasses.replace(gpu, architecture="1.0"))


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no_such_compiler")
    with pytest.raises(MoiraiError, match="no_such_compiler: No such file"):
        emulated_gpu.environment(cluster("cpu_gpu"))


def test_two_servers() -> None:
    import tensorflow as tf

    tf1 = tf.compat.v1
    with emulated_gpu.servers(cluster("two_servers")) as running:
        task0, task1 = running.addresses
        with tf.Graph().as_default() as graph:
            x = tf1.placeholder(tf.float32, [2, 2])
            with tf.device(f"{task0}/device:GPU:1"):
                y = tf.matmul(x, x)
            with tf.device(f"{task1}/device:GPU:0"):
                z = tf.matmul(y, x)
            with tf1.Session(f"grpc://{running.addresses[task0]}", graph=graph) as session:
                # [[1, 1], [0, 1]] to the third power
                value = session.run(z, {x: [[1.0, 1.0], [0.0, 1.0]]})
                devices = {one.name: one.memory_limit_bytes for one in session.list_devices()}
    assert value.tolist() == [[1.0, 3.0], [0.0, 1.0]]
    gpus = {name: limit for name, limit in devices.items() if "GPU" in name}
    assert gpus == {
        device.name: device.memory_bytes for device in running.devices if device.type == "GPU"
    }

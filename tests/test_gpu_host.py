"""A host full of GPUs, emulated: described, profiled, placed, proved and measured by one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

import moirai_tf
from laboratory import emulated_gpu
from moirai_tf.cluster import Cluster, read_cluster
from moirai_tf.cost.table import CostTable
from moirai_tf.errors import MoiraiError
from moirai_tf.machine import this_machine
from moirai_tf.runtime.child import Child
from tests.saved_models import save_function, save_graph
from tests.scatter import scatter_pipeline
from tests.zoo import ZOO

CPU = "/device:CPU:0"
GPUS = tuple(f"/device:GPU:{i}" for i in range(4))
HOST = read_cluster(Path(__file__).resolve().parent.parent / "configs/emulated_four_gpus.yaml")
tf1 = tf.compat.v1


def on_host(cluster: Cluster, function: Callable[..., Any], *args: Any) -> Any:
    """What a function of this module gives in a process that has the GPUs of a cluster."""
    environment = emulated_gpu.environment(cluster)
    child = Child("a test", timeout_s=600.0, longer="look why", environment=environment)
    return child.call(function, *args)


def part_of_host(gpus: int, **more: Any) -> Cluster:
    """The first GPUs of the host, with other facts; fewer are profiled sooner."""
    devices = tuple(replace(d, **more) if d.type == "GPU" else d for d in HOST.devices[: 1 + gpus])
    names = {device.name for device in devices}
    links = (link for link in HOST.links if {link.source, link.target} <= names)
    return replace(HOST, devices=devices, links=tuple(links))


def fake_work(x: Any, duration_us: int, name: str) -> Any:
    graph = tf1.get_default_graph()
    return graph.create_op(
        "FakeWork", [x], [tf.float32], name=name, attrs={"duration_us": attr(duration_us)}
    ).outputs[0]


def attr(value: int) -> Any:
    return attr_value_pb2.AttrValue(i=value)


def save_chain(path: Path) -> None:
    """Asynchronous kernels of 20, 1 and 0.2 ms, one after the other."""
    with tf.Graph().as_default() as graph:
        x = y = tf1.placeholder(tf.float32, [4], "x")
        for duration_us in (20_000, 1_000, 200):
            y = fake_work(y, duration_us, f"work_{duration_us}")
        save_graph(path, graph, {"x": x}, {"y": y})


def save_pair(path: Path) -> None:
    """Kernels of 40 and 41 ms that do not need each other."""
    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [4], "x")
        one, other = fake_work(x, 40_000, "one"), fake_work(x, 41_000, "other")
        save_graph(path, graph, {"x": x}, {"y": one + other})


def profile_chain(work: Path) -> CostTable:
    save_chain(work / "chain")
    pipeline = moirai_tf.default_pipeline(repeats=7, warmup=2).until("profile")
    table = pipeline.run(moirai_tf.MoiraiItem(work / "chain", this_machine())).costs
    assert table is not None
    return table


def optimize_pair(work: Path) -> tuple[dict[str, Any], str, bool]:
    save_pair(work / "pair")
    summary = moirai_tf.optimize(
        work / "pair", work / "placed", repeats=5, warmup=2, pin=(f"one={GPUS[0]}",)
    )
    plan = moirai_tf.read_plan(work / "placed")
    assert summary.report is not None
    return (
        {name: plan.placement[name] for name in ("one", "other")},
        ", ".join(device.model for device in plan.devices),
        summary.report.ok,
    )


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> CostTable:
    table: CostTable = on_host(HOST, profile_chain, tmp_path_factory.mktemp("chain"))
    return table


def test_asynchronous_kernels_take_what_their_streams_say(chain: CostTable) -> None:
    """Every GPU's clock says 20, 1 and 0.2 ms; the host's launches take some microseconds."""
    for gpu in GPUS:
        for duration_us in (20_000, 1_000, 200):
            time_ns = chain.operators[f"work_{duration_us}"].time_ns[chain.columns[gpu]]
            assert time_ns == pytest.approx(1000 * duration_us, rel=0.05)


def test_parts_of_a_step_are_told_apart(chain: CostTable) -> None:
    for profile in chain.devices[1:]:
        found = profile.measurement
        assert found is not None
        assert found.stream_ns == pytest.approx(21_200_000, rel=0.01)
        assert found.attributed_ns >= found.stream_ns
        # The input goes to the GPU and the result comes back: two copies of 15 us or more each.
        assert found.copied_ns > 30_000
        assert chain.step.device_ns[profile.device.name] > 0


def test_the_host_of_gpus_is_timed_while_they_compute(chain: CostTable) -> None:
    assert set(chain.slowdown) == {CPU}


def test_a_machine_describes_itself() -> None:
    cluster: Cluster = on_host(HOST, this_machine)
    found = [(d.name, d.model, d.architecture, d.memory_bytes) for d in cluster.devices]
    wanted = [(d.name, d.model, d.architecture, d.memory_bytes) for d in HOST.devices]
    assert found == [(CPU, "", "", None), *wanted[1:]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of the pair, placed, and what was found."""
    folder = tmp_path_factory.mktemp("pair")
    return folder, on_host(HOST, optimize_pair, folder)


def test_one_argument_is_enough(pair: tuple[Path, Any]) -> None:
    """On the GPU that one kernel is pinned to both take 40 + 41 = 81 ms, on two devices 41."""
    placement, models, proved = pair[1]
    assert proved
    assert placement["one"] == GPUS[0] != placement["other"]
    assert models == ", Emulated A, Emulated B, Emulated C, Emulated D"


def load(path: Path) -> None:
    moirai_tf.load(path)


def save_dense(path: Path) -> Path:
    """134 MB of weights in two matrices: a GPU of 128 MB has room for one of them."""
    values = np.random.default_rng(0).normal(size=(2, 2048, 8192)).astype("float32")
    weights = [tf.Variable(value) for value in values]

    @tf.function(input_signature=[tf.TensorSpec([8, 2048], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden = tf.nn.relu(tf.matmul(x, weights[0]))
        return {"y": tf.matmul(hidden, weights[1], transpose_b=True)}

    return save_function(path, serve, weights=weights)


def optimize_small(work: Path, cluster: Cluster | None) -> tuple[set[str], bool]:
    summary = moirai_tf.optimize(
        work / "dense",
        work / "placed",
        cluster,
        repeats=5,
        warmup=2,
        forbid=(CPU,) if cluster else (),
    )
    assert summary.report is not None
    return set(summary.used), summary.report.ok


SMALL = part_of_host(2, memory_bytes=128_000_000)


def test_a_model_that_fits_on_no_gpu_alone(tmp_path: Path) -> None:
    """Two matrices of 67.1 MB, GPUs of 128 MB: each takes one."""
    save_dense(tmp_path / "dense")
    used, proved = on_host(SMALL, optimize_small, tmp_path, None)
    assert proved
    assert len(used) > 1


def test_a_gpu_that_is_smaller_than_said(tmp_path: Path) -> None:
    save_dense(tmp_path / "dense")
    said = HOST.devices[1].memory_bytes
    with pytest.raises(MoiraiError, match=rf"'/device:GPU:0' has {said} bytes, but TensorFlow"):
        on_host(SMALL, optimize_small, tmp_path, part_of_host(2))
    assert not (tmp_path / "placed").exists()


def test_another_gpu_at_load(pair: tuple[Path, Any]) -> None:
    swapped = part_of_host(len(GPUS), model="Emulated Z")
    with pytest.raises(MoiraiError, match=r"is 'Emulated Z', but the plan was made for 'Emulated"):
        on_host(swapped, load, pair[0] / "placed")
    with pytest.raises(MoiraiError, match=r"has no device '/device:GPU:\d'"):
        load(pair[0] / "placed")


def save_compared(path: Path) -> Path:
    """`Less` of int32 on a GPU takes its operands from the host's memory, where `Cast` has none."""

    @tf.function(input_signature=[tf.TensorSpec([4], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        sizes = tf.cast(x, tf.int32, name="sizes")
        return {"y": tf.identity(tf.less(sizes, 2 * sizes, name="smaller"))}

    return save_function(path, serve)


def prove_compared(work: Path) -> tuple[bool, list[int]]:
    summary = moirai_tf.optimize(
        work / "model", work / "placed", this_machine(), repeats=3, warmup=1,
        pin=(f"sizes|smaller={GPUS[1]}",), grappler="off",
    )  # fmt: skip
    report = summary.report
    assert report is not None
    return report.ok, [proof.within for proof in report.proofs]


def test_what_a_gpu_sends_to_itself_is_no_transfer(tmp_path: Path) -> None:
    save_compared(tmp_path / "model")
    proved, within = on_host(part_of_host(2), prove_compared, tmp_path)
    assert proved
    assert all(count >= 1 for count in within)


def scatter(name: str, source: Path, output: Path) -> tuple[bool, set[str], str]:
    pipeline = scatter_pipeline(ZOO[name], output, len(HOST.devices))
    item = pipeline.run(moirai_tf.MoiraiItem(source, HOST))
    assert item.report is not None
    assert item.plan is not None
    return item.report.ok, set(item.plan.placement.values()), str(item.report)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["ensemble", "conv_net_export", "lstm", "cond", "called_twice", "bert", "gpt2", "inception_v3"],
)
def test_models_dealt_out_to_gpus(
    name: str, zoo_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """Values equal the CPU's, and every operator is where it was dealt, on any of five devices."""
    proved, used, report = on_host(HOST, scatter, name, zoo_dir(name), tmp_path / "placed")
    assert proved, report
    assert used & set(GPUS)

"""TensorFlow's own Grappler as a judge: coarsening keeps what it fuses on one device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from moirai_tf.fusion.coarsen import coarsen
from tests import grappler
from tests.cost_cases import saved, spec
from tests.zoo import ZOO, entry

_LARGE = ("inception_v3", "resnet50", "densenet121", "efficientnet_b0", "nasnet_mobile")
_TRANSFORMERS = ("bert", "vit", "swin")


def _results(directory: Path, inputs: dict[str, np.ndarray]) -> dict[str, grappler.Optimised]:
    graph = grappler.flat_graph(directory, inputs)
    weights = grappler.variable_values(directory, graph)
    return {
        kind: grappler.optimise(graph, weights, device_of)
        for kind, (_, device_of) in grappler.placements(graph, devices=2).items()
    }


def _keeps_fusions(results: dict[str, grappler.Optimised]) -> None:
    single = results["one device"]
    for kind in ("fused operators in turn", "fused operators at random"):
        assert results[kind].lost(single) == []
        assert results[kind].moved == 0


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """InceptionV3 up to its second block, all weights randomised."""
    keras.utils.clear_session()
    images = keras.Input((75, 75, 3), name="images")
    whole = keras.applications.InceptionV3(weights=None, input_tensor=images)
    model = keras.Model(images, whole.get_layer("mixed1").output)
    entry.randomise(model.variables)
    path = tmp_path_factory.mktemp("inception") / "model"
    model.export(path, format="tf_saved_model", verbose=False)
    return path


def test_inception(inception: Path) -> None:
    results = _results(inception, {"images": np.zeros((2, 75, 75, 3), np.float32)})
    _keeps_fusions(results)
    # 5 convolutions of the stem and 7 of either block, each with its batch norm.
    assert len(results["one device"].fused) == 5 + 2 * 7
    torn = results["operators in turn"]
    assert torn.lost(results["one device"]) or torn.moved


@pytest.mark.parametrize("name", ["conv_net_export", "bert"])
def test_small_models(name: str, zoo_dir: Callable[[str], Path]) -> None:
    results = _results(zoo_dir(name), ZOO[name].inputs())
    _keeps_fusions(results)
    assert len(results["one device"].fused) > 0
    torn = results["operators in turn"]
    assert torn.lost(results["one device"]) or torn.moved


def _gpu_kernels(
    directory: Path, inputs: dict[str, np.ndarray], capability: str
) -> tuple[dict[str, list[str]], grappler.Optimised]:
    graph = grappler.flat_graph(directory, inputs)
    coarse, _ = coarsen(graph)
    weights = grappler.variable_values(directory, graph)
    optimised = grappler.optimise_on_gpu(graph, weights, capability)
    return grappler.kernels_of(coarse, "GPU"), optimised


def _agrees_on_gpu(ours: dict[str, list[str]], optimised: grappler.Optimised) -> None:
    """Grappler leaves one operator of each kernel of ours, and fuses nothing else."""
    left = optimised.working
    kept = [[name for name in (root, *others) if name in left] for root, others in ours.items()]
    assert [len(names) for names in kept] == [1] * len(ours)
    fused = {name for name, op in left.items() if op.startswith("_Fused")}
    assert fused == {name for (name,) in kept if left[name].startswith("_Fused")}


@pytest.mark.parametrize("capability", ["7.0", "8.0"])
@pytest.mark.parametrize(
    ("name", "count"), [("ensemble", 10), ("module", 2), ("conv_net_export", 0), ("mlp", 0)]
)
def test_gpu(name: str, count: int, capability: str, zoo_dir: Callable[[str], Path]) -> None:
    ours, optimised = _gpu_kernels(zoo_dir(name), ZOO[name].inputs(), capability)
    _agrees_on_gpu(ours, optimised)
    assert len(ours) == count


def test_every_rule_of_a_gpu_and_what_looks_like_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def variable(*shape: int) -> tf.Variable:
        return tf.Variable(rng.uniform(0.1, 1.0, shape).astype(np.float32))

    squares, line, bias = [variable(3, 3, 8, 8) for _ in "abc"], variable(1, 7, 8, 8), variable(8)
    statistics = [variable(8) for _ in range(4)]

    def convolution(x: tf.Tensor, kernel: tf.Variable, name: str) -> tf.Tensor:
        return tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias, name=f"{name}_bias")

    def batch_norm(x: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=statistics[0], offset=statistics[1], mean=statistics[2],
            variance=statistics[3], is_training=False,
        )[0]  # fmt: skip

    @tf.function(input_signature=[spec(2, 8, 8, 8), spec(8, 8, 8, name="m")])
    def call(x: tf.Tensor, m: tf.Tensor) -> dict[str, tf.Tensor]:
        turned = tf.transpose(m, [0, 2, 1], name="turned")
        return {
            "fused_convolution": tf.nn.relu(
                convolution(x, squares[0], "a"), name="fused_convolution"
            ),
            "line": tf.nn.relu(convolution(x, line, "b")),
            "sum": tf.nn.relu(tf.nn.conv2d(x, squares[1], 1, "SAME") + bias),
            "relu6": tf.nn.relu6(convolution(x, squares[2], "c")),
            "fused_norm": tf.nn.relu(batch_norm(x), name="fused_norm"),
            "side": tf.nn.relu(batch_norm(x * 2.0) + x),
            "fused_product": tf.raw_ops.BatchMatMulV2(x=m, y=turned, name="fused_product"),
            "moved": tf.raw_ops.BatchMatMulV2(x=m, y=tf.transpose(m * 2.0, [1, 0, 2])),
        }

    path = saved(call, tmp_path / "m", *squares, line, bias, *statistics).path
    shapes = {"x": np.zeros((2, 8, 8, 8), np.float32), "m": np.zeros((8, 8, 8), np.float32)}
    ours, optimised = _gpu_kernels(path, shapes, "8.0")
    _agrees_on_gpu(ours, optimised)
    ends = {root.rpartition("/")[2] for root in ours}
    assert ends == {"fused_convolution", "fused_norm", "fused_product"}


def test_beside_a_gpu_each_device_fuses_what_its_own_rules_say(
    zoo_dir: Callable[[str], Path],
) -> None:
    directory = zoo_dir("ensemble")
    graph = grappler.flat_graph(directory, ZOO["ensemble"].inputs())
    coarse, expansion = coarsen(graph)
    on_cpu = {o.name for o, k in zip(graph.operators, expansion.owner, strict=True) if k % 2}
    weights = grappler.variable_values(directory, graph)
    optimised = grappler.optimise_on_gpu(graph, weights, elsewhere=on_cpu)
    for device_type in ("CPU", "GPU"):
        fused = {
            node.name
            for node in optimised.graph_def.node
            if node.op.startswith("_Fused") and f"device:{device_type}" in node.device
        }
        ours = grappler.kernels_of(coarse, device_type)
        assert fused == {root for root in ours if (root in on_cpu) == (device_type == "CPU")}
        assert fused


def test_inception_on_gpu(inception: Path) -> None:
    # Batch norm in pieces, no bias: nothing of a CPU's 19 fused convolutions is left.
    inputs = {"images": np.zeros((2, 75, 75, 3), np.float32)}
    ours, optimised = _gpu_kernels(inception, inputs, "8.0")
    _agrees_on_gpu(ours, optimised)
    assert ours == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*_LARGE, *_TRANSFORMERS, "gpt2"])
def test_large_models_on_gpu(name: str, zoo_dir: Callable[[str], Path]) -> None:
    _agrees_on_gpu(*_gpu_kernels(zoo_dir(name), ZOO[name].inputs(), "8.0"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*_LARGE, *_TRANSFORMERS])
def test_large_models(name: str, zoo_dir: Callable[[str], Path]) -> None:
    results = _results(zoo_dir(name), ZOO[name].inputs())
    _keeps_fusions(results)
    torn = results["operators in turn"]
    assert torn.lost(results["one device"]) or torn.moved

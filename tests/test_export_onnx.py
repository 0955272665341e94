"""Placed models as ONNX: values, devices, parts, and what must be refused."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from moirai_tf import MoiraiError, OnnxRunner, export_onnx, save_inputs
from moirai_tf.export import onnx_convert
from moirai_tf.export.onnx_convert import Job
from moirai_tf.export.onnx_graph import save_model
from moirai_tf.runtime.child import Child
from tests import exports
from tests.placements import place
from tests.saved_models import digest
from tests.zoo import ZOO

ZooDir = Callable[[str], Path]
ROOT = Path(__file__).resolve().parents[1]
FAST = ("conv_net_export", "lstm", "cond")
REST = (
    "bert", "gpt2", "esm2", "t5", "whisper", "vit", "swin", "two_tower", "ensemble", "mlp",
    "called_twice", "custom_gradient", "tied_embeddings", "lookup_table", "tf1",
    "two_signatures", "module", "inception_v3",
)  # fmt: skip
ROUNDED = {"inception_v3": 1e-3}
"""Where TensorFlow itself is off by more than 1e-5, by how much two answers may differ."""
NAMED = {"lstm": 0.75, "tf1": 0.75}
"""Share of nodes whose device must come from the plan by name; 1 elsewhere."""
REFUSED = {
    "switch_case": "Merge, _SwitchN",
    "host_memory": "StringJoin, StringLength, StringToHashBucketFast",
    "jit_compile": "StatefulPartitionedCall",
    "mixed_precision": "bfloat16",
}


def texts(array: np.ndarray) -> np.ndarray:
    return array.astype(str).astype(object) if array.dtype == object else array


def original(zoo_dir: ZooDir, name: str) -> dict[str, np.ndarray]:
    """What TensorFlow answers."""
    entry = ZOO[name]
    loaded = tf.saved_model.load(str(zoo_dir(name)), tags=list(entry.tags))
    inputs = {key: tf.constant(value) for key, value in entry.inputs().items()}
    outputs = loaded.signatures[entry.signature](**inputs)
    return {key: value.numpy() for key, value in outputs.items()}


def played(directory: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parts one after the other, as the manifest has them, without the runner."""
    manifest = json.loads((directory / "manifest.json").read_text())
    tensors = {key: texts(value) for key, value in inputs.items()}
    for part in manifest["parts"]:
        session = onnxruntime.InferenceSession(str(directory / part["file"]))
        results = session.run(part["outputs"], {name: tensors[name] for name in part["inputs"]})
        tensors.update(zip(part["outputs"], results, strict=True))
    return {name: tensors[name] for name in manifest["outputs"]}


def equal(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], error: float = 1e-5
) -> None:
    """Within 1e-5 of an output's largest value."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == texts(value).dtype
        if value.dtype.kind == "f":
            scale = float(np.abs(value).max())
            np.testing.assert_allclose(found[key], value, rtol=0, atol=error * scale)
        else:
            np.testing.assert_array_equal(found[key], texts(value))


def layers(graph: Any) -> set[str]:
    return {p.value for node in graph.node for p in node.metadata_props if p.key == "layer_ann"}


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]
)
def test_models_are_right_whole_and_in_parts(name: str, zoo_dir: ZooDir, tmp_path: Path) -> None:
    placed = exports.in_short_runs(zoo_dir, name, tmp_path)
    done = export_onnx(placed, tmp_path / "exported", inputs=str(tmp_path / "inputs.npz"))
    expected, inputs = original(zoo_dir, name), ZOO[name].inputs()
    whole = onnxruntime.InferenceSession(str(done.directory / "model.onnx"))
    names = [output.name for output in whole.get_outputs()]
    answers = whole.run(names, {key: texts(value) for key, value in inputs.items()})
    error = ROUNDED.get(name, 1e-5)
    equal(dict(zip(names, answers, strict=True)), expected, error)
    equal(played(done.directory, inputs), expected, error)
    with OnnxRunner(done.directory) as runner:
        equal(runner(inputs), expected, error)
        assert set(runner.placed().values()) <= {("CPUExecutionProvider",), ()}

    assert done.named / done.nodes >= NAMED.get(name, 1.0)
    graph = onnx.load(done.directory / "model.onnx", load_external_data=False)
    assert list(graph.configuration[0].device) == list(done.manifest.devices)
    in_parts = []
    for part in done.manifest.parts:
        model = onnx.load(done.directory / part.file, load_external_data=False)
        onnx.checker.check_model(str(done.directory / part.file))
        assert layers(model.graph) == {part.device.removeprefix("/device:").replace(":", "_")}
        in_parts += [node.name for node in model.graph.node]
    assert sorted(in_parts) == sorted(node.name for node in graph.graph.node)
    assert sorted(in_parts) == sorted(set(in_parts))
    check_triton(done.directory, "exported")


def check_triton(directory: Path, name: str) -> None:
    """The repository as Triton's own messages read it: an ensemble whose steps feed each other."""
    configs = {
        file.parent.name: text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        for file in (directory / "triton").glob("*/config.pbtxt")
    }
    ensemble = configs.pop(name)
    assert ensemble.platform == "ensemble"
    assert not ensemble.instance_group
    there = {tensor.name: tensor for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        config = configs.pop(step.model_name)
        assert config.name == step.model_name
        (group,) = config.instance_group
        assert group.count == 1
        assert dict(step.input_map).keys() == {tensor.name for tensor in config.input}
        for tensor in config.input:
            source = there[step.input_map[tensor.name]]
            assert (source.data_type, source.dims) == (tensor.data_type, tensor.dims)
        there.update({tensor.name: tensor for tensor in config.output})
        version = directory / "triton" / config.name / "1"
        onnxruntime.InferenceSession(str(version / "model.onnx"))
    assert configs == {}
    assert {tensor.name for tensor in ensemble.output} <= there.keys()
    assert list((directory / "triton" / name / "1").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["switch_case", *(pytest.param(n, marks=pytest.mark.slow) for n in list(REFUSED)[1:])]
)
def test_what_onnx_lacks_is_named(name: str, zoo_dir: ZooDir, tmp_path: Path) -> None:
    placed = exports.in_short_runs(zoo_dir, name, tmp_path)
    with pytest.raises(MoiraiError, match=REFUSED[name]):
        export_onnx(placed, tmp_path / "exported", inputs=str(tmp_path / "inputs.npz"))
    assert {path.name for path in tmp_path.iterdir()} == {"inputs.npz", "placed", "placed.npz"}


def test_equal_runs_give_equal_files(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """And fewer parts if they are to be coarse; both are right."""
    placed = exports.in_short_runs(zoo_dir, "lstm", tmp_path)
    one = export_onnx(placed, tmp_path / "one" / "m")
    two = export_onnx(placed, tmp_path / "two" / "m")
    assert digest(one.directory) == digest(two.directory)
    coarse = export_onnx(placed, tmp_path / "coarse", coarse_parts=True)
    assert len(coarse.manifest.parts) <= len(one.manifest.parts)
    equal(played(coarse.directory, ZOO["lstm"].inputs()), original(zoo_dir, "lstm"))


def converted_as_large(job: Job, file: Path, _: float) -> dict[str, np.ndarray]:
    """In place of `convert`: weights stay beside the graph, as if it were too large for them."""
    return Child("conversion", timeout_s=300, longer="").call(as_large, job, file)


def as_large(job: Job, file: Path) -> dict[str, np.ndarray]:
    """What the child does."""
    onnx_convert._LARGE_BYTES = 0
    outputs = onnx_convert._outputs(job)
    onnx_convert._convert(job, file, outputs)
    return outputs


def test_the_way_of_large_models_gives_the_same_model(
    zoo_dir: ZooDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = exports.in_short_runs(zoo_dir, "conv_net_export", tmp_path)
    options = {"inputs": str(tmp_path / "inputs.npz")}
    one = export_onnx(placed, tmp_path / "one", **options)
    monkeypatch.setattr("moirai_tf.export.onnx.convert", converted_as_large)
    two = export_onnx(placed, tmp_path / "two", **options)
    assert two.named == two.nodes
    assert two.manifest.devices == one.manifest.devices
    assert two.error_whole < 1e-6
    equal(
        played(two.directory, ZOO["conv_net_export"].inputs()), original(zoo_dir, "conv_net_export")
    )


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    """Two tables of 1.1 GB: neither a frozen graph nor an ONNX file can hold them."""

    class Tables(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = [
                tf.Variable(tf.random.stateless_normal([270_000, 1024], [seed, 0]))
                for seed in (1, 2)
            ]
            self.kernel = tf.Variable(tf.random.stateless_normal([1024, 8], [3, 0]))

        @tf.function(input_signature=[tf.TensorSpec([None, 5], tf.int32, "ids")])
        def serve(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
            rows = [tf.reduce_mean(tf.gather(table, ids), axis=1) for table in self.tables]
            return {"scores": tf.nn.relu(rows[0] * rows[1]) @ self.kernel}

    model = Tables()
    tf.saved_model.save(model, str(tmp_path / "model"), {"serving_default": model.serve})
    ids = np.random.default_rng(0).integers(0, 270_000, (3, 5), dtype=np.int32)
    expected = {"scores": model.serve(tf.constant(ids))["scores"].numpy()}
    del model
    gc.collect()
    place(tmp_path / "model", tmp_path / "placed", seed=1, input_shapes=("ids=3,5",))
    save_inputs(tmp_path / "inputs.npz", {"ids": ids})
    done = export_onnx(
        tmp_path / "placed", tmp_path / "exported", inputs=str(tmp_path / "inputs.npz")
    )
    assert (done.directory / "model.weights").stat().st_size > 1 << 31
    assert len(done.manifest.devices) == 2
    assert done.named == done.nodes
    equal(played(done.directory, {"ids": ids}), expected)


class Sensitive(tf.Module):
    """What it makes of rounding is larger than 1e-5: a conversion folds the scale into weights."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal([3, 3, 16, 16], [1, 0]))
        self.scale = tf.Variable(tf.random.stateless_uniform([4, 16], [2, 0], 0.5, 1.5))

    @tf.function(
        input_signature=[tf.TensorSpec([2, 8, 8, 16], tf.float32, name) for name in ("a", "b")]
    )
    def serve(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.nn.conv2d(a, self.kernel, strides=1, padding="SAME")
        x, *_ = tf.compat.v1.nn.fused_batch_norm(x, *tf.unstack(self.scale), is_training=False)
        return {"y": tf.sin(100 * x) + b}


def weight_off(model: Any) -> None:
    """One of 2,304 weights is off by a thousandth."""
    (kernel,) = (t for t in model.graph.initializer if list(t.dims) == [16, 16, 3, 3])
    values = onnx.numpy_helper.to_array(kernel).copy()
    values[3, 5, 1, 1] += 0.001
    kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))


def inputs_swapped(model: Any) -> None:
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = {"a": "b", "b": "a"}.get(name, name)


@pytest.mark.parametrize("spoil", [None, weight_off, inputs_swapped])
def test_rounding_is_allowed_and_nothing_more(
    spoil: Callable[[Any], None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Sensitive()
    tf.saved_model.save(model, str(tmp_path / "model"), {"serving_default": model.serve})
    place(tmp_path / "model", tmp_path / "placed", seed=1)

    def spoilt(job: Job, file: Path, timeout_s: float) -> dict[str, np.ndarray]:
        outputs = onnx_convert.convert(job, file, timeout_s)
        if spoil is not None:
            converted = onnx.load(file)
            spoil(converted)
            file.with_suffix(".weights").unlink()
            save_model(converted, file)
        return outputs

    monkeypatch.setattr("moirai_tf.export.onnx.convert", spoilt)
    if spoil is None:
        done = export_onnx(tmp_path / "placed", tmp_path / "exported")
        assert 1e-5 < done.error_whole < 4 * done.rounding < 0.01
        assert f"changed in their last bit change it by {done.rounding:.1e}" in str(done)
        return
    with pytest.raises(MoiraiError, match="output 'y' of the whole differs by"):
        export_onnx(tmp_path / "placed", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_gpus_have_providers_groups_and_options(zoo_dir: ZooDir, tmp_path: Path) -> None:
    devices = ("/device:CPU:0", "/device:GPU:0")
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1, devices=devices)
    done = export_onnx(tmp_path / "placed", tmp_path / "exported")
    assert set(done.manifest.devices) <= set(devices)
    assert "/device:GPU:0" in done.manifest.devices
    with pytest.raises(MoiraiError, match="no execution provider for /device:GPU:0"):
        OnnxRunner(done.directory)
    inputs = ZOO["two_signatures"].inputs()
    providers = {"/device:GPU:0": ["CPUExecutionProvider"]}
    with OnnxRunner(done.directory, providers=providers) as runner:
        equal(runner(inputs), original(zoo_dir, "two_signatures"))
    groups = [
        text_format.Parse(file.read_text(), model_config_pb2.ModelConfig()).instance_group[0]
        for file in (done.directory / "triton").glob("*_part_*/config.pbtxt")
    ]
    pinned = {(group.kind, tuple(group.gpus)) for group in groups}
    assert (model_config_pb2.ModelInstanceGroup.KIND_GPU, (0,)) in pinned
    options = json.loads((done.directory / "session_options.json").read_text())
    assert options["providers"][0] == ["CUDAExecutionProvider", {"device_id": 0}]
    assert "gpu(=GPU_0)" in options["config"]["session.layer_assignment_settings"]


def test_onnx_runtime_takes_the_session_options(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """On a machine with CPUs alone; its own record says that nothing is elsewhere."""
    done = export_onnx(exports.in_short_runs(zoo_dir, "cond", tmp_path), tmp_path / "exported")
    options = json.loads((done.directory / "session_options.json").read_text())
    chosen = onnxruntime.SessionOptions()
    for key, value in options["config"].items():
        chosen.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(
        str(done.directory / "model.onnx"),
        chosen,
        providers=[tuple(p) for p in options["providers"]],
    )
    found = {entry.ep_name for entry in session.get_provider_graph_assignment_info()}
    assert found == {"CPUExecutionProvider"}


def test_several_threads_may_call(zoo_dir: ZooDir, tmp_path: Path) -> None:
    done = export_onnx(exports.in_short_runs(zoo_dir, "lstm", tmp_path), tmp_path / "exported")
    batches = [ZOO["lstm"].inputs(seed=seed, batch=seed + 1) for seed in range(8)]
    with OnnxRunner(done.directory) as runner, ThreadPoolExecutor(4) as threads:
        alone = [runner(batch) for batch in batches]
        for found, expected in zip(threads.map(runner, batches), alone, strict=True):
            np.testing.assert_array_equal(found["output_0"], expected["output_0"])
        with pytest.raises(MoiraiError, match="input 'tokens' is missing"):
            runner()
        with pytest.raises(MoiraiError, match=r"part_\d+.onnx on /device:CPU:\d fails"):
            runner(tokens=np.zeros((1, 3, 3), np.int32))
        np.testing.assert_array_equal(runner(batches[0])["output_0"], alone[0]["output_0"])

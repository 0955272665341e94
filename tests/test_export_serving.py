"""Models laid out for TensorFlow Serving: its messages, its loader, and what must be refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from moirai_tf import MoiraiError, export_serving, read_plan, save_inputs, strip
from moirai_tf.export.serving_files import Tenant, check_tenants
from moirai_tf.export.warmup import WARMUP_FILE
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.rewrite.plan import Plan
from moirai_tf.verify.names import session_names
from moirai_tf.verify.partition import PartitionedGraph, device_key
from moirai_tf.verify.placement_proof import Evidence, prove
from tests.c_api import CRun, run_saved_model
from tests.exports import refused_on_full_disk, scattered
from tests.placements import place
from tests.saved_models import digest, edited, proto_of, save_function
from tests.zoo import SMALL, ZOO

ZooDir = Callable[[str], Path]
FAST = ("cond", "lookup_table", "two_signatures", "tf1")
REST = tuple(name for name in SMALL if ZOO[name].servable and name not in FAST)
CHANGES_WITH_ITS_ROW = {"host_memory"}
"""Models whose answer to a row depends on the place of the row in the batch."""


def parsed(file: Path, message: Any) -> Any:
    return text_format.Parse(file.read_text(), message)


def batching(file: Path) -> Any:
    """`BatchingParameters`; no package has the message, so its fields are declared here."""
    proto = descriptor_pb2.FileDescriptorProto(name="batching.proto", package="t", syntax="proto3")
    proto.dependency.append("google/protobuf/wrappers.proto")
    message = proto.message_type.add(name="BatchingParameters")
    value, sizes = message.field.add(name="max_batch_size", number=1), message.field.add()
    value.label, value.type, value.type_name = 1, 11, ".google.protobuf.Int64Value"
    sizes.name, sizes.number, sizes.label, sizes.type = "allowed_batch_sizes", 6, 3, 3
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pool.Default().FindFileByName("google/protobuf/wrappers.proto")
    pool.AddSerializedFile(wrappers.serialized_pb)
    pool.Add(proto)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.BatchingParameters"))
    return parsed(file, kind())


def logs(version: Path) -> list[Any]:
    records = tf.data.TFRecordDataset(str(version / WARMUP_FILE)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


def flags_given(script: Path, *more: str) -> list[str]:
    """What the script hands to the server, called with more arguments."""
    server = "tensorflow_model_server() { printf '%s\\n' \"$@\"; }\n"
    command = ["sh", "-c", server + script.read_text().replace("exec ", ""), "serve", *more]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def fed(request: Any) -> dict[str, np.ndarray]:
    return {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}


def proved(version: Path, plan: Plan, run: CRun) -> None:
    """The partitions of a run with Grappler on are those of the plan."""
    devices = {device_key(device.name): device.name for device in plan.devices}
    names = session_names(read_saved_model(version).meta_graph(plan.tags), plan)
    graph = PartitionedGraph(run.metadata.partition_graphs, names, devices)
    proof, findings = prove(Evidence("C API", graph, {}, devices), plan, grappler=True)
    assert findings == []
    assert proof.operators > 0


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]
)
def test_the_cpp_loader_answers_its_own_warm_up_requests(
    name: str, zoo_dir: ZooDir, tmp_path: Path
) -> None:
    """With the shipped session configuration and Grappler as it is; placed as planned."""
    entry, placed = ZOO[name], scattered(zoo_dir, name, tmp_path)
    base = tmp_path / "models" / name
    done = export_serving(placed, base, inputs=str(tmp_path / "inputs.npz"))
    assert done.directory == base / "1"
    plan = read_plan(done.directory)
    config = parsed(tmp_path / "models" / "session_config.pbtxt", config_pb2.ConfigProto())
    assert not config.allow_soft_placement
    answered = 0
    for log in logs(done.directory):
        request = log.predict_log.request
        assert request.model_spec.name == name
        arguments = entry.tags, request.model_spec.signature_name, fed(request)
        run = run_saved_model(done.directory, *arguments, config)
        original = run_saved_model(zoo_dir(name), *arguments, config_pb2.ConfigProto())
        for key, value in original.outputs.items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(run.outputs[key], value, rtol=1e-4, atol=1e-5)
            else:
                np.testing.assert_array_equal(run.outputs[key], value, strict=True)
        if request.model_spec.signature_name == plan.signature:
            proved(done.directory, plan, run)
            answered += 1
    assert answered == max(1, len(done.batch_sizes))
    assert bool(done.batch_sizes) == (done.directory / "batching_params.pbtxt").is_file()
    if name in CHANGES_WITH_ITS_ROW:
        assert not done.batch_sizes


def test_files_are_those_of_the_server(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """Two models, three versions: nothing of the first is lost, the larger CPU count is kept."""
    models = tmp_path / "models"
    place(zoo_dir("two_signatures"), tmp_path / "one", seed=1, signature="encode")
    six = tmp_path / "six.npz"
    save_inputs(six, ZOO["two_signatures"].inputs(batch=6))
    three = tuple(f"/device:CPU:{i}" for i in range(3))
    place(zoo_dir("cond"), tmp_path / "two", seed=1, devices=three)
    first = export_serving(
        tmp_path / "one", models / "encoder", inputs=str(six), inter_op_threads=3
    )
    assert first.batch_sizes == (1, 2, 4, 6)
    second = export_serving(tmp_path / "two", models / "chooser")
    assert "first dimension is no batch" in " ".join(second.notes), "go_left is a scalar"
    assert second.restart, "it needs a third CPU"
    third = export_serving(tmp_path / "one", models / "encoder", inputs=str(six), version=12)
    fourth = export_serving(tmp_path / "one", models / "encoder", inputs=str(six), copy=True)
    assert fourth.directory.name == "13"
    assert not third.restart

    listed = parsed(models / "models.config", model_server_config_pb2.ModelServerConfig())
    assert [(m.name, m.base_path) for m in listed.model_config_list.config] == [
        ("encoder", "/models/encoder"),
        ("chooser", "/models/chooser"),
    ]
    config = parsed(models / "session_config.pbtxt", config_pb2.ConfigProto())
    assert config.device_count == {"CPU": 3}
    assert config.inter_op_parallelism_threads == 3
    parameters = batching(models / "encoder" / "1" / "batching_params.pbtxt")
    assert parameters.max_batch_size.value == 6
    assert list(parameters.allowed_batch_sizes) == [1, 2, 4, 6]
    service = yaml.safe_load((models / "compose.yaml").read_text())["services"]
    command = service["tensorflow-serving"]["command"]
    assert command == list(third.flags)
    assert "--tensorflow_inter_op_parallelism=3" in command
    assert "--enable_per_model_batching_parameters=true" in command
    assert flags_given(models / "serve.sh", "--port=1")[2:] == [*third.flags, "--port=1"]
    requests = [log.predict_log.request for log in logs(first.directory)]
    assert {r.model_spec.signature_name for r in requests} == {"encode", "serving_default"}
    assert {len(fed(r)["x"]) for r in requests} == {1, 2, 4, 6}
    links = (models / "encoder" / "13" / "variables" / "variables.index").stat().st_nlink
    assert links == 1, "it was to be copied"


def test_what_an_operator_wrote_is_kept(zoo_dir: ZooDir, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "models.config").write_text(
        'model_config_list { config { name: "old" base_path: "/elsewhere/old" '
        'model_version_policy { specific { versions: 7 } } } }'
    )  # fmt: skip
    (models / "session_config.pbtxt").write_text("gpu_options { allow_growth: true }")
    (models / "compose.yaml").write_text("services: {tensorflow-serving: {image: mine}, db: {}}")
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    done = export_serving(tmp_path / "placed", models / "m")
    assert any("'old' was not placed" in note for note in done.notes)
    listed = parsed(models / "models.config", model_server_config_pb2.ModelServerConfig())
    assert list(listed.model_config_list.config[0].model_version_policy.specific.versions) == [7]
    assert parsed(
        models / "session_config.pbtxt", config_pb2.ConfigProto()
    ).gpu_options.allow_growth
    services = yaml.safe_load((models / "compose.yaml").read_text())["services"]
    assert services["tensorflow-serving"]["image"] == "mine"
    assert "db" in services


class Examples(tf.Module):
    """A classifier of serialized `tf.train.Example`s."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(np.arange(12, dtype=np.float32).reshape(4, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([4], tf.float32)})
        return {"scores": tf.nn.softmax(parsed["x"] @ self.kernel)}


def test_classifiers_get_examples(tmp_path: Path) -> None:
    """TensorFlow 2 saves every signature as one to predict; the method is what Serving goes by."""
    model = Examples()
    save_function(tmp_path / "raw", model.classify, kernel=model.kernel)

    def as_classifier(meta_graph: Any) -> None:
        meta_graph.signature_def["serving_default"].method_name = "tensorflow/serving/classify"

    source = edited(tmp_path / "raw", tmp_path / "model", as_classifier)
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=row))}
            )
        )
        for row in np.random.default_rng(0).uniform(size=(4, 4))
    ]
    inputs = tmp_path / "examples.tfrecord"
    with tf.io.TFRecordWriter(str(inputs)) as writer:
        for example in examples:
            writer.write(example.SerializeToString())
    place(source, tmp_path / "placed", seed=1, input_shapes=("inputs=4",))
    with pytest.raises(MoiraiError, match=r"Example") as refused:
        export_serving(tmp_path / "placed", tmp_path / "models" / "m")
    assert "--inputs" in refused.value.fix
    assert not (tmp_path / "models").exists()
    done = export_serving(tmp_path / "placed", tmp_path / "models" / "m", inputs=str(inputs))
    whole, *ends = logs(done.directory)
    assert list(whole.classify_log.request.input.example_list.examples) == examples
    assert [len(log.classify_log.request.input.example_list.examples) for log in ends] == [2, 1]


def with_devices(plan: Plan, **fields: Any) -> Plan:
    return replace(plan, devices=tuple(replace(d, **fields) for d in plan.devices))


def test_models_that_no_server_can_have_together(zoo_dir: ZooDir, tmp_path: Path) -> None:
    devices = ("/device:CPU:0", "/device:GPU:0")
    plan = place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1, devices=devices)
    one, two = with_devices(plan, model="Tesla T4"), with_devices(plan, model="NVIDIA L4")
    with pytest.raises(MoiraiError, match=r"a and b.*'Tesla T4' and 'NVIDIA L4' as GPU 0"):
        check_tenants([Tenant("a", one, batched=False), Tenant("b", two, batched=False)])
    other = replace(plan, tags=("serve", "hidden"))
    with pytest.raises(MoiraiError, match="tags serve and hidden,serve"):
        check_tenants([Tenant("a", plan, batched=False), Tenant("b", other, batched=False)])
    check_tenants([Tenant("a", one, batched=False), Tenant("b", plan, batched=False)])


def test_models_that_need_more_memory_than_there_is(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """Two models of 60 bytes on a device of 100; one alone fits."""
    placed = scattered(zoo_dir, "two_signatures", tmp_path)
    plan = read_plan(placed)
    assert plan.summary is not None
    peaks = {device.name: 60 for device in plan.devices}
    full = with_devices(
        replace(plan, summary=replace(plan.summary, peak_bytes=peaks)), memory_bytes=100
    )
    check_tenants([Tenant("a", full, batched=False), Tenant("b", None, batched=False)])
    with pytest.raises(MoiraiError, match=r"need 120 bytes of /device:CPU:0 together"):
        check_tenants([Tenant("a", full, batched=False), Tenant("b", full, batched=False)])


def test_another_model_of_that_name(zoo_dir: ZooDir, tmp_path: Path) -> None:
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    export_serving(tmp_path / "placed", tmp_path / "models" / "m", model_root="/srv")
    before = digest(tmp_path / "models")
    with pytest.raises(MoiraiError, match="a model 'm' at /srv/m, not /models/m"):
        export_serving(tmp_path / "placed", tmp_path / "models" / "m")
    assert digest(tmp_path / "models") == before


def test_plans_of_workers_are_refused(zoo_dir: ZooDir, tmp_path: Path) -> None:
    workers = tuple(f"/job:worker/replica:0/task:{task}/device:CPU:0" for task in range(2))
    place(zoo_dir("cond"), tmp_path / "placed", seed=1, devices=workers)
    with pytest.raises(MoiraiError, match="a device of another process") as refused:
        export_serving(tmp_path / "placed", tmp_path / "models" / "m")
    assert "connect" in refused.value.fix
    assert not (tmp_path / "models").exists()


def test_a_version_that_exists_is_left_alone(zoo_dir: ZooDir, tmp_path: Path) -> None:
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    (tmp_path / "models" / "m" / "007").mkdir(parents=True)
    with pytest.raises(MoiraiError, match="has a version 7 already"):
        export_serving(tmp_path / "placed", tmp_path / "models" / "m", version=7)
    assert digest(tmp_path / "models") == {}
    assert export_serving(tmp_path / "placed", tmp_path / "models" / "m").directory.name == "8"


def test_requests_of_the_model_itself_are_kept(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """A version can be exported again; requests that fail are found before a server does."""
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    first = export_serving(tmp_path / "placed", tmp_path / "models" / "m")
    again = export_serving(first.directory, tmp_path / "more" / "m", seed=5)
    assert logs(again.directory)[: first.requests] == logs(first.directory)
    assert again.requests == 2 * first.requests
    bad = prediction_log_pb2.PredictionLog()
    bad.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    (tmp_path / "placed" / WARMUP_FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(tmp_path / "placed" / WARMUP_FILE)) as writer:
        writer.write(bad.SerializeToString())
    with pytest.raises(MoiraiError, match="own warm-up requests cannot be run"):
        export_serving(tmp_path / "placed", tmp_path / "bad" / "m")
    assert not (tmp_path / "bad").exists()


def _cut(file: Path, nbytes: int) -> None:
    content = file.read_bytes()
    file.unlink()  # it may be linked to the original's
    file.write_bytes(content[:nbytes])


DAMAGE: Mapping[str, Callable[[Path, Path], object]] = {
    "plan": lambda placed, _: _cut(placed / "assets.extra" / "moirai_plan.json", 100),
    "graph": lambda placed, _: _cut(placed / "saved_model.pb", 1000),
    "weights": lambda placed, _: _cut(placed / "variables" / "variables.data-00000-of-00001", 10),
    "warm-up": lambda placed, _: (placed / WARMUP_FILE).write_bytes(b"no records" * 9),
    "models": lambda _, models: (models / "models.config").write_text("model_config_list {"),
    "session": lambda _, models: (models / "session_config.pbtxt").write_text("threads: 3"),
    "compose": lambda _, models: (models / "compose.yaml").write_text("[1"),
}


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("weights", "models") else pytest.param(kind, marks=pytest.mark.slow)
        for kind in DAMAGE
    ],
)
def test_damage_is_told_and_nothing_is_written(kind: str, zoo_dir: ZooDir, tmp_path: Path) -> None:
    placed, models = tmp_path / "placed", tmp_path / "models"
    place(zoo_dir("two_signatures"), placed, seed=1)
    export_serving(placed, models / "m")
    DAMAGE[kind](placed, models)
    before = digest(tmp_path)
    with pytest.raises(MoiraiError) as refused:
        export_serving(placed, models / "m")
    assert refused.value.fix
    assert digest(tmp_path) == before
    assert [path.name for path in (models / "m").iterdir()] == ["1"]


@pytest.mark.parametrize(
    "nbytes", [500, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 100, 20_000))]
)
def test_a_full_disk_leaves_nothing(nbytes: int, zoo_dir: ZooDir, tmp_path: Path) -> None:
    """The session configuration has about 70 bytes, the command 450, the weights 37,000."""
    placed, models = tmp_path / "placed", tmp_path / "models"
    place(zoo_dir("two_signatures"), placed, seed=1)
    for known in (False, True):
        if known:
            export_serving(placed, models / "m")
        before = digest(tmp_path)
        refused, said = refused_on_full_disk(
            "moirai_tf.export.serving", "rehearse", "export_serving", placed, models / "m",
            room=nbytes,
        )  # fmt: skip
        assert refused, said
        assert digest(tmp_path) == before
        assert models.exists() == known


def test_without_the_extra_it_says_what_to_install(
    zoo_dir: ZooDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(MoiraiError, match="not installed") as refused:
        export_serving(tmp_path / "placed", tmp_path / "models" / "m")
    assert "moirai_tf[serving]" in refused.value.fix
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "options",
    [{"version": -1}, {"gpu_memory_fraction": 2.0}, {"model_root": "models"}, {"inputs": "none"}],
)
def test_options_that_no_server_takes(
    options: dict[str, Any], zoo_dir: ZooDir, tmp_path: Path
) -> None:
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    with pytest.raises(MoiraiError):
        export_serving(tmp_path / "placed", tmp_path / "models" / "m", **options)
    assert not (tmp_path / "models").exists()


def test_the_way_back(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """A version without the plan is the next version: the same graph, with its old devices."""
    place(zoo_dir("two_signatures"), tmp_path / "placed", seed=1)
    base = tmp_path / "models" / "m"
    done = export_serving(tmp_path / "placed", base)
    strip(done.directory, base / "2")
    assert proto_of(base / "2") == proto_of(zoo_dir("two_signatures"))
    config = parsed(base.parent / "session_config.pbtxt", config_pb2.ConfigProto())
    (request, *_) = [log.predict_log.request for log in logs(base / "2")]
    arguments = ("serve",), "serving_default", fed(request), config
    served: Sequence[CRun] = [run_saved_model(base / v, *arguments) for v in "12"]
    np.testing.assert_array_equal(served[0].outputs["logits"], served[1].outputs["logits"])

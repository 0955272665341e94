"""Models that do not load or run: what is said is what happened, and what is advised helps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import moirai_tf
from moirai_tf.cost.inputs import generate_inputs
from moirai_tf.cost.measure import measure
from moirai_tf.errors import MoiraiError
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.runtime.failures import failure_of, reason
from moirai_tf.verify import VerifyOptions
from moirai_tf.verify.run import SessionModel, Tf2Model
from tests.cost_cases import imported, saved, spec
from tests.placements import place
from tests.saved_models import edited, node_of, save_graph

tf1 = tf.compat.v1
DATA, INDEX = "variables/variables.data-00000-of-00001", "variables/variables.index"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tanh of a product with a variable."""
    weights = tf.Variable(np.ones([4, 4], np.float32), name="weights")

    @tf.function(input_signature=[spec(2, 4)])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.tanh(tf.matmul(x, weights))}

    return saved(call, tmp_path_factory.mktemp("product") / "m", weights).path


def _measured(path: Path) -> None:
    model = read_saved_model(path)
    graph = imported(model)
    measure(model, graph, generate_inputs(graph), repeats=1, warmup=1)


def _refusal(path: Path) -> MoiraiError:
    with pytest.raises(MoiraiError, match="to be measured") as caught:
        _measured(path)
    assert "\n" not in caught.value.rule
    return caught.value


@pytest.mark.parametrize(
    ("file", "damage"),
    [(DATA, "empty"), (DATA, "cut"), (DATA, "gone"), (INDEX, "empty"), (INDEX, "cut")],
)
def test_damaged_variables(file: str, damage: str, product: Path, tmp_path: Path) -> None:
    path = tmp_path / "m"
    shutil.copytree(product, path)
    content = (path / file).read_bytes()
    (path / file).unlink() if damage == "gone" else (path / file).write_bytes(
        content[: len(content) // 2 if damage == "cut" else 0]
    )
    error = _refusal(path)
    assert "loaded" in error.rule
    assert "the files in variables/ are damaged or missing" in error.fix
    assert "--inputs" not in error.fix
    shutil.copytree(product, path, dirs_exist_ok=True)
    _measured(path)


def test_missing_asset(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("a\nb\n")
    module = tf.Module()
    initializer = tf.lookup.TextFileInitializer(
        str(tmp_path / "words"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )  # fmt: skip
    module.table = tf.lookup.StaticHashTable(initializer, -1)

    @tf.function(input_signature=[spec(2, dtype=tf.string)])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": module.table.lookup(x)}

    tf.saved_model.save(module, str(tmp_path / "m"), signatures=call)
    (tmp_path / "m" / "assets" / "words").unlink()
    error = _refusal(tmp_path / "m")
    assert "assets/words; No such file or directory" in error.rule
    assert "a file in assets/ is missing" in error.fix
    (tmp_path / "m" / "assets" / "words").write_text("a\nb\n")
    _measured(tmp_path / "m")


def test_job_that_is_not_here(product: Path, tmp_path: Path) -> None:
    device = "/job:ps/task:0/device:CPU:0"

    def elsewhere(meta_graph: Any) -> None:
        node_of(meta_graph.graph_def, "weights").device = device

    error = _refusal(edited(product, tmp_path / "m", elsewhere))
    assert f"the model itself asks for {device}" in error.fix
    assert "outside tf.device" in error.fix
    _measured(edited(tmp_path / "m", tmp_path / "again", _without_devices))


def _without_devices(meta_graph: Any) -> None:
    """What `clear_devices=True` does."""
    for node in meta_graph.graph_def.node:
        node.device = ""


def test_colocation_with_nothing(product: Path, tmp_path: Path) -> None:
    def colocate(meta_graph: Any) -> None:
        node_of(meta_graph.graph_def, "weights").attr["_class"].list.s.append(b"loc:@gone")

    error = _refusal(edited(product, tmp_path / "m", colocate))
    assert "unknown node 'gone'" in error.rule
    assert "names the operator 'gone', which it does not have" in error.fix


def test_kernel_that_is_not_here(tmp_path: Path) -> None:
    """cuDNN's; the costs can be computed, as the error says, without verification."""

    @tf.function(input_signature=[spec(2, 3, 4)])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        state, weights = tf.zeros([1, 3, 4]), tf.ones([1000])
        rnn = tf.raw_ops.CudnnRNN(
            input=x, input_h=state, input_c=state, params=weights, rnn_mode="gru"
        )
        return {"y": rnn.output}

    error = _refusal(saved(call, tmp_path / "m").path)
    assert "No OpKernel was registered to support Op 'CudnnRNN'" in error.rule
    assert "this machine has no kernel of CudnnRNN" in error.fix
    assert "--source=analytical" in error.fix
    assert "--noverify" in error.fix


def test_python_that_a_saved_model_does_not_hold(tmp_path: Path, product: Path) -> None:
    @tf.function(input_signature=[spec(2)])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.numpy_function(np.tanh, [x], tf.float32)}

    def forget(meta_graph: Any) -> None:
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "PyFunc":
                    node.attr["token"].s = b"pyfunc_of_another_process"

    error = _refusal(edited(saved(call, tmp_path / "m").path, tmp_path / "n", forget))
    assert "does not hold the Python code of numpy_function" in error.fix


_INPUTS: dict[str, tuple[tf.TensorSpec, Callable[[Any], Any], Any]] = {
    "index": (
        spec(2, dtype=tf.int32),
        lambda x: tf.strings.length(tf.gather(tf.constant(["a"]), x + 5)),
        np.array([-5, -5], np.int32),
    ),
    "example": (
        spec(1, dtype=tf.string),
        lambda x: tf.io.parse_example(x, {"f": tf.io.FixedLenFeature([], tf.int64, 1)})["f"],
        np.array([b""], dtype=object),
    ),
    "assertion": (
        spec(2),
        lambda x: tf.ensure_shape(x[: tf.cast(tf.reduce_sum(x), tf.int32)], [2]) + 1.0,
        np.ones(2, np.float32),
    ),
}


@pytest.mark.parametrize("case", _INPUTS)
def test_inputs_that_the_model_refuses(case: str, tmp_path: Path) -> None:
    signature, function, good = _INPUTS[case]

    @tf.function(input_signature=[signature])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": function(x)}

    path = saved(call, tmp_path / "m").path
    error = _refusal(path)
    assert "cannot be run" in error.rule
    assert error.fix.startswith("give inputs that the model accepts (--inputs)")
    model = read_saved_model(path)
    measure(model, imported(model), {"x": good}, repeats=1, warmup=1)


def test_variable_without_a_value(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [2, 4], "x")
        reference = tf1.get_variable("v", [4, 4], use_resource=False)
        path = save_graph(tmp_path / "m", graph, {"x": x}, {"y": x @ reference})
    error = _refusal(path)
    assert "Attempting to use uninitialized value v (operator 'v/read')" in error.rule
    assert "initialise and save all variables" in error.fix


def test_a_gpu_without_room_is_told_from_a_variable_without_a_value() -> None:
    """TensorFlow's words for a copy to a GPU whose allocator has no room left."""
    text = (
        "Failed copying input tensor from /device:CPU:0 to /device:GPU:0 in order to run Identity: "
        "Dst tensor is not initialized."
    )
    failure = failure_of(tf.errors.InternalError(None, None, text))
    assert failure.known
    assert "give the device less memory" in failure.fix


_PYTHON = {
    "index": lambda: (_ for _ in ()).throw(IndexError("list index out of range")),
    "attribute": lambda: object().gone,  # type: ignore[attr-defined]
    "import": lambda: __import__("no_such_module"),
}


@pytest.mark.parametrize("case", _PYTHON)
def test_python_errors_are_one_line_with_their_type(case: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  any exception is the point
        _PYTHON[case]()
    failure = failure_of(caught.value, loading=True)
    assert failure.text == f"{type(caught.value).__name__}: {caught.value}"
    assert "--inputs" not in failure.fix


def test_function_that_raises_tells_no_traceback(tmp_path: Path) -> None:
    """Both loaders; the line says which operator raised what."""

    def refuse(x: Any) -> Any:
        raise KeyError("no such key")

    @tf.function(input_signature=[spec(2)])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.numpy_function(refuse, [x], tf.float32)}

    path, inputs = saved(call, tmp_path / "m").path, {"x": np.ones(2, np.float32)}
    for run in (
        lambda: SessionModel(path, ["serve"], "serving_default", []).run(inputs, grappler=False),
        lambda: Tf2Model(path, ["serve"], "serving_default").run(inputs, grappler=False),
    ):
        with pytest.raises(tf.errors.OpError) as caught:
            run()
        assert "Traceback" in str(caught.value)
        assert reason(caught.value) == "KeyError: 'no such key' (operator 'PyFunc')"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  indented", "indented"),
        ("", "ValueError"),
        ("Graph execution error:\n\nDetected at node 'a/b' defined at (most recent call last):\n"
         "  File \"x.py\", line 1, in <module>\n    call()\nNode: 'a/b'\nwrong",
         "ValueError: wrong (operator 'a/b')"),
        ("{{function_node __f_1}} {{node a}} bad value\n\t [[{{node a}}]]",
         "ValueError: bad value (operator 'a')"),
    ],
)  # fmt: skip
def test_reasons_are_never_empty(text: str, said: str) -> None:
    assert reason(ValueError(text)) == said


def test_first_of_several_errors_is_the_reason() -> None:
    text = (
        "Graph execution error:\n\n2 root error(s) found.\n"
        "  (0) INVALID_ARGUMENT: indices[0] = 7 is not in [0, 5)\n\t [[{{node call/GatherV2}}]]\n"
        "\t [[call/GatherV2/_3]]\n  (1) INVALID_ARGUMENT: indices[1] = 9 is not in [0, 5)\n"
        "0 successful operations.\n"
    )
    error = tf.errors.InvalidArgumentError(None, None, text)
    assert reason(error) == "indices[0] = 7 is not in [0, 5) (operator 'call/GatherV2')"


def test_no_reason_is_empty(product: Path, tmp_path: Path) -> None:
    """The TF2 loader puts the definition of the operator before what happened to it."""
    path, inputs = tmp_path / "m", {"x": np.ones([2, 4], np.float32)}
    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [2, 4], "x")
        save_graph(path, graph, {"x": x}, {"y": x @ tf1.get_variable("v", [4, 4])})
    with pytest.raises(tf.errors.OpError) as caught:
        Tf2Model(path, ["serve"], "serving_default").run(inputs, grappler=False)
    assert str(caught.value).splitlines()[2].startswith("Detected at node")
    assert reason(caught.value).startswith("Could not find variable v")


def _no_slots(meta_graph: Any) -> None:
    """An optimizer's slot that names an object which is no variable: an AttributeError."""
    nodes = meta_graph.object_graph_def.nodes
    optimizer = nodes.add()
    optimizer.user_object.identifier = "optimizer"
    optimizer.user_object.version.min_consumer = optimizer.user_object.version.producer = 1
    slot = optimizer.slot_variables.add()
    slot.original_variable_node_id = slot.slot_variable_node_id = 0
    slot.slot_name = "m"
    nodes[0].children.add(node_id=len(nodes) - 1, local_name="optimizer")


def _no_object(meta_graph: Any) -> None:
    """A child that does not exist: an IndexError."""
    meta_graph.object_graph_def.nodes[0].children.add(node_id=9999, local_name="gone")


@pytest.mark.parametrize("edit", [_no_slots, _no_object])
def test_loader_that_raises_leaves_the_session_to_prove(
    edit: Callable[[Any], None], product: Path, tmp_path: Path
) -> None:
    source = edited(product, tmp_path / "m", edit)
    with pytest.raises(Exception) as raised:  # noqa: PT011  the loader may raise anything
        tf.saved_model.load(str(source))
    place(source, tmp_path / "placed", placement={})
    report = moirai_tf.verify(source, tmp_path / "placed", VerifyOptions(grappler="off"))
    assert report.ok
    assert [proof.run for proof in report.proofs] == ["session, Grappler off"]
    (note,) = report.notes
    expected = f"the original itself cannot be loaded by tf2: {type(raised.value).__name__}"
    assert note.startswith(expected)
    with pytest.raises(MoiraiError, match=expected) as caught:
        moirai_tf.verify(
            source, tmp_path / "placed", VerifyOptions(grappler="off", loaders=("tf2",))
        )
    assert "allow both loaders (--loaders=tf2 --loaders=session)" in caught.value.fix


def test_pin_that_findings_advise_helps(product: Path, tmp_path: Path) -> None:
    """A variable is read where it is, whatever the plan says of the read."""
    read = "StatefulPartitionedCall/StatefulPartitionedCall/MatMul/ReadVariableOp"
    place(product, tmp_path / "placed", placement={read: "/device:CPU:1"})
    options = VerifyOptions(grappler="off", loaders=("session",))
    with pytest.raises(MoiraiError, match="ReadVariableOp") as caught:
        moirai_tf.verify(product, tmp_path / "placed", options)
    assert "grappler=off" not in caught.value.fix
    assert "coarsen" not in caught.value.fix
    pin = caught.value.fix.split("pin='")[1].split("'")[0].replace("\\\\", "\\")
    assert pin.endswith("$=/device:CPU:0")
    summary = moirai_tf.optimize(
        product, tmp_path / "again", "configs/two_local_cpus.yaml", pin=(pin,), repeats=1,
        warmup=1, grappler="off", loaders=("session",),
    )  # fmt: skip
    assert summary.report is not None
    assert summary.report.ok

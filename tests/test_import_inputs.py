"""What a user must say to have a signature imported, and errors that say exactly that."""

from __future__ import annotations

import gzip
import re
import shlex
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import moirai_tf
from moirai_tf.cost.inputs import load_inputs
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph
from tests.cost_cases import spec
from tests.saved_models import graph_of, save_function, save_graph

tf1 = tf.compat.v1


def _saved(path: Path, *specs: tf.TensorSpec, **signatures: str) -> Path:
    """A model that adds up all its numbers, under the names of the given signatures."""

    @tf.function(input_signature=specs)
    def call(*inputs: Any) -> dict[str, Any]:
        flat = tf.nest.flatten(inputs, expand_composites=True)
        return {"y": tf.add_n([tf.reduce_sum(tf.cast(x, tf.float32)) for x in flat])}

    module = tf.Module()
    module.call = call
    tf.saved_model.save(module, str(path), dict.fromkeys(signatures or ["serving_default"], call))
    return path


def _advised(fix: str) -> tuple[str, ...]:
    """The shapes that an error's flags would give, as a shell reads them."""
    (flags,) = re.findall(r" or (--input_shapes=.*); or ", fix)
    return tuple(flag.removeprefix("--input_shapes=") for flag in shlex.split(flags))


def _shapes(graph: Graph) -> dict[str, tuple[int, ...] | None]:
    return {name: graph.operators[i].outputs[0].shape for name, i in graph.inputs.items()}


_UNKNOWN = {
    "image": ([spec(1, None, None, 3)], "'x' [1, -1, -1, 3]", {"x": (1, 128, 128, 3)}),
    "two, one of them any rank": (
        [
            tf.TensorSpec(None, tf.float32, "a"),
            spec(None, 7, name="b"),
            spec(5, None, name="c"),
        ],
        "'a' of unknown rank, 'c' [5, -1]",
        {"a": (4, 128), "b": (4, 7), "c": (5, 128)},
    ),
    "sequence and batch": ([spec(None, None, 8)], "'x' [-1, -1, 8]", {"x": (4, 128, 8)}),
}


@pytest.mark.parametrize("case", _UNKNOWN)
def test_all_unknown_shapes_are_named_with_an_example_that_works(case: str, tmp_path: Path) -> None:
    specs, named, example = _UNKNOWN[case]
    path = _saved(tmp_path / "model", *specs)
    with pytest.raises(MoiraiError) as caught:
        graph_of(path, batch_size=4)
    assert caught.value.rule.endswith(f"are unknown: {named}")
    shapes = _advised(caught.value.fix)
    assert _shapes(graph_of(path, batch_size=4, input_shapes=shapes)) == example


def test_parts_of_a_sparse_input_have_an_example_that_works(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        sparse = tf1.sparse_placeholder(tf.float32, [None, 6, 5], "s")
        total = tf.sparse.reduce_sum(sparse)
        path = save_graph(tmp_path / "model", graph, {"my s": sparse}, {"y": total})
    with pytest.raises(MoiraiError, match=r"'my s/0' \[-1, 3\], 'my s/1' \[-1\]") as caught:
        graph_of(path)
    found = _shapes(graph_of(path, input_shapes=_advised(caught.value.fix)))
    assert found == {"my s/0": (2, 3), "my s/1": (2,), "my s/2": (3,)}


def test_input_without_a_declared_shape_has_that_of_its_placeholder(tmp_path: Path) -> None:
    from tests.saved_models import edited

    source = _saved(tmp_path / "source", spec(None, 7))

    def forget(meta_graph: Any) -> None:
        for info in meta_graph.signature_def["serving_default"].inputs.values():
            info.ClearField("tensor_shape")

    path = edited(source, tmp_path / "model", forget)
    assert _shapes(graph_of(path, batch_size=3)) == {"x": (3, 7)}


def test_inputs_decide_shapes(tmp_path: Path) -> None:
    path = _saved(tmp_path / "model", spec(None, None, name="a"), spec(None, 7, name="b"))
    file = tmp_path / "inputs.npz"
    np.savez(file, a=np.ones([2, 5], np.float32), b=np.ones([2, 7], np.float32))
    graph = graph_of(path, inputs=str(file))
    assert _shapes(graph) == {"a": (2, 5), "b": (2, 7)}
    assert load_inputs(graph, file)["a"].shape == (2, 5)
    other = graph_of(path, inputs=str(file), input_shapes=("a=3,5",))
    assert _shapes(other) == {"a": (3, 5), "b": (2, 7)}
    with pytest.raises(MoiraiError, match=r"'a' has the shape \[2, 5\], but the graph") as caught:
        load_inputs(other, file)
    assert "without input_shapes" in caught.value.fix
    np.savez(file, a=np.ones([2, 5], np.float32), b=np.ones([2, 8], np.float32))
    with pytest.raises(MoiraiError, match=r"'b' is given the shape \[2, 8\]") as caught:
        graph_of(path, inputs=str(file))
    assert "'b=1,7'" in caught.value.fix


def test_inputs_of_other_sizes_are_placed_and_verified(tmp_path: Path) -> None:
    """sum(a) + sum(b) with 10 and 14 ones; the plan remembers the shapes, not the file."""
    path = _saved(tmp_path / "model", spec(None, None, name="a"), spec(None, 7, name="b"))
    file, other = tmp_path / "inputs.npz", tmp_path / "other.npz"
    np.savez(file, a=np.ones([2, 5], np.float32), b=np.ones([2, 7], np.float32))
    np.savez(other, a=np.ones([4, 1], np.float32), b=np.ones([4, 7], np.float32))
    moirai_tf.optimize(
        path, tmp_path / "placed", inputs=str(file), repeats=1, warmup=1, verify=False
    )
    recorded = moirai_tf.read_plan(tmp_path / "placed").options["import"]
    assert recorded["input_shapes"] == ["a=2,5", "b=2,7"]
    file.unlink()
    verify = moirai_tf.Verify(grappler="off", inputs=str(other))
    assert moirai_tf.verify(path, tmp_path / "placed", verify).ok


_WORDS = {
    "zero at the end": [b"ab\0", b"c"],
    "zeros alone": [b"\0\0", b""],
    "not UTF-8": [b"\xff\x00\xfe", b"\x80"],
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lengths of a batch of strings."""

    @tf.function(input_signature=[spec(None, dtype=tf.string, name="words")])
    def call(words: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.strings.length(words)}

    return save_function(tmp_path_factory.mktemp("words") / "model", call)


@pytest.mark.parametrize("case", _WORDS)
@pytest.mark.parametrize("form", ["npz", "records", "zipped records"])
def test_strings_arrive_as_they_are(form: str, case: str, tmp_path: Path, words: Path) -> None:
    given, file = _WORDS[case], tmp_path / "inputs"
    if form == "npz":
        moirai_tf.save_inputs(file, {"words": np.array(given, dtype=object)})
    else:
        with tf.io.TFRecordWriter(str(file)) as writer:
            for word in given:
                writer.write(word)
    if form == "zipped records":
        file.write_bytes(gzip.compress(file.read_bytes()))
    graph = graph_of(words, inputs=str(file))
    assert load_inputs(graph, file)["words"].tolist() == given


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("said", [1 << 62, 1 << 34, 1_000])
def test_records_that_say_more_than_there_is(
    said: int, zipped: bool, tmp_path: Path, words: Path
) -> None:
    """The checksum of the length is right, and TensorFlow's reader dies of making room for it."""
    head = struct.pack("<Q", said)
    content = head + struct.pack("<I", _masked_checksum(head)) + b"x" * 100
    file = tmp_path / "inputs"
    file.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(MoiraiError, match=r"records have more than|longer than what is there"):
        graph_of(words, inputs=str(file))


def _masked_checksum(data: bytes) -> int:
    """CRC-32C (polynomial 0x82F63B78, reflected), turned by 15 bits and shifted by a constant."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def test_example_whose_last_value_is_zero(tmp_path: Path) -> None:
    """A serialized `tf.train.Example` of 0.0 ends in NUL; parsed it gives 0 + 1 = 1."""

    @tf.function(input_signature=[spec(None, dtype=tf.string, name="examples")])
    def call(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        features = tf.io.parse_example(examples, {"f": tf.io.FixedLenFeature([], tf.float32)})
        return {"y": features["f"] + 1.0}

    path = save_function(tmp_path / "model", call)
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=[0.0]))
    example = tf.train.Example(features=tf.train.Features(feature={"f": feature}))
    serialized = example.SerializeToString()
    assert serialized.endswith(b"\0")
    numpy_file, file = tmp_path / "numpy.npz", tmp_path / "inputs.npz"
    np.savez(numpy_file, examples=np.array([serialized]))
    np.savez(file, examples=np.array([serialized], dtype=object))
    with pytest.raises(MoiraiError, match="strings that end in NUL") as caught:
        graph_of(path, inputs=str(numpy_file))
    assert "moirai_tf.save_inputs(path, {name: array, ...})" in caught.value.fix
    with pytest.raises(MoiraiError, match="pickled objects") as caught:
        graph_of(path, inputs=str(file))
    assert "moirai_tf.save_inputs" in caught.value.fix
    moirai_tf.save_inputs(file, {"examples": np.array([serialized], dtype=object)})
    inputs = load_inputs(graph_of(path, inputs=str(file)), file)
    outputs = tf.saved_model.load(str(path)).signatures["serving_default"](
        examples=tf.constant(inputs["examples"])
    )
    assert outputs["y"].numpy().tolist() == [1.0]


@pytest.mark.parametrize(
    "value",
    [
        tf.constant([1.5, -2.0], tf.bfloat16), tf.constant([[True], [False]]),
        tf.constant([1 + 2j], tf.complex64), tf.constant([200, 7], tf.uint8),
        tf.cast([0.5], tf.dtypes.experimental.float8_e4m3fn), tf.constant([["é", "x\0"]]),
        tf.constant([b"\0"]),
    ],
    ids=lambda value: value.dtype.name,
)  # fmt: skip
def test_every_type_is_kept(value: Any, tmp_path: Path) -> None:
    from moirai_tf.model.input_files import read_inputs

    file = tmp_path / "inputs.npz"
    moirai_tf.save_inputs(file, {"x": value})
    (read,) = read_inputs(file, {"x": value.dtype.as_datatype_enum}).values()
    assert read.shape == value.shape
    assert read.tolist() == np.asarray(value.numpy()).tolist()
    plain = tmp_path / "plain.npz"
    if value.dtype != tf.string:
        np.savez(plain, x=value.numpy())
        (read,) = read_inputs(plain, {"x": value.dtype.as_datatype_enum}).values()
        assert read.tolist() == value.numpy().tolist()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (b"some text, no records", "neither an .npz archive nor TFRecords"),
        (b"\x1f\x8bgarbage", "neither an .npz archive nor TFRecords"),
        (b"PK\x03\x04 truncated", "cannot be read: "),
    ],
)
def test_files_that_hold_no_strings(content: bytes, what: str, tmp_path: Path, words: Path) -> None:
    (tmp_path / "inputs").write_bytes(content)
    with pytest.raises(MoiraiError, match=what):
        graph_of(words, inputs=str(tmp_path / "inputs"))


def test_records_suit_one_input_of_strings(tmp_path: Path) -> None:
    path = _saved(tmp_path / "model", spec(None, 2))
    with tf.io.TFRecordWriter(str(tmp_path / "records")) as writer:
        writer.write(b"a")
    with pytest.raises(MoiraiError, match="TFRecords suit one input of strings only"):
        graph_of(path, inputs=str(tmp_path / "records"))


def test_only_signature_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _saved(tmp_path / "model", spec(None, 7), classify="")
    assert graph_of(path).signature == "classify"
    assert "'classify'" in caplog.text
    summary = moirai_tf.optimize(path, tmp_path / "placed", verify=False, repeats=1, warmup=1)
    assert "signature 'classify'" in str(summary)


def test_initialiser_beside_one_signature_is_not_offered(tmp_path: Path) -> None:
    path = _with_initialiser(tmp_path / "one", classify="")
    assert graph_of(path).signature == "classify"
    path = _with_initialiser(tmp_path / "two", classify="", regress="")
    with pytest.raises(MoiraiError, match="no signature 'serving_default'") as caught:
        graph_of(path)
    assert caught.value.fix.endswith("choose one of (--signature): classify, regress")
    assert graph_of(path, signature="regress").signature == "regress"
    for wrong in ("serving_default", "__saved_model_init_op"):
        with pytest.raises(MoiraiError) as caught:
            graph_of(path, signature=wrong)
        assert caught.value.fix.endswith(": classify, regress")


def test_model_without_a_usable_signature(tmp_path: Path) -> None:
    """What `tf.saved_model.save(model, path)` writes; the advice is followed."""
    module = tf.Module()
    module.table = _table()
    module.call = tf.function(lambda x: x + 1.0)
    tf.saved_model.save(module, str(tmp_path / "model"))
    with pytest.raises(MoiraiError, match="no signature 'serving_default'") as caught:
        graph_of(tmp_path / "model")
    assert "tf.saved_model.save(model, path, signatures=function)" in caught.value.fix
    function = module.call.get_concrete_function(spec(2))
    tf.saved_model.save(module, str(tmp_path / "again"), signatures=function)
    assert graph_of(tmp_path / "again").signature == "serving_default"


def _with_initialiser(path: Path, **signatures: str) -> Path:
    """A model with a table, so that it has a signature that fills it."""
    module = tf.Module()
    module.table = _table()

    @tf.function(input_signature=[spec(None, dtype=tf.string, name="words")])
    def call(words: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": module.table.lookup(words)}

    module.call = call
    tf.saved_model.save(module, str(path), dict.fromkeys(signatures, call))
    return path


def _table() -> tf.lookup.StaticHashTable:
    pairs = tf.lookup.KeyValueTensorInitializer(tf.constant(["a"]), tf.constant([1], tf.int64))
    return tf.lookup.StaticHashTable(pairs, -1)

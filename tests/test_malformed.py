"""Broken models end in a `MoiraiError` that names the fault, never in a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorflow.core.framework import types_pb2

from moirai_tf.errors import MoiraiError
from moirai_tf.model.saved_model import read_saved_model
from tests.golden.__main__ import FOLDER
from tests.refusals import refusal_of, siamese, written
from tests.saved_models import graph_of, proto_of, zoo_options

ZooDir = Callable[[str], Path]


# Faults made on purpose: what is broken, and how the error names it.


def _main(m: Any, name: str) -> Any:
    (found,) = (n for n in m.graph_def.node if n.name == name)
    return found


def _function(m: Any, name: str) -> Any:
    (found,) = (f for f in m.graph_def.library.function if f.signature.name == name)
    return found


def _node(m: Any, function: str, name: str) -> Any:
    (found,) = (n for n in _function(m, function).node_def if n.name == name)
    return found


def _swap_input(m: Any, text: str) -> None:
    _node(m, "serve", "difference").input[0] = text


def _call(caller: Any, name: str, called: str) -> None:
    """Adds a call of `embed` or of something with the same arguments and results."""
    call = caller.node_def.add(name=name, op="StatefulPartitionedCall")
    call.input.extend(["x", "weight"])
    call.attr["f"].func.name = called
    call.attr["Tin"].list.type.extend([types_pb2.DT_FLOAT, types_pb2.DT_RESOURCE])
    call.attr["Tout"].list.type.append(types_pb2.DT_FLOAT)


def _copy_of_embed(m: Any, name: str) -> Any:
    copy = m.graph_def.library.function.add()
    copy.CopyFrom(_function(m, "embed"))
    copy.signature.name = name
    return copy


def _recurse(m: Any) -> None:
    _call(_function(m, "embed"), "again", "embed")


def _recurse_through_another(m: Any) -> None:
    _call(_copy_of_embed(m, "other"), "back", "embed")
    _call(_function(m, "embed"), "forth", "other")


def _recurse_out_of_line(m: Any) -> None:
    _function(m, "embed").attr["_noinline"].b = True
    _recurse(m)


def _recurse_in_a_branch(m: Any) -> None:
    branch = _function(m, "closer")
    branch.node_def.add(name="again", op="closer", input=["d"])


def _double(m: Any) -> None:
    """Each of forty functions calls the next one twice: 2 ** 40 calls of the last."""
    names = ["embed", *(f"embed_{i}" for i in range(40))]
    functions = [_function(m, "embed"), *(_copy_of_embed(m, name) for name in names[1:])]
    for caller, called in zip(functions, names[1:], strict=False):
        _call(caller, "once", called)
        _call(caller, "twice", called)


def _cycle(m: Any) -> None:
    _node(m, "embed", "MatMul").input[0] = "Identity:output:0"


def _cycle_of_controls(m: Any) -> None:
    _node(m, "embed", "Read").input.append("^Relu")


def _duplicate_node(m: Any) -> None:
    m.graph_def.node.add().CopyFrom(_main(m, "weight"))


def _argument_named_like_a_node(m: Any) -> None:
    _function(m, "embed").signature.input_arg[0].name = "Relu"


def _duplicate_function(m: Any) -> None:
    m.graph_def.library.function.add().CopyFrom(_function(m, "closer"))


def _nameless_function(m: Any) -> None:
    m.graph_def.library.function.add()


def _constant(m: Any, **tensor: Any) -> None:
    node = m.graph_def.node.add(name="constant", op="Const")
    node.attr["dtype"].type = types_pb2.DT_FLOAT
    value = node.attr["value"].tensor
    value.dtype = types_pb2.DT_FLOAT
    for field, content in tensor.items():
        setattr(value, field, content)


def _pack(m: Any, count: int) -> None:
    node = _function(m, "closer").node_def.add(name="pack", op="Pack", input=["d"])
    node.attr["T"].type = types_pb2.DT_FLOAT
    node.attr["N"].i = count


def _set_type(node: Any, attribute: str, dtype: int) -> None:
    node.attr[attribute].type = dtype


_FAULTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "dangling input": (
        lambda m: _swap_input(m, "gone:z:0"),
        "function 'serve': node 'difference' reads 'gone:z:0', which does not exist",
    ),
    "dangling control input": (
        lambda m: _node(m, "serve", "text").input.append("^gone"),
        "function 'serve': node 'text' waits for '^gone', which does not exist",
    ),
    "output number too high": (
        lambda m: _swap_input(m, "embed_left:output:1"),
        "reads 'embed_left:output:1', but 'embed_left' has 1 outputs",
    ),
    "negative output number": (
        lambda m: _swap_input(m, "embed_left:output:-1"),
        "reads 'embed_left:output:-1', but 'embed_left' has 1 outputs",
    ),
    "unknown output argument": (
        lambda m: _swap_input(m, "embed_left:result:0"),
        "reads 'embed_left:result:0', but 'embed_left' has 1 outputs",
    ),
    "endless output number": (
        lambda m: _swap_input(m, f"embed_left:output:{'9' * 5000}"),
        "but 'embed_left' has 1 outputs",
    ),
    "input of another type": (
        lambda m: _swap_input(m, "flip"),
        "function 'serve': node 'difference' reads (bool, float), but Sub takes (float, float)",
    ),
    "too few inputs": (
        lambda m: _node(m, "serve", "difference").input.pop(),
        "node 'difference' reads (float), but Sub takes (float, float)",
    ),
    "too many inputs": (
        lambda m: _node(m, "serve", "difference").input.append("left"),
        "node 'difference' reads (float, float, float), but Sub takes (float, float)",
    ),
    "unknown op": (
        lambda m: setattr(_node(m, "embed", "Relu"), "op", "ReluOfTheFuture"),
        "uses ops that this TensorFlow does not know: ReluOfTheFuture",
    ),
    "missing attribute": (
        lambda m: _node(m, "embed", "Relu").attr.pop("T"),
        "function 'embed': node 'Relu' lacks its attribute 'T'",
    ),
    "attribute of another kind": (
        lambda m: setattr(_node(m, "embed", "Relu").attr["T"], "i", 1),
        "node 'Relu' has the attribute 'T' of another kind than type",
    ),
    "type that the op does not take": (
        lambda m: _set_type(_node(m, "embed", "Relu"), "T", types_pb2.DT_STRING),
        "node 'Relu' has the attribute 'T' with string, which the op does not take",
    ),
    "type that does not exist": (
        lambda m: _set_type(_node(m, "serve", "text"), "T", 999),
        "node 'text' has the attribute 'T' with type 999, which the op does not take",
    ),
    "fewer tensors than the op takes": (
        lambda m: _pack(m, 0),
        "node 'pack' has the attribute 'N' below 1",
    ),
    "tensors without end": (
        lambda m: _pack(m, 2**40),
        "node 'pack' has 1099511627776 tensors in the place of its attribute 'N'",
    ),
    "unknown function": (
        lambda m: setattr(_node(m, "serve", "embed_left").attr["f"].func, "name", "gone"),
        "node 'embed_left' names in its attribute 'f' the function 'gone'",
    ),
    "call with another number of arguments": (
        lambda m: _function(m, "embed").signature.input_arg.add(
            name="extra", type=types_pb2.DT_FLOAT
        ),
        "node 'embed_left' has (float, resource) in Tin, but its function 'embed' takes "
        "(float, resource, float)",
    ),
    "call with other results": (
        lambda m: _node(m, "serve", "embed_left").attr["Tout"].list.type.append(1),
        "node 'embed_left' has (float, float) in Tout, but its function 'embed' gives (float)",
    ),
    "branch of other types": (
        lambda m: setattr(_node(m, "serve", "chosen").attr["else_branch"].func, "name", "embed"),
        "node 'chosen' has (float) in Tin, but its function 'embed' takes (float, resource)",
    ),
    "result of another type": (
        lambda m: _function(m, "serve").ret.update({"distance": "text:output:0"}),
        "function 'serve': its output 'distance' reads 'text:output:0', which is not (float)",
    ),
    "result that is never set": (
        lambda m: _function(m, "serve").ret.pop("text"),
        "function 'serve': its output 'text' is never set",
    ),
    "result that does not exist": (
        lambda m: _function(m, "serve").ret.update({"text": "gone:output:0"}),
        "function 'serve': its output 'text' reads 'gone:output:0', which does not exist",
    ),
    "control result that does not exist": (
        lambda m: _function(m, "embed").control_ret.update({"Read": "gone"}),
        "function 'embed': its control output 'Read' is 'gone', which does not exist",
    ),
    "recursion": (_recurse, "function 'embed' calls itself"),
    "recursion through another function": (_recurse_through_another, "calls itself"),
    "recursion of a function that is not inlined": (_recurse_out_of_line, "'embed' calls itself"),
    "recursion of a branch": (_recurse_in_a_branch, "function 'closer' calls itself"),
    "calls that double forty times": (_double, "the signature has "),
    "cycle": (_cycle, "function 'embed' has a cycle through or before 'Identity' (3 nodes)"),
    "cycle of control inputs": (_cycle_of_controls, "function 'embed' has a cycle"),
    "two nodes of one name": (_duplicate_node, "the main graph has two nodes called 'weight'"),
    "argument named like a node": (
        _argument_named_like_a_node,
        "function 'embed' has two nodes called 'Relu'",
    ),
    "node without a name": (
        lambda m: setattr(_node(m, "embed", "done"), "name", ""),
        "function 'embed' has a node without a name",
    ),
    "two functions of one name": (_duplicate_function, "function 'closer' is defined twice"),
    "function without a name": (_nameless_function, "a function has no name"),
    "signature of a missing tensor": (
        lambda m: setattr(m.signature_def["serving_default"].inputs["left"], "name", "gone:0"),
        "signature 'serving_default': 'left' reads 'gone:0', which does not exist",
    ),
    "signature of a missing output": (
        lambda m: setattr(m.signature_def["serving_default"].outputs["text"], "name", "call:7"),
        "signature 'serving_default': 'text' reads 'call:7', but 'call' has 2 outputs",
    ),
    "signature without a tensor": (
        lambda m: m.signature_def["serving_default"].outputs["text"].ClearField("name"),
        "signature 'serving_default': 'text' names no tensor",
    ),
    "signature without outputs": (
        lambda m: m.signature_def["serving_default"].outputs.clear(),
        "signature 'serving_default' has no outputs",
    ),
    "placeholder that is not fed": (
        lambda m: m.signature_def["serving_default"].inputs.pop("left"),
        "the signature needs the placeholder 'left', but has no input for it",
    ),
    "feed of several tensors": (
        lambda m: setattr(m.signature_def["serving_default"].inputs["left"], "name", "call:0"),
        "the signature feeds 'call', which has 2 outputs",
    ),
    "constant of another type": (
        lambda m: _constant(m, dtype=types_pb2.DT_INT32),
        "node 'constant' holds a value of another type than its attribute 'dtype'",
    ),
    "constant of no type": (
        lambda m: _constant(m, dtype=0),
        "node 'constant' has the attribute 'value' of invalid",
    ),
    "constant with half its bytes": (
        lambda m: _constant(m, tensor_content=b"ab"),
        "node 'constant' has the attribute 'value' of 4 bytes that holds 2",
    ),
    "function that captures a missing object": (
        lambda m: m.object_graph_def.concrete_functions["serve"].bound_inputs.append(9),
        "function 'serve' captures an object that does not exist",
    ),
    "function that captures more than it is given": (
        lambda m: [
            m.object_graph_def.nodes.add(),
            m.object_graph_def.concrete_functions["serve"].bound_inputs.extend([0] * 5),
        ],
        "node 'call' gives function 'serve' fewer handles than it captures",
    ),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_faults_are_named(fault: str, tmp_path: Path) -> None:
    edit, rule = _FAULTS[fault]
    proto = siamese()
    edit(proto.meta_graphs[0])
    error = refusal_of(written(tmp_path / "model", proto))
    assert error is not None
    assert rule in error.rule


def test_several_faults_are_counted(tmp_path: Path) -> None:
    proto = siamese()
    for name in ("difference", "text"):
        _node(proto.meta_graphs[0], "serve", name).attr.pop("T")
    error = refusal_of(written(tmp_path / "model", proto))
    assert error is not None
    assert error.rule.endswith("node 'difference' lacks its attribute 'T' (and 1 more)")


@pytest.mark.parametrize(
    ("options", "rule", "fix"),
    [
        ({"signature": "gone"}, "the model has no signature 'gone'", "serving_default"),
        ({"tags": ("train",)}, "has no MetaGraph with the tags 'train'", "serve"),
        ({"tags": ("serve", "gpu")}, "has no MetaGraph with the tags 'serve,gpu'", "serve"),
    ],
)
def test_missing_signature_or_tags(options: dict[str, Any], rule: str, fix: str) -> None:
    with pytest.raises(MoiraiError, match=rule) as caught:
        graph_of(FOLDER / "siamese", **options)
    assert fix in caught.value.fix
    assert caught.value.why


def test_initialiser_signature_is_refused(zoo_dir: ZooDir) -> None:
    with pytest.raises(MoiraiError, match="no outputs that are tensors") as caught:
        graph_of(zoo_dir("lookup_table"), signature="__saved_model_init_op")
    assert caught.value.fix


def test_several_metagraphs_without_the_common_tag(tmp_path: Path, zoo_dir: ZooDir) -> None:
    proto = proto_of(zoo_dir("tf1_two_metagraphs"))
    proto.meta_graphs[0].meta_info_def.tags.append("other")
    shutil.copytree(zoo_dir("tf1_two_metagraphs"), tmp_path / "model")
    with pytest.raises(MoiraiError, match="tags 'serve'") as caught:
        graph_of(written(tmp_path / "model", proto))
    assert "other,serve; hidden,serve" in caught.value.fix


def test_missing_variables(tmp_path: Path, zoo_dir: ZooDir) -> None:
    shutil.copytree(zoo_dir("two_tower"), tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "variables")
    error = refusal_of(tmp_path / "model", **zoo_options("two_tower"))
    assert error is not None
    assert "variables.index is missing, but the model has" in error.rule
    assert "variables/" in error.fix


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({}, "holds no saved_model.pb"),
        ({"saved_model.pb": b""}, "holds no MetaGraph"),
        ({"saved_model.pb": b"not a protobuf"}, "cannot be parsed"),
        ({"saved_model.pbtxt": b"not a protobuf"}, "cannot be parsed"),
        ({"saved_model.pbtxt": b"\xff"}, "cannot be parsed"),
        ({"saved_model.cpb": b""}, "is a chunked SavedModel"),
    ],
    ids=["empty", "empty file", "no protobuf", "no text", "no unicode", "chunked"],
)
def test_files_that_are_no_models(content: dict[str, bytes], rule: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name, data in content.items():
        (model / name).write_bytes(data)
    error = refusal_of(model)
    assert error is not None
    assert rule in error.rule


def test_text_that_nests_too_deeply(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    text = "meta_graphs { object_graph_def { nodes { function { function_spec { input_signature { "
    opened = "list_value { values { " * 20_000
    text += opened + "} } " * 20_000 + "} } } } } }"
    (model / "saved_model.pbtxt").write_text(text)
    error = refusal_of(model)
    assert error is not None
    assert "cannot be parsed" in error.rule


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_paths_that_are_no_directories(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    if kind == "file":
        path.write_text("")
    with pytest.raises(MoiraiError, match="is not a directory") as caught:
        read_saved_model(path)
    assert caught.value.fix

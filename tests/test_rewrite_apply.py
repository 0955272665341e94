"""A placement written into a model: devices of nodes, clones of functions, variables, tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.prune import prune
from moirai_tf.model.output import publish
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.rewrite.diff import misplaced, unplanned_changes
from moirai_tf.rewrite.directory import stage_placed, unplaced
from moirai_tf.rewrite.plan_file import read_plan
from tests.golden.__main__ import FOLDER
from tests.placements import CPUS, place, plan_of, scattered
from tests.saved_models import (
    digest,
    edited,
    graph_of,
    node_of,
    proto_of,
    save_function,
    save_graph,
    zoo_options,
)

ZooDir = Callable[[str], Path]
SIAMESE = FOLDER / "siamese"
FIRST, SECOND = CPUS

tf1 = tf.compat.v1


def _text_proto(path: Path) -> Any:
    text = (path / "saved_model.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, saved_model_pb2.SavedModel()).meta_graphs[0]


def _devices(meta_graph: Any) -> dict[str, dict[str, str]]:
    """Function, or empty for the main graph -> node -> device, without those that have none."""
    library = meta_graph.graph_def.library.function
    bodies = {"": meta_graph.graph_def.node, **{f.signature.name: f.node_def for f in library}}
    placed = {name: {n.name: n.device for n in body if n.device} for name, body in bodies.items()}
    return {name: nodes for name, nodes in placed.items() if nodes}


def _on(nodes: str, device: str) -> dict[str, str]:
    return dict.fromkeys(nodes.split(), device)


def test_one_placement_for_both_calls_edits_the_function(tmp_path: Path) -> None:
    calls = ("call/embed_left", "call/embed_right")
    place(SIAMESE, tmp_path / "out", placement={f"{c}/Relu": SECOND for c in calls})
    placed = _text_proto(tmp_path / "out")
    # NoOps are pruned; all else has a device: feeds and calls the client's.
    assert _devices(placed) == {
        "": _on("left right flip call weight", FIRST),
        "serve": _on("embed_left embed_right difference chosen text", FIRST),
        "embed": {**_on("Read MatMul Identity", FIRST), "Relu": SECOND},
        "closer": {"Neg": FIRST},
        "farther": {"Tanh": FIRST},
    }
    assert len(placed.graph_def.library.function) == 4


def test_two_placements_for_two_calls_make_a_clone(tmp_path: Path) -> None:
    place(SIAMESE, tmp_path / "out", placement={"call/embed_right/MatMul": SECOND})
    placed = _text_proto(tmp_path / "out")
    assert _devices(placed) == {
        "": _on("left right flip call weight", FIRST),
        "serve": _on("embed_left embed_right difference chosen text", FIRST),
        "embed": _on("Read MatMul Relu Identity", FIRST),
        "embed__moirai_1": {**_on("Read Relu Identity", FIRST), "MatMul": SECOND},
        "closer": {"Neg": FIRST},
        "farther": {"Tanh": FIRST},
    }
    functions = {f.signature.name: f for f in placed.graph_def.library.function}
    called = {n.name: n.attr["f"].func.name for n in functions["serve"].node_def if "f" in n.attr}
    assert called == {"embed_left": "embed", "embed_right": "embed__moirai_1"}
    assert read_plan(tmp_path / "out").edits.clones == {"embed__moirai_1": "embed"}


def test_branches_lie_on_the_device_of_their_operator(tmp_path: Path) -> None:
    group = {"call/difference": SECOND, "call/chosen": SECOND}
    place(SIAMESE, tmp_path / "out", placement=group)
    devices = _devices(_text_proto(tmp_path / "out"))
    assert devices["closer"] == {"Neg": SECOND}
    assert devices["farther"] == {"Tanh": SECOND}
    calls = _on("embed_left embed_right", FIRST)
    assert devices["serve"] == {**calls, "difference": SECOND, "chosen": SECOND, "text": FIRST}


def test_bodies_shared_by_two_loops_on_two_devices_are_cloned(tmp_path: Path) -> None:
    @tf.function
    def step(i: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return i + 1, tf.tanh(y)

    @tf.function(input_signature=[tf.TensorSpec([2, 4], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        def loop(start: tf.Tensor) -> tf.Tensor:
            return tf.while_loop(lambda i, _: i < 3, step, (tf.constant(0), start))[1]

        return {"a": loop(tf.nn.relu(x)), "b": loop(tf.nn.elu(x))}

    path = save_function(tmp_path / "model", serve)
    graph = prune(graph_of(path))
    loops = [o for o in graph.operators if o.op == "StatelessWhile"]
    second = {
        graph.operators[m].name
        for group in graph.colocation
        if graph.index[loops[1].name] in group.members
        for m in group.members
    }
    place(path, tmp_path / "out", placement=dict.fromkeys(second, SECOND))
    (placed,) = proto_of(tmp_path / "out").meta_graphs
    plan = read_plan(tmp_path / "out")
    assert misplaced(placed, plan) == []
    # Each loop calls step() in a body of its own: the inner function is needed on both devices.
    (clone,) = (name for name in plan.edits.clones if "step" in name)
    devices = _devices(placed)
    assert set(devices[plan.edits.clones[clone]].values()) == {FIRST}
    assert set(devices[clone].values()) == {SECOND}


def test_case_names_its_clones_by_position(tmp_path: Path, zoo_dir: ZooDir) -> None:
    graph = prune(graph_of(zoo_dir("switch_case"), **zoo_options("switch_case")))
    (case,) = (o for o in graph.operators if o.op == "Case")
    bodies = [f.name for f in case.node.attr["branches"].list.func]
    place(zoo_dir("switch_case"), tmp_path / "out", seed=3, **zoo_options("switch_case"))
    (placed,) = proto_of(tmp_path / "out").meta_graphs
    devices = _devices(placed)
    (where,) = {device for body in bodies for device in devices[body].values()}
    assert where == read_plan(tmp_path / "out").placement[case.name]


def _wired(meta_graph: Any) -> dict[str, str]:
    """Handle that the signature's call receives -> device of the variable it is bound to."""
    call = node_of(meta_graph.graph_def, "StatefulPartitionedCall")
    objects = meta_graph.object_graph_def
    bound = objects.concrete_functions[call.attr["f"].func.name].bound_inputs
    handles = [text for text in call.input if not text.startswith("^")][-len(bound) :]
    return {
        handle: objects.nodes[i].variable.device for handle, i in zip(handles, bound, strict=True)
    }


@pytest.mark.parametrize("other", ["/device:GPU:0", SECOND])
def test_copies_that_no_function_reads_stay_out_of_a_gpu(
    other: str, tmp_path: Path, zoo_dir: ZooDir
) -> None:
    """An export of Keras has them; without a device TensorFlow takes the first GPU there is."""
    source, output = zoo_dir("two_tower"), tmp_path / "out"
    place(source, output, seed=1, devices=(FIRST, other))
    objects = proto_of(output).meta_graphs[0].object_graph_def
    read = {i for f in objects.concrete_functions.values() for i in f.bound_inputs}
    copies = [
        node.variable.device
        for i, node in enumerate(objects.nodes)
        if node.WhichOneof("kind") == "variable" and i not in read
    ]
    assert copies
    assert set(copies) == {FIRST if "GPU" in other else ""}


@pytest.mark.parametrize("name", ["two_tower", "conv_net_saved", "called_twice", "lstm"])
def test_variables_follow_their_readers(name: str, tmp_path: Path, zoo_dir: ZooDir) -> None:
    options = zoo_options(name)
    plan = place(zoo_dir(name), tmp_path / "out", seed=1, **options)
    (placed,) = proto_of(tmp_path / "out").meta_graphs
    graph = prune(graph_of(zoo_dir(name), **options))
    readers = {
        graph.operators[ref.producer].name: plan.placement[operator.name]
        for operator in graph.operators
        for ref in operator.inputs
        if graph.operators[ref.producer].op == "VarHandleOp"
    }
    assert set(readers.values()) == {FIRST, SECOND}
    handles = {n.name: n.device for n in placed.graph_def.node if n.op == "VarHandleOp"}
    assert {name: handles[name] for name in readers} == readers
    assert _wired(placed) == readers


def _readers(path: Path, handle: str) -> set[str]:
    """A variable's handle and all that must be with it."""
    graph = prune(graph_of(path))
    i = graph.index[handle]
    return {graph.operators[m].name for g in graph.colocation if i in g.members for m in g.members}


def test_variables_of_one_name_are_told_apart_by_wiring(tmp_path: Path, zoo_dir: ZooDir) -> None:
    path = zoo_dir("called_twice")
    (original,) = proto_of(path).meta_graphs
    names = {n.variable.name for n in original.object_graph_def.nodes if n.HasField("variable")}
    assert names == {"Variable"}
    moved = _readers(path, "Variable_2")
    place(path, tmp_path / "out", placement=dict.fromkeys(moved, SECOND))
    (placed,) = proto_of(tmp_path / "out").meta_graphs
    assert _wired(placed) == {
        "Variable": FIRST, "Variable_1": FIRST, "Variable_2": SECOND, "Variable_3": FIRST
    }  # fmt: skip


def test_handles_of_one_shared_name_move_together(tmp_path: Path, zoo_dir: ZooDir) -> None:
    def share(meta_graph: Any) -> None:
        twin = meta_graph.graph_def.node.add()
        twin.CopyFrom(node_of(meta_graph.graph_def, "Variable_2"))
        twin.name = "twin"

    path = edited(zoo_dir("called_twice"), tmp_path / "model", share)
    place(path, tmp_path / "out", placement=dict.fromkeys(_readers(path, "Variable_2"), SECOND))
    (placed,) = proto_of(tmp_path / "out").meta_graphs
    assert node_of(placed.graph_def, "twin").device == SECOND


def test_tables_follow_their_lookups(tmp_path: Path, zoo_dir: ZooDir) -> None:
    graph = prune(graph_of(zoo_dir("lookup_table")))
    group = {o.name for o in graph.operators if o.op in ("HashTableV2", "LookupTableFindV2")}
    place(zoo_dir("lookup_table"), tmp_path / "out", placement=dict.fromkeys(group, SECOND))
    (placed,) = proto_of(tmp_path / "out").meta_graphs
    assert _devices(placed)[""]["hash_table"] == SECOND
    resources = [n.resource for n in placed.object_graph_def.nodes if n.HasField("resource")]
    assert [r.device for r in resources] == [SECOND]


def test_one_variable_behind_two_handles_cannot_be_in_two_places(
    tmp_path: Path, zoo_dir: ZooDir
) -> None:
    def share(meta_graph: Any) -> None:
        for function in meta_graph.object_graph_def.concrete_functions.values():
            if len(function.bound_inputs) == 4:
                function.bound_inputs[1] = function.bound_inputs[0]

    path = edited(zoo_dir("called_twice"), tmp_path / "model", share)
    (meta_graph,) = proto_of(path).meta_graphs
    call = node_of(meta_graph.graph_def, "StatefulPartitionedCall")
    readers = _readers(path, call.input[-3])
    with pytest.raises(MoiraiError, match=r"object \d+ of the model would be on") as caught:
        place(path, tmp_path / "out", placement=dict.fromkeys(readers, SECOND))
    assert SECOND in caught.value.rule
    assert not (tmp_path / "out").exists()


def test_devices_of_the_original_are_replaced(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph_v1:
        x = tf1.placeholder(tf.float32, [4], "x")
        with tf1.device("/device:GPU:3"):
            a = tf.nn.relu(x, name="a")
        with tf1.device(FIRST):
            b = tf.nn.relu(a, name="b")
        save_graph(tmp_path / "model", graph_v1, {"x": x}, {"y": b})
    plan = place(tmp_path / "model", tmp_path / "out", placement={"a": SECOND})
    (placed,) = proto_of(tmp_path / "out").meta_graphs
    assert _devices(placed) == {"": {"x": FIRST, "a": SECOND, "b": FIRST}}
    assert [(e.node, e.before, e.after) for e in plan.edits.nodes] == [
        ("a", "/device:GPU:3", SECOND),
        ("b", FIRST, FIRST),
        ("x", "", FIRST),
    ]


def test_fingerprint_is_that_of_the_new_model(tmp_path: Path, zoo_dir: ZooDir) -> None:
    from tensorflow.python.saved_model import fingerprinting_utils

    place(zoo_dir("cond"), tmp_path / "out", **zoo_options("cond"))
    read = tf.saved_model.experimental.read_fingerprint
    before, after = read(str(zoo_dir("cond"))), read(str(tmp_path / "out"))
    assert after.saved_model_checksum != before.saved_model_checksum
    assert after.graph_def_program_hash
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    (tmp_path / "again" / "fingerprint.pb").unlink()
    fingerprinting_utils.write_fingerprint(str(tmp_path / "again"))
    again = read(str(tmp_path / "again"))
    fields = [f for f in vars(again) if f != "uuid"]
    assert {f: getattr(after, f) for f in fields} == {f: getattr(again, f) for f in fields}


def test_two_runs_give_the_same_bytes(tmp_path: Path, zoo_dir: ZooDir) -> None:
    for name in ("called_twice", "lookup_table", "tf1"):
        for run in "ab":
            place(zoo_dir(name), tmp_path / name / run, **zoo_options(name))
        assert digest(tmp_path / name / "a") == digest(tmp_path / name / "b")


def test_placing_a_placed_model_is_placing_its_original(tmp_path: Path, zoo_dir: ZooDir) -> None:
    source, options = zoo_dir("lstm"), zoo_options("lstm")
    place(source, tmp_path / "direct", seed=1, **options)
    place(source, tmp_path / "first", seed=2, **options)
    assert digest(tmp_path / "first") != digest(tmp_path / "direct")
    model = unplaced(read_saved_model(tmp_path / "first"))
    graph = prune(graph_of(source, **options))
    plan = plan_of(graph, scattered(graph, seed=1))
    staged, _ = stage_placed(model, graph, plan, tmp_path / "again", overwrite=False)
    publish(staged)
    assert digest(tmp_path / "again") == digest(tmp_path / "direct")


@pytest.mark.parametrize("name", ["lstm", "tf1", "tf1_two_metagraphs", "jit_compile", "bert"])
def test_written_models_differ_by_their_plan_only(
    name: str, tmp_path: Path, zoo_dir: ZooDir
) -> None:
    options = zoo_options(name)
    place(zoo_dir(name), tmp_path / "out", **options)
    plan = read_plan(tmp_path / "out")
    pairs = list(
        zip(
            proto_of(zoo_dir(name)).meta_graphs, proto_of(tmp_path / "out").meta_graphs, strict=True
        )
    )
    for original, placed in pairs:
        if set(placed.meta_info_def.tags) == set(plan.tags):
            assert unplanned_changes(original, placed, plan) == []
            assert misplaced(placed, plan) == []
        else:
            assert placed == original

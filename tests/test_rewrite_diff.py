"""The checkers of the rewrite find every fault that is made on purpose, and name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2

from moirai_tf.rewrite.diff import misplaced, unplanned_changes
from moirai_tf.rewrite.plan import CallEdit, NodeEdit, ObjectEdit, Plan
from moirai_tf.rewrite.plan_file import read_plan
from tests.golden.__main__ import FOLDER
from tests.placements import CPUS, place
from tests.saved_models import proto_of

Models = tuple[Any, Any, Plan]
FIRST, SECOND = CPUS
CLONE = "embed__moirai_1"


@pytest.fixture
def siamese(tmp_path: Path) -> Models:
    """The hand-made model with a clone of `embed` whose product is on the second device."""
    place(FOLDER / "siamese", tmp_path / "out", placement={"call/embed_right/MatMul": SECOND})
    texts = [(p / "saved_model.pbtxt").read_text() for p in (FOLDER / "siamese", tmp_path / "out")]
    original, placed = (text_format.Parse(t, saved_model_pb2.SavedModel()) for t in texts)
    plan = read_plan(tmp_path / "out")
    assert plan.edits.clones == {CLONE: "embed"}
    return original.meta_graphs[0], placed.meta_graphs[0], plan


def _function(meta_graph: Any, name: str) -> Any:
    (found,) = (f for f in meta_graph.graph_def.library.function if f.signature.name == name)
    return found


def _node(meta_graph: Any, function: str, name: str) -> Any:
    body = _function(meta_graph, function).node_def if function else meta_graph.graph_def.node
    (found,) = (n for n in body if n.name == name)
    return found


def test_a_sound_model_has_no_faults(siamese: Models) -> None:
    original, placed, plan = siamese
    assert unplanned_changes(original, placed, plan) == []
    assert misplaced(placed, plan) == []


def _change_attribute(m: Any) -> None:
    _node(m, "serve", "difference").attr["T"].type = 2


def _change_input(m: Any) -> None:
    _node(m, "serve", "difference").input[0] = "left"


def _change_op(m: Any) -> None:
    _node(m, "closer", "Neg").op = "Abs"


def _move_unplanned(m: Any) -> None:
    _node(m, "embed", "done").device = SECOND


def _move_planned(m: Any) -> None:
    _node(m, "serve", "text").device = SECOND


def _move_in_the_main_graph(m: Any) -> None:
    _node(m, "", "left").device = SECOND


def _remove_node(m: Any) -> None:
    body = _function(m, "embed").node_def
    del body[[n.name for n in body].index("done")]


def _add_node(m: Any) -> None:
    m.graph_def.node.add(name="intruder", op="NoOp")


def _reorder_nodes(m: Any) -> None:
    body = _function(m, "embed").node_def
    body[0].name, body[1].name = body[1].name, body[0].name


def _edit_function(m: Any) -> None:
    _function(m, "serve").signature.output_arg[0].name = "other"


def _edit_result(m: Any) -> None:
    _function(m, "farther").ret["out"] = "d"


def _remove_function(m: Any) -> None:
    library = m.graph_def.library.function
    del library[[f.signature.name for f in library].index("closer")]


def _add_function(m: Any) -> None:
    m.graph_def.library.function.add().signature.name = "intruder"


def _alter_clone(m: Any) -> None:
    _node(m, CLONE, "MatMul").attr["transpose_a"].b = True


def _call_another_function(m: Any) -> None:
    _node(m, "serve", "chosen").attr["then_branch"].func.name = "farther"


def _alter_call(m: Any) -> None:
    _node(m, "serve", "embed_right").attr["f"].func.name = "embed"


def _alter_signature(m: Any) -> None:
    m.signature_def["serving_default"].outputs["distance"].name = "call:1"


def _alter_objects(m: Any) -> None:
    m.object_graph_def.nodes.add()


def _alter_versions(m: Any) -> None:
    m.graph_def.versions.producer = 1


def _alter_gradients(m: Any) -> None:
    m.graph_def.library.gradient.add(function_name="embed")


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (_change_attribute, "node 'difference' of function 'serve' differs in its field 'attr'"),
        (_change_input, "node 'difference' of function 'serve' differs in its field 'input'"),
        (_change_op, "node 'Neg' of function 'closer' differs in its field 'op'"),
        (
            _move_unplanned,
            "node 'done' of function 'embed' differs in its field 'device'",
        ),
        (_move_planned, "node 'text' of function 'serve' differs in its field 'device'"),
        (_move_in_the_main_graph, "node 'left' of the main graph differs in its field 'device'"),
        (_remove_node, "function 'embed' has lost node 'done'"),
        (_add_node, "the main graph has the new node 'intruder'"),
        (_reorder_nodes, "function 'embed' has its nodes in another order"),
        (_edit_function, "function 'serve' differs in its field 'signature'"),
        (_edit_result, "function 'farther' differs in its field 'ret'"),
        (_remove_function, "the model has lost function 'closer'"),
        (_add_function, "the model has the new function 'intruder'"),
        (_alter_clone, f"node 'MatMul' of function '{CLONE}' differs in its field 'attr'"),
        (_call_another_function, "node 'chosen' of function 'serve' differs in its field 'attr'"),
        (_alter_call, "node 'embed_right' of function 'serve' differs in its field 'attr'"),
        (_alter_signature, "the MetaGraph differs in its field 'signature_def'"),
        (_alter_objects, "the object graph has 1 objects, not 0"),
        (_alter_versions, "the graph differs in its field 'versions'"),
        (_alter_gradients, "the library differs in its field 'gradient'"),
    ],
)
def test_unplanned_changes_are_named(
    edit: Callable[[Any], None], fault: str, siamese: Models
) -> None:
    original, placed, plan = siamese
    edit(placed)
    assert fault in unplanned_changes(original, placed, plan)


def test_original_is_not_touched(siamese: Models) -> None:
    original, placed, plan = siamese
    before = original.SerializeToString(deterministic=True), placed.SerializeToString()
    unplanned_changes(original, placed, plan)
    misplaced(placed, plan)
    assert (original.SerializeToString(deterministic=True), placed.SerializeToString()) == before


def test_nan_equals_itself(siamese: Models) -> None:
    original, placed, plan = siamese
    for meta_graph in (original, placed):
        _node(meta_graph, "serve", "text").attr["_x"].f = float("nan")
    assert unplanned_changes(original, placed, plan) == []


@pytest.mark.parametrize(
    ("edits", "fault"),
    [
        (
            {"nodes": (NodeEdit("serve", "gone", "", FIRST),)},
            "the plan's edit of node 'gone' does not fit function 'serve'",
        ),
        (
            {"nodes": (NodeEdit("serve", "text", SECOND, FIRST),)},
            "the plan's edit of node 'text' does not fit function 'serve'",
        ),
        (
            {"calls": (CallEdit("serve", "chosen", "then_branch", -1, "closer", "farther"),)},
            "the plan makes 'chosen' call 'farther', no clone of 'closer'",
        ),
        (
            {"calls": (CallEdit("serve", "text", "f", -1, "embed", CLONE),)},
            "the plan's edit of the call 'text' does not fit function 'serve'",
        ),
        (
            {"objects": (ObjectEdit(5, "variable", "", FIRST),)},
            "the plan's edit of object 5 does not fit the object graph",
        ),
        ({"clones": {"embed": "serve"}}, "function 'embed' cannot be a clone of 'serve'"),
        ({"clones": {"new": "gone"}}, "function 'new' cannot be a clone of 'gone'"),
    ],
)
def test_edits_that_no_placement_makes_are_named(
    edits: dict[str, Any], fault: str, siamese: Models
) -> None:
    original, placed, plan = siamese
    wrong = replace(plan, edits=replace(plan.edits, **edits))
    assert fault in unplanned_changes(original, placed, wrong)


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (
            _move_planned,
            f"operator 'call/text' is on '{SECOND}', not on '{FIRST}'",
        ),
        (
            _alter_call,
            f"operator 'call/embed_right/MatMul' is on '{FIRST}', not on '{SECOND}'",
        ),
        (
            lambda m: setattr(_node(m, "closer", "Neg"), "device", SECOND),
            f"node 'Neg' of function 'closer' is on '{SECOND}', not on '{FIRST}' as its operator",
        ),
        (
            lambda m: setattr(_node(m, "serve", "text"), "name", "renamed"),
            "operator 'call/text' of the plan is not in the model",
        ),
        (
            lambda m: setattr(_node(m, "", "weight"), "device", ""),
            f"operator 'weight' is on '', not on '{FIRST}'",
        ),
    ],
    ids=["moved", "other call", "inside a branch", "renamed", "variable without device"],
)
def test_misplaced_operators_are_named(
    edit: Callable[[Any], None], fault: str, siamese: Models
) -> None:
    _, placed, plan = siamese
    edit(placed)
    assert misplaced(placed, plan) == [fault]


def test_devices_of_objects_are_compared(tmp_path: Path, zoo_dir: Callable[[str], Path]) -> None:
    place(zoo_dir("called_twice"), tmp_path / "out", seed=2)
    (original,), (placed,) = (
        proto_of(p).meta_graphs for p in (zoo_dir("called_twice"), tmp_path / "out")
    )
    plan = read_plan(tmp_path / "out")
    number = plan.edits.objects[0].node_id
    placed.object_graph_def.nodes[number].variable.device = "/device:CPU:7"
    assert unplanned_changes(original, placed, plan) == [
        f"object {number} differs in its field 'variable'"
    ]

"""A placed model gives back its original exactly, and lets its devices be renamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moirai_tf.errors import MoiraiError
from moirai_tf.model.load import SESSION_CONFIG_FILE
from moirai_tf.rewrite.diff import misplaced, unplanned_changes
from moirai_tf.rewrite.directory import has_plan, remap, strip
from moirai_tf.rewrite.plan_file import PLAN_FILE, read_plan
from tests.golden.__main__ import FOLDER
from tests.placements import CPUS, place
from tests.saved_models import digest, edited, proto_of, zoo_options

ZooDir = Callable[[str], Path]
FIRST, SECOND = CPUS
GPU = "/job:worker/replica:0/task:1/device:GPU:0"


@pytest.fixture
def placed(tmp_path: Path, zoo_dir: ZooDir) -> Path:
    """`called_twice` with clones, on both devices."""
    path = tmp_path / "placed"
    plan = place(zoo_dir("called_twice"), path, seed=2)
    assert plan.edits.clones
    assert plan.edits.calls
    assert {edit.after for edit in plan.edits.objects} == {FIRST, SECOND}
    return path


@pytest.mark.parametrize(
    "name",
    ["called_twice", "lookup_table", "lstm", "conv_net_export", "tf1", "tf1_two_metagraphs",
     "assets_extra"],
)  # fmt: skip
def test_strip_gives_back_every_file(name: str, tmp_path: Path, zoo_dir: ZooDir) -> None:
    place(zoo_dir(name), tmp_path / "placed", **zoo_options(name))
    strip(tmp_path / "placed", tmp_path / "stripped")
    assert digest(tmp_path / "stripped") == digest(zoo_dir(name))


def test_strip_of_a_text_model(tmp_path: Path) -> None:
    place(FOLDER / "siamese", tmp_path / "placed")
    strip(tmp_path / "placed", tmp_path / "stripped")
    assert digest(tmp_path / "stripped") == digest(FOLDER / "siamese")


def test_strip_gives_back_devices_that_the_original_had(tmp_path: Path, zoo_dir: ZooDir) -> None:
    def pin(meta_graph: Any) -> None:
        for node in meta_graph.graph_def.node:
            node.device = "/device:GPU:7"
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                node.device = FIRST
        for item in meta_graph.object_graph_def.nodes:
            if item.HasField("variable"):
                item.variable.device = "/device:TPU:0"

    path = edited(zoo_dir("called_twice"), tmp_path / "model", pin)
    place(path, tmp_path / "placed", seed=2)
    assert proto_of(tmp_path / "placed") != proto_of(path)
    strip(tmp_path / "placed", tmp_path / "stripped")
    assert proto_of(tmp_path / "stripped") == proto_of(path)


def test_strip_keeps_files_of_others(tmp_path: Path, zoo_dir: ZooDir) -> None:
    place(zoo_dir("assets_extra"), tmp_path / "placed")
    note = Path("assets.extra") / "notes" / "owner.txt"
    assert (tmp_path / "placed" / note).is_file()
    assert has_plan(tmp_path / "placed")
    strip(tmp_path / "placed", tmp_path / "stripped")
    assert (tmp_path / "stripped" / note).is_file()
    for file in (PLAN_FILE, SESSION_CONFIG_FILE):
        assert not (tmp_path / "stripped" / file).exists()


def _checked(original: Path, placed: Path) -> None:
    """The placed model and its plan agree, and differ from the original by the plan alone."""
    plan = read_plan(placed)
    (before,), (after,) = proto_of(original).meta_graphs, proto_of(placed).meta_graphs
    assert unplanned_changes(before, after, plan) == []
    assert misplaced(after, plan) == []


def test_remap_renames_everywhere(placed: Path, tmp_path: Path, zoo_dir: ZooDir) -> None:
    before = read_plan(placed)
    plan = remap(placed, tmp_path / "out", {SECOND: GPU})
    assert read_plan(tmp_path / "out") == plan
    assert [d.name for d in plan.devices] == [FIRST, GPU]
    assert plan.placement == {
        name: GPU if device == SECOND else device for name, device in before.placement.items()
    }
    assert {t.target for t in plan.transfers} == {FIRST, GPU}
    (meta_graph,) = proto_of(tmp_path / "out").meta_graphs
    assert SECOND.encode() not in meta_graph.SerializeToString()
    _checked(zoo_dir("called_twice"), tmp_path / "out")


def test_remap_can_swap(placed: Path, tmp_path: Path, zoo_dir: ZooDir) -> None:
    plan = remap(placed, tmp_path / "out", {FIRST: SECOND, SECOND: FIRST})
    assert plan.client == SECOND
    before = read_plan(placed).placement
    swapped = {FIRST: SECOND, SECOND: FIRST}
    assert plan.placement == {name: swapped[device] for name, device in before.items()}
    _checked(zoo_dir("called_twice"), tmp_path / "out")
    remap(tmp_path / "out", tmp_path / "back", swapped)
    assert digest(tmp_path / "back") == digest(placed)


def test_remapped_models_strip_to_the_original(
    placed: Path, tmp_path: Path, zoo_dir: ZooDir
) -> None:
    remap(placed, tmp_path / "out", {FIRST: GPU})
    strip(tmp_path / "out", tmp_path / "stripped")
    assert digest(tmp_path / "stripped") == digest(zoo_dir("called_twice"))


def test_devices_that_stayed_are_renamed_too(tmp_path: Path, zoo_dir: ZooDir) -> None:
    def pin(meta_graph: Any) -> None:
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                node.device = FIRST

    path = edited(zoo_dir("called_twice"), tmp_path / "model", pin)
    place(path, tmp_path / "placed", placement={})
    remap(tmp_path / "placed", tmp_path / "out", {FIRST: GPU})
    _checked(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        ({"/device:CPU:9": GPU}, "the plan has no device '/device:CPU:9'"),
        ({FIRST: SECOND}, "two devices of the plan would get the same name"),
        ({FIRST: GPU, SECOND: GPU}, "two devices of the plan would get the same name"),
    ],
)
def test_remap_errors(names: dict[str, str], rule: str, placed: Path, tmp_path: Path) -> None:
    with pytest.raises(MoiraiError, match=rule) as caught:
        remap(placed, tmp_path / "out", names)
    assert caught.value.why
    assert caught.value.fix
    assert not (tmp_path / "out").exists()


def test_only_placed_models_can_be_stripped(tmp_path: Path, zoo_dir: ZooDir) -> None:
    for undo in (
        lambda out: strip(zoo_dir("cond"), out),
        lambda out: remap(zoo_dir("cond"), out, {}),
    ):
        with pytest.raises(MoiraiError, match=r"holds no assets.extra/moirai_plan.json"):
            undo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _move_node(meta_graph: Any) -> None:
    for function in meta_graph.graph_def.library.function:
        for node in function.node_def:
            if node.op == "Conv2D":
                node.device = GPU


def _rename_call(meta_graph: Any) -> None:
    for function in meta_graph.graph_def.library.function:
        for node in function.node_def:
            if "f" in node.attr and "__moirai_" in node.attr["f"].func.name:
                node.attr["f"].func.name = node.attr["f"].func.name.split("__moirai_")[0]


def _move_object(meta_graph: Any) -> None:
    for item in meta_graph.object_graph_def.nodes:
        if item.HasField("variable"):
            item.variable.device = GPU


def _drop_objects(meta_graph: Any) -> None:
    # Nothing else refers to objects by number once their functions are forgotten.
    meta_graph.object_graph_def.concrete_functions.clear()
    del meta_graph.object_graph_def.nodes[:]


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (_move_node, r"node 'Conv2D.*' of __inference_embed_.* is not on /device:CPU"),
        (_rename_call, r"node '.*PartitionedCall.*' does not call '.*__moirai_1'"),
        (_move_object, r"object \d+ is not a variable on /device:CPU"),
        (_drop_objects, r"object \d+ is not a variable on /device:CPU"),
    ],
)
def test_a_model_that_was_changed_after_its_placement_is_refused(
    edit: Callable[[Any], None], rule: str, placed: Path, tmp_path: Path
) -> None:
    changed = edited(placed, tmp_path / "changed", edit)
    for undo in (strip, lambda path, out: remap(path, out, {FIRST: GPU})):
        with pytest.raises(MoiraiError, match=rule) as caught:
            undo(changed, tmp_path / "out")
        assert caught.value.why
        assert caught.value.fix
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("schema",), 99, r"schema: 99 is not 1 to 6"),
        (("schema",), None, r"schema: missing"),
        (("placement",), ["a"], r"placement: .* is not an object"),
        (("placement", "x"), 3, r"placement\['x'\]: 3 is not a string"),
        (("devices", 0, "name"), None, r"devices\[0\].name: missing"),
        (("devices", 0, "memory_bytes"), -1, r"devices\[0\].memory_bytes: -1 is less than 0"),
        (("tags",), "serve", r"tags: 'serve' is not a list"),
        (("edits", "nodes", 0, "after"), 1.5, r"edits.nodes\[0\].after: 1.5 is not a string"),
        (("edits", "calls", 0, "index"), "x", r"edits.calls\[0\].index: .* not a whole number"),
        (("edits", "objects", 0, "kind"), "asset", r"edits.objects\[0\].kind: there is no kind"),
        (("edits", "fingerprint"), "xyz", r"edits.fingerprint: it is not hexadecimal"),
        (("transfers",), {"a": 1}, r"transfers: .* is not a list"),
    ],
)
def test_broken_plans_name_the_field(
    path: tuple[Any, ...], value: Any, fault: str, placed: Path, tmp_path: Path
) -> None:
    plan = json.loads((placed / PLAN_FILE).read_text())
    holder = plan
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    broken = tmp_path / "broken"
    shutil.copytree(placed, broken)
    (broken / PLAN_FILE).write_text(json.dumps(plan))
    with pytest.raises(MoiraiError, match=fault) as caught:
        strip(broken, tmp_path / "out")
    assert str(PLAN_FILE) in caught.value.fix
    assert caught.value.why


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000])
def test_plans_that_are_no_plans(content: bytes, placed: Path, tmp_path: Path) -> None:
    (placed / PLAN_FILE).write_bytes(content)
    with pytest.raises(MoiraiError) as caught:
        strip(placed, tmp_path / "out")
    assert caught.value.fix
    assert not (tmp_path / "out").exists()

"""Models whose running would be seen: no tool that only reads them runs any part of them."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from moirai_tf.cluster.files import cluster_from_yaml
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarse import dump_coarse
from moirai_tf.fusion.coarsen import FuseOptions
from moirai_tf.graph.graph import dump_graph
from moirai_tf.inspection import explain
from moirai_tf.passes import Fuse, Import, Place, Profile, Prune, Publish, Rewrite
from moirai_tf.pipeline import MoiraiItem, Pipeline, need
from moirai_tf.report import content_of
from moirai_tf.rewrite.directory import remap, strip
from moirai_tf.rewrite.plan_file import PLAN_FILE, plan_to_json
from moirai_tf.verify.process import _static_findings
from tests.hostile import CLUSTER
from tests.placements import CPUS, place
from tests.refusals import siamese, written
from tests.saved_models import save_graph

raw, tf1 = tf.raw_ops, tf.compat.v1


def _touch(folder: Path) -> Callable[[Any], Any]:
    def touch(value: Any) -> Any:
        (folder / "called").touch()
        return value

    return touch


def _python(op: str, folder: Path, sizes: tf.Tensor) -> tf.Tensor:
    """A Python function as TensorFlow registers it, called by any of its operators."""
    tensor = tf.numpy_function(_touch(folder), [sizes], tf.int32)
    given = {"input": [sizes], "token": tensor.op.get_attr("token"), "Tout": [tf.int32]}
    (result,) = getattr(raw, op)(**given)
    return result


def _read(folder: Path) -> str:
    """A pipe whose reader is seen."""
    pipe = folder.with_name(f"pipe{time.monotonic_ns()}")
    os.mkfifo(pipe)

    def watch() -> None:
        while True:
            with suppress(OSError), pipe.open("wb") as file:
                (folder / "read").touch()
                file.write(b"word\n")

    threading.Thread(target=watch, daemon=True).start()
    return str(pipe)


def _after(effect: Any, sizes: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies([effect]):
        return tf.identity(sizes)


def _dataset(folder: Path, sizes: tf.Tensor, **kept: Any) -> tf.Tensor:
    types: dict[str, Any] = {"output_types": [tf.int32], "output_shapes": [[2]]}
    source = raw.TensorDataset(components=[sizes], output_shapes=[[2]])
    if kept:
        source = raw.SnapshotDataset(input_dataset=source, path=str(folder / "s"), **types)
    else:
        source = raw.CacheDataset(input_dataset=source, filename=str(folder / "c"), **types)
    (result,) = raw.DatasetToSingleElement(dataset=source, **types)
    return result


def _summary(folder: Path, sizes: tf.Tensor) -> Any:
    writer = raw.SummaryWriter(shared_name="w")
    made = raw.CreateSummaryFileWriter(
        writer=writer, logdir=str(folder), max_queue=1, flush_millis=1, filename_suffix=""
    )
    with tf.control_dependencies([made]):
        return _after(raw.FlushSummaryWriter(writer=writer), sizes)


_EFFECTS: dict[str, Callable[[Path, tf.Tensor], tf.Tensor]] = {
    "WriteFile": lambda f, s: _after(raw.WriteFile(filename=str(f / "w"), contents="x"), s),
    "SaveV2": lambda f, s: _after(
        raw.SaveV2(prefix=str(f / "v2"), tensor_names=["s"], shape_and_slices=[""], tensors=[s]), s
    ),
    "Save": lambda f, s: _after(raw.Save(filename=str(f / "v1"), tensor_names=["s"], data=[s]), s),
    "PrintV2": lambda f, s: _after(
        raw.PrintV2(input="x", output_stream=f"file://{f / 'print'}"), s
    ),
    "DatasetToTFRecord": lambda f, s: _after(
        raw.DatasetToTFRecord(
            input_dataset=raw.TensorDataset(components=["x"], output_shapes=[[]]),
            filename=str(f / "r"), compression_type="",
        ), s,
    ),
    "CacheDataset": _dataset,
    "SnapshotDataset": lambda f, s: _dataset(f, s, snapshot=True),
    "CreateSummaryFileWriter": _summary,
    "DebugIdentity": lambda f, s: raw.DebugIdentity(
        input=s, device_name=CPUS[0], tensor_name="s:0", debug_urls=[f"file://{f}"]
    ),
    "DebugNanCount": lambda f, s: tf.cast(
        raw.DebugNanCount(
            input=tf.cast(s, tf.float32), device_name=CPUS[0], tensor_name="s:0",
            debug_urls=[f"file://{f}"],
        ), tf.int32,
    ) + s,
    "DebugIdentityV2": lambda f, s: raw.DebugIdentityV2(
        input=s, tfdbg_context_id="c", op_name="s", output_slot=0, tensor_debug_mode=1,
        debug_urls=[f"file://{f}"],
    ),
    "ReadFile": lambda f, s: _after(raw.ReadFile(filename=_read(f)), s)
    + tf.strings.length(raw.ReadFile(filename=_read(f))) * 0,
    "GenerateVocabRemapping": lambda f, s: s + 0 * raw.GenerateVocabRemapping(
        new_vocab_file=_read(f), old_vocab_file=_read(f), new_vocab_offset=0, num_new_vocab=1
    ).num_present,
    **{
        op: lambda f, s, op=op: _python(op, f, s)  # type: ignore[misc]
        for op in ("PyFunc", "PyFuncStateless")
    },
}  # fmt: skip
"""Operators that leave something in a folder; each hands on the sizes that it is given."""


def _as_shape(effect: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """What TensorFlow would like to know while it infers shapes: sizes made of constants alone."""
    sizes = tf.reshape(effect(tf.constant([2, 4])), [2])
    return tf.matmul(x, tf.reshape(tf.transpose(x), tf.reverse(sizes, [0]))) + tf.fill([2, 2], 1.0)


def _as_trip_count(effect: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """What computed costs would like to know of a loop: its limit, and what its body adds."""
    limit = tf.reshape(effect(tf.constant([2, 4])), [2])[0]
    step = tf.reshape(effect(tf.constant([1, 1])), [2])[1]
    return tf.while_loop(
        lambda i, v: i < limit, lambda i, v: (i + step, tf.sin(v)), [tf.constant(0), x]
    )[1]


def _as_initialiser(effect: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    tf1.add_to_collection("legacy_init_op", effect(tf.constant([2, 4])).op)
    return tf.sin(x)


_PLACES = {"shape": _as_shape, "trip count": _as_trip_count, "initialiser": _as_initialiser}


def _seen(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _saved(path: Path, op: str, where: str, folder: Path) -> None:
    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [2, 4], "x")
        y = _PLACES[where](lambda sizes: _EFFECTS[op](folder, sizes), x)
        save_graph(path, graph, {"x": x}, {"y": y})
    quiet = 0  # TensorFlow infers shapes while a graph is built, too, and a watcher may be late
    while quiet < 5:
        traces = list(folder.iterdir())
        for made in traces:
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        quiet = 0 if traces else quiet + 1
        time.sleep(0.02)


@pytest.mark.parametrize("where", _PLACES)
@pytest.mark.parametrize("op", _EFFECTS)
def test_nothing_runs(op: str, where: str, tmp_path: Path) -> None:
    """Import, fusion, computed costs, placement, rewriting, dumps, strip, remap, comparison."""
    folder = tmp_path / "seen"
    folder.mkdir()
    _saved(tmp_path / "m", op, where, folder)
    placed = tmp_path / "placed"
    pipeline = Pipeline(
        (
            Import(), Prune(), Fuse(), Profile(source="analytical", links="cluster"),
            Place(solver="heft"), Rewrite(output_dir=str(placed)), Publish(),
        )
    )  # fmt: skip
    item = MoiraiItem(tmp_path / "m", cluster_from_yaml(str(CLUSTER)))
    item = pipeline.run(item)
    assert dump_graph(need(item.graph))
    assert dump_coarse(need(item.coarse))
    assert explain(need(item.graph), FuseOptions(), re.compile(""))
    strip(placed, tmp_path / "stripped")
    remap(placed, tmp_path / "remapped", {CPUS[1]: "/device:CPU:2"})
    assert _static_findings(tmp_path / "m", tmp_path / "remapped") == []
    assert _seen(folder) == []


@pytest.mark.parametrize("op", _EFFECTS)
def test_it_would_be_seen(op: str, tmp_path: Path) -> None:
    """The traps are armed."""
    with tf.Graph().as_default() as graph:
        sizes = _EFFECTS[op](tmp_path, tf.constant([2, 4]))
    config = tf1.ConfigProto()  # Grappler knows that nothing times zero is nothing
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    # A pipe can be opened, which is seen, but not read from its middle.
    with tf1.Session(graph=graph, config=config) as session, suppress(tf.errors.OpError):
        session.run(sizes)
    end = time.monotonic() + 10
    while not _seen(tmp_path) and time.monotonic() < end:
        time.sleep(0.01)
    assert _seen(tmp_path) != []


def test_a_plan_loads_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It records which ones there were; a user names those that are to be loaded."""
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    plan = place(written(tmp_path / "m", siamese()), tmp_path / "placed")
    recorded = {"import": {"op_library": ["trap"], "inputs": "/nowhere"}}
    text = plan_to_json(replace(plan, options=recorded))
    (tmp_path / "placed" / PLAN_FILE).write_text(text)
    with pytest.raises(MoiraiError, match=r"holds no .*moirai_schedule"):
        content_of(tmp_path / "placed")
    strip(tmp_path / "placed", tmp_path / "stripped")
    assert not (tmp_path / "sprung").exists()

"""Every worker restores its own variables: the edit, its undoing, its check, and real workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.saved_model import loader_impl

from moirai_tf import MoiraiError
from moirai_tf.bench.local_cluster import LocalCluster, local_cluster
from moirai_tf.graph.prune import prune
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.rewrite.diff import unplanned_changes
from moirai_tf.rewrite.directory import remap, strip
from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.rewrite.restored import read_variables, restored
from moirai_tf.runtime.session import ClusterSession, open_session
from tests.placements import place
from tests.saved_models import digest, edited, graph_of, proto_of, save_function

ZooDir = Callable[[str], Path]

_BLOCK_BYTES = 80 << 20
ONE, TWO = (f"/job:worker/replica:0/task:{i}/device:CPU:0" for i in range(2))


def _meta_graph(path: Path) -> Any:
    return proto_of(path).meta_graphs[0]


def _pairs(path: Path) -> dict[str, bytes]:
    meta_graph = _meta_graph(path)
    found = restored(meta_graph, meta_graph.saver_def.restore_op_name)
    assert found
    return {variable: source.key for variable, source in found.items()}


@pytest.mark.parametrize("name", ["mlp", "module", "tf1", "lookup_table"])
def test_each_task_reads_what_it_holds(name: str, zoo_dir: ZooDir, tmp_path: Path) -> None:
    """The same tensors go to the same variables, each read on the CPU of its variable's task."""
    plan = place(zoo_dir(name), tmp_path / "placed", seed=3, devices=(ONE, TWO))
    assert plan.edits.restore is not None
    assert read_plan(tmp_path / "placed") == plan
    read = read_variables(_meta_graph(zoo_dir(name)))
    wanted = {name: key for name, key in _pairs(zoo_dir(name)).items() if name in read}
    assert _pairs(tmp_path / "placed") == wanted
    nodes = {node.name: node for node in _meta_graph(tmp_path / "placed").graph_def.node}
    added = [nodes[node] for node in plan.edits.restore.nodes]
    holders = {nodes[variable].device or ONE for variable in wanted}
    assert {n.device for n in added if n.op == "RestoreV2"} == holders
    for node in added:
        if node.op in ("Assign", "AssignVariableOp"):
            source = nodes[node.input[1].partition(":")[0]]
            assert source.device == node.device == (nodes[node.input[0]].device or ONE)
    strip(tmp_path / "placed", tmp_path / "stripped")
    assert digest(tmp_path / "stripped") == digest(zoo_dir(name))


def test_one_task_restores_as_before(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """Also after devices of two tasks became devices of one, and the other way round."""
    assert place(zoo_dir("mlp"), tmp_path / "local").edits.restore is None
    place(zoo_dir("mlp"), tmp_path / "placed", seed=3, devices=(ONE, TWO))
    local = remap(
        tmp_path / "placed", tmp_path / "here", {ONE: "/device:CPU:0", TWO: "/device:CPU:1"}
    )
    assert local.edits.restore is None
    assert _meta_graph(tmp_path / "here").saver_def == _meta_graph(zoo_dir("mlp")).saver_def
    again = remap(
        tmp_path / "here", tmp_path / "there", {"/device:CPU:0": ONE, "/device:CPU:1": TWO}
    )
    assert again.edits.restore is not None
    strip(tmp_path / "there", tmp_path / "stripped")
    assert digest(tmp_path / "stripped") == digest(zoo_dir("mlp"))


def test_a_restore_that_does_more_is_left_alone(tmp_path: Path) -> None:
    """A mutable table is imported from the checkpoint, which is no assignment of a variable."""
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
    table.insert(tf.constant([1], tf.int64), [2.0])
    weights = tf.Variable(np.ones((4,), np.float32))

    @tf.function(input_signature=[tf.TensorSpec([4], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.tanh(x * weights)}

    source = save_function(tmp_path / "model", serve, weights=weights, table=table)
    plan = place(source, tmp_path / "placed", seed=1, devices=(ONE, TWO))
    assert plan.edits.restore is None


def test_a_restore_that_was_tampered_with(zoo_dir: ZooDir, tmp_path: Path) -> None:
    plan = place(zoo_dir("mlp"), tmp_path / "placed", seed=3, devices=(ONE, TWO))
    assert plan.edits.restore is not None
    before = read_saved_model(zoo_dir("mlp")).meta_graph(plan.tags)

    def swap(meta_graph: Any) -> None:
        names = [n for n in meta_graph.graph_def.node if n.name.endswith("/tensor_names")]
        values = next(n for n in names if n.device == TWO).attr["value"].tensor.string_val
        values[0], values[1] = values[1], values[0]

    def rename(meta_graph: Any) -> None:
        meta_graph.saver_def.restore_op_name = plan.edits.restore.before

    def replace_one(meta_graph: Any) -> None:
        node = next(n for n in meta_graph.graph_def.node if n.name in plan.edits.restore.nodes)
        node.op = "ReadFile"

    for edit, fault in (
        (swap, "does not give every variable the value that it had"),
        (rename, "is not restored by 'moirai_restore'"),
        (replace_one, "of the restore is a ReadFile"),
    ):
        changed = edited(tmp_path / "placed", tmp_path / edit.__name__, edit)
        faults = unplanned_changes(before, _meta_graph(changed), plan)
        assert any(fault in text for text in faults)
    known = replace(plan.edits.restore, nodes=(*plan.edits.restore.nodes, "saver_filename"))
    listed = replace(plan, edits=replace(plan.edits, restore=known))
    faults = unplanned_changes(before, _meta_graph(tmp_path / "placed"), listed)
    assert any("are not all new nodes" in text for text in faults)
    with pytest.raises(MoiraiError, match="is not restored by 'moirai_restore', as the plan says"):
        strip(tmp_path / "rename", tmp_path / "stripped")


def _two_blocks(folder: Path) -> Path:
    """y = sin(x @ one) @ two, with `_BLOCK_BYTES` of weights on each side of the sine."""
    generator = np.random.default_rng(0)
    width = _BLOCK_BYTES // 4 // 2048
    shapes = ((2048, width), (width, 2048))
    one, two = (tf.Variable(generator.random(s, np.float32) / 64) for s in shapes)

    @tf.function(input_signature=[tf.TensorSpec([1, 2048], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.sin(x @ one) @ two}

    return save_function(folder, serve, one=one, two=two)


def _peak_bytes(local: LocalCluster) -> list[int]:
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in local.pids]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("VmHWM:")]
    return [int(line.split()[1]) * 1024 for line in lines]


def _trace_of_restore(directory: Path, session: ClusterSession) -> Any:
    """Loads the graph and restores its variables as TensorFlow's loader does, with a trace."""
    loader = loader_impl.SavedModelLoader(str(directory))
    loader.load_graph(session.graph, ["serve"])
    saver = _meta_graph(directory).saver_def
    prefix = {saver.filename_tensor_name: str(directory / "variables" / "variables")}
    _, metadata = session.run(saver.restore_op_name, prefix, trace=True)
    return metadata


def test_workers_read_only_their_own_variables(tmp_path: Path) -> None:
    """Seen in the restore's own trace, and in memory: no worker ever holds the whole model."""
    source = _two_blocks(tmp_path / "model")
    graph = prune(graph_of(source))
    later = {o.name: TWO for o in graph.operators if "/matmul_1" in o.name}
    for o, readers in zip(graph.operators, graph.consumers, strict=True):
        if o.op == "VarHandleOp" and {graph.operators[i].name for i in readers} <= later.keys():
            later[o.name] = TWO
    place(source, tmp_path / "placed", placement=later, devices=(ONE, TWO))
    with local_cluster([1.0, 1.0]) as local:
        before = _peak_bytes(local)
        with open_session(local.cluster) as session:
            metadata = _trace_of_restore(tmp_path / "placed", session)
        growth = [now - then for now, then in zip(_peak_bytes(local), before, strict=True)]
    assert max(growth) < 2 * _BLOCK_BYTES
    reads = [n for graph in metadata.partition_graphs for n in graph.node if n.op == "RestoreV2"]
    assert sorted(node.device for node in reads) == [ONE, TWO]
    ran = {
        node.node_name: device.device
        for device in metadata.step_stats.dev_stats
        for node in device.node_stats
    }
    assert {ran[node.name] for node in reads} == {ONE, TWO}
    sends = [n for graph in metadata.partition_graphs for n in graph.node if n.op == "_Send"]
    data = [n for n in sends if "/ctrl" not in n.input[0] and not n.attr["client_terminated"].b]
    assert {node.attr["T"].type for node in data} <= {tf.string.as_datatype_enum}

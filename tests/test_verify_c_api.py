"""Placed models through the C++ loader of TensorFlow Serving, by way of TensorFlow's C API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

from moirai_tf.model.load import SESSION_CONFIG_FILE
from moirai_tf.rewrite.directory import remap
from tests.c_api import run_saved_model
from tests.placements import place
from tests.zoo import ZOO

ZooDir = Callable[[str], Path]


@pytest.mark.parametrize(
    "name", ["lstm", "cond", "lookup_table", "called_twice", "ensemble", "tf1"]
)
def test_the_cpp_loader_runs_placed_models(name: str, zoo_dir: ZooDir, tmp_path: Path) -> None:
    """The same outputs, and every node that bears an operator's name on the operator's device."""
    entry, placed = ZOO[name], tmp_path / "placed"
    plan = place(zoo_dir(name), placed, seed=1)
    config = _shipped_config(placed)
    # A scattered placement cuts through what Grappler would fuse onto one device.
    config.graph_options.rewrite_options.remapping = rewriter_config_pb2.RewriterConfig.OFF
    arguments = entry.tags, entry.signature, entry.inputs(), config
    expected = run_saved_model(zoo_dir(name), *arguments).outputs
    run = run_saved_model(placed, *arguments)

    assert run.outputs.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(run.outputs[key], value, strict=True)

    nodes = [node for graph in run.metadata.partition_graphs for node in graph.node]
    there = {n.name: n.device for n in nodes if n.name in plan.placement}
    assert len(there) > len(plan.placement) / 3
    for operator, device in there.items():
        assert device.endswith(plan.placement[operator]), operator
    ran = {
        node.node_name: stats.device
        for stats in run.metadata.step_stats.dev_stats
        for node in stats.node_stats
        if node.node_name in there
    }
    assert {d.rpartition("/")[2] for d in ran.values()} == {"device:CPU:0", "device:CPU:1"}
    for operator, device in ran.items():
        assert device.endswith(plan.placement[operator]), operator


def test_a_gpu_that_is_not_there_fails_the_load(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """With the shipped config; with soft placement all of it runs on the CPU, without a word."""
    entry, placed = ZOO["lstm"], tmp_path / "placed"
    plan = place(zoo_dir("lstm"), placed, seed=1, devices=("/device:CPU:0", "/device:GPU:0"))
    assert "/device:GPU:0" in plan.placement.values()
    config = _shipped_config(placed)
    arguments = entry.tags, entry.signature, entry.inputs(), config
    with pytest.raises(RuntimeError, match=r"Cannot assign a device for .*device:GPU:0"):
        run_saved_model(placed, *arguments)
    config.allow_soft_placement = True
    run = run_saved_model(placed, *arguments)
    assert {s.device[-5:] for s in run.metadata.step_stats.dev_stats} == {"CPU:0"}


def test_plans_of_workers_have_no_config(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """TensorFlow Serving reaches no workers; it would take their devices for missing ones."""
    workers = tuple(f"/job:worker/replica:0/task:{task}/device:CPU:0" for task in range(2))
    plan = place(zoo_dir("cond"), tmp_path / "placed", seed=1, devices=workers)
    assert not plan.servable
    assert not (tmp_path / "placed" / SESSION_CONFIG_FILE).exists()
    here = {workers[0]: "/device:CPU:0", workers[1]: "/job:localhost/replica:0/task:0/device:CPU:1"}
    assert remap(tmp_path / "placed", tmp_path / "here", here).servable
    text = (tmp_path / "here" / SESSION_CONFIG_FILE).read_text()
    assert text.startswith("allow_soft_placement: false\n")
    assert _shipped_config(tmp_path / "here").device_count == {"CPU": 2}
    remap(tmp_path / "here", tmp_path / "back", {new: old for old, new in here.items()})
    assert not (tmp_path / "back" / SESSION_CONFIG_FILE).exists()


def _shipped_config(placed: Path) -> Any:
    config = config_pb2.ConfigProto()
    return text_format.Parse((placed / SESSION_CONFIG_FILE).read_text(), config)

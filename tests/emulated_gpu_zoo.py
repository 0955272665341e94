"""Models on the CPU and on an emulated GPU: `python -m` with NAME=DIRECTORY prints JSON."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.zoo import ZOO

tf1 = tf.compat.v1

STEPS = 3
"""So many compute their results, by default."""


def main(arguments: list[str]) -> None:
    """Prints, for every model, what `compared` says."""
    pairs = [argument.split("=", 1) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        facts = {name: compared(name, Path(path), Path(folder)) for name, path in pairs}
    print(json.dumps(facts))


def compared(name: str, directory: Path, folder: Path) -> dict[str, Any]:
    """`difference`: the largest one in any step, relative to the largest value of the output;
    `kernels`: how many ran on the GPU, by operator; `on_cpu`: operators that ran on the CPU.
    """
    feeds = ZOO[name].inputs(seed=1)
    [expected], _ = _run(name, _placed(directory, folder / f"{name}_cpu", "/CPU:0"), feeds, 1)
    steps, stats = _run(name, _placed(directory, folder / f"{name}_gpu", "/GPU:0"), feeds, STEPS)
    return {
        "difference": max(
            _difference(expected[output], step[output]) for step in steps for output in expected
        ),
        "kernels": Counter(
            node.node_name.rpartition(":")[2]
            for device in stats.dev_stats
            if device.device == "/device:GPU:0/stream:all"
            for node in device.node_stats
        ),
        "on_cpu": sorted({
            node.timeline_label.rpartition(" = ")[2].partition("(")[0]
            for device in stats.dev_stats
            if "/device:CPU:0" in device.device
            for node in device.node_stats
        }),
    }  # fmt: skip


def _difference(expected: np.ndarray, value: np.ndarray) -> float:
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, value) else float("inf")
    scale = np.abs(expected).max(initial=1e-9)
    return float(np.abs(expected.astype(np.float64) - value).max(initial=0.0) / scale)


def _placed(directory: Path, target: Path, device: str) -> Path:
    """A copy of the model with all nodes on one device."""
    shutil.copytree(directory, target)
    model = saved_model_pb2.SavedModel()
    model.ParseFromString((directory / "saved_model.pb").read_bytes())
    for graph in (meta_graph.graph_def for meta_graph in model.meta_graphs):
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            for node in nodes:
                node.device = device
    (target / "saved_model.pb").write_bytes(model.SerializeToString())
    return target


def _run(name: str, directory: Path, feeds: dict[str, np.ndarray], steps: int) -> tuple[Any, Any]:
    """Outputs of every step, and the statistics of the last."""
    entry = ZOO[name]
    values, metadata = [], tf1.RunMetadata()
    with (
        tf.Graph().as_default() as graph,
        tf1.Session(graph=graph, config=tf1.ConfigProto(allow_soft_placement=True)) as session,
    ):
        meta_graph = tf1.saved_model.load(session, list(entry.tags), str(directory))
        signature = meta_graph.signature_def[entry.signature]
        fetches = {key: info.name for key, info in signature.outputs.items()}
        fed = {signature.inputs[key].name: value for key, value in feeds.items()}
        options = tf1.RunOptions(trace_level=tf1.RunOptions.FULL_TRACE)
        for _ in range(steps):
            values.append(session.run(fetches, fed, options=options, run_metadata=metadata))
    return values, metadata.step_stats


if __name__ == "__main__":
    main(sys.argv[1:])

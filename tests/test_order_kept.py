"""A model that carries an order, run by TensorFlow: same outputs, same kernels, planned order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from moirai_tf.model.load import load_in_session
from moirai_tf.rewrite.kept_order import Order, Wait
from moirai_tf.rewrite.plan import Plan, Precedence
from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.verify.names import session_names
from moirai_tf.verify.partition import PartitionedGraph
from moirai_tf.verify.placement_proof import Kernels, prove_order
from moirai_tf.verify.run import tensors
from tests.orders import coarse_of, order_of, random_rows, write_ordered
from tests.saved_models import edited, node_of, proto_of, zoo_options
from tests.zoo import ZOO

ZooDir = Callable[[str], Path]

_RUNTIME = frozenset({"_Arg", "_Retval", "_Send", "_Recv", "_HostSend", "_HostRecv"})
_DEVICES = {"CPU:0": "/device:CPU:0", "CPU:1": "/device:CPU:1"}


@dataclass(frozen=True)
class _Run:
    outputs: Mapping[str, Any]
    partitions: tuple[Any, ...]
    times_ns: Mapping[str, tuple[int, int]]
    """Node -> start and end in the trace."""

    @property
    def kernels(self) -> Counter[str]:
        """Kernels that TensorFlow made of several operators, or took from oneDNN."""
        nodes = (n for graph in self.partitions for n in graph.node)
        return Counter(
            f"{n.op}({b'+'.join(n.attr['fused_ops'].list.s).decode()})"
            for n in nodes
            if n.op.startswith("_") and n.op not in _RUNTIME
        )


def _run(directory: Path, name: str, threads: int) -> _Run:
    """One traced inference, Grappler on, with so many operators at a time."""
    config = config_pb2.ConfigProto(
        allow_soft_placement=True, inter_op_parallelism_threads=threads, device_count={"CPU": 2}
    )
    options = config_pb2.RunOptions(
        trace_level=config_pb2.RunOptions.FULL_TRACE, output_partition_graphs=True
    )
    metadata = config_pb2.RunMetadata()
    entry = ZOO[name]
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        signature = load_in_session(directory, session, entry.tags or ("serve",))[entry.signature]
        inputs = entry.inputs()
        feeds = {tensor: inputs[key] for key, tensor in tensors(signature.inputs).items()}
        fetches = tensors(signature.outputs)
        outputs = session.run(fetches, feeds, options=options, run_metadata=metadata)
    times = {
        node.node_name: (
            node.all_start_nanos + node.op_start_rel_nanos,
            node.all_start_nanos + node.op_end_rel_nanos,
        )
        for device in metadata.step_stats.dev_stats
        for node in device.node_stats
    }
    return _Run(outputs, tuple(metadata.partition_graphs), times)


def _graph(run: _Run, directory: Path, plan: Plan) -> PartitionedGraph:
    (meta_graph,) = proto_of(directory).meta_graphs
    return PartitionedGraph(run.partitions, session_names(meta_graph, plan), _DEVICES)


def _placed_twice(name: str, path: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A model at random on two devices, without and with an order by lot that no runtime has."""
    coarse = coarse_of(path, fuse=True, **zoo_options(name))
    rows, second = random_rows(coarse, seed=3)
    order, placement = order_of(path, coarse, rows, second)
    write_ordered(path, tmp_path / "runtime", coarse, Order(), placement)
    write_ordered(path, tmp_path / "planned", coarse, order, placement)
    return tmp_path / "runtime", tmp_path / "planned"


@pytest.mark.parametrize(
    "name",
    ["ensemble", "two_tower", "lstm", "bert", "t5",
     pytest.param("inception_v3", marks=pytest.mark.slow)],
)  # fmt: skip
def test_tensorflow_keeps_the_order_and_its_kernels(
    name: str, zoo_dir: ZooDir, tmp_path: Path
) -> None:
    runtime, planned = _placed_twice(name, zoo_dir(name), tmp_path)
    plan = read_plan(planned)
    reference = _run(runtime, name, threads=2)
    for threads in (1, 4):
        run = _run(planned, name, threads)
        for key, value in reference.outputs.items():
            np.testing.assert_array_equal(run.outputs[key], value)
        assert run.kernels == reference.kernels
        graph = _graph(run, planned, plan)
        kept, findings = prove_order("session", graph, plan.order)
        assert findings == []
        assert kept >= 0.8 * len(plan.order) > 0
        assert _traced(run, graph, plan) >= 0.5 * len(plan.order)


def _traced(run: _Run, graph: PartitionedGraph, plan: Plan) -> int:
    """Precedences that the trace shows; fails at one that it contradicts."""
    kernels = Kernels(graph.nodes, graph.names)
    seen = 0
    for pair in plan.order:
        first, second = (
            [run.times_ns[n] for n in kernels.holding(operator) if n in run.times_ns]
            for operator in (pair.before, pair.after)
        )
        if len(first) == len(second) == 1:  # Loops are many nodes.
            assert first[0][1] <= second[0][0], pair
            seen += 1
    return seen


def test_edges_at_the_kernels_themselves_would_cost_fusions(
    zoo_dir: ZooDir, tmp_path: Path
) -> None:
    path = zoo_dir("ensemble")
    runtime, planned = _placed_twice("ensemble", path, tmp_path)
    coarse = coarse_of(path, fuse=True, **zoo_options("ensemble"))
    rows, second = random_rows(coarse, seed=3)
    order, placement = order_of(path, coarse, rows, second)
    ((calls, _),) = order.waits.items()
    prefix = "".join(f"{call}/" for call in calls)
    direct = tuple(
        Wait(pair.after.removeprefix(prefix), pair.before.removeprefix(prefix), relay=False)
        for pair in order.promises
    )
    naive = replace(order, waits={calls: direct})
    write_ordered(path, tmp_path / "naive", coarse, naive, placement)
    fused = {
        directory.name: sum(
            count for kernel, count in _run(directory, "ensemble", 2).kernels.items()
            if "Fused" in kernel
        )
        for directory in (runtime, planned, tmp_path / "naive")
    }  # fmt: skip
    assert fused["planned"] == fused["runtime"] > fused["naive"]


def test_an_order_that_the_graph_does_not_have_is_found(zoo_dir: ZooDir, tmp_path: Path) -> None:
    _, planned = _placed_twice("ensemble", zoo_dir("ensemble"), tmp_path)
    plan = read_plan(planned)
    lost = next(e for e in plan.edits.order if not e.before.endswith("moirai_order"))

    def forget(meta_graph: Any) -> None:
        bodies = {f.signature.name: f for f in meta_graph.graph_def.library.function}
        node_of(bodies[lost.function], lost.node).input.remove(f"^{lost.before}")

    broken = edited(planned, tmp_path / "broken", forget)
    run = _run(broken, "ensemble", threads=2)
    _, findings = prove_order("session", _graph(run, broken, plan), plan.order)
    (finding,) = findings
    assert finding.kind == "order"
    assert finding.names[0].endswith(lost.before)
    assert "does not wait for" in finding.text
    turned = tuple(Precedence(pair.after, pair.before) for pair in plan.order)
    run = _run(planned, "ensemble", threads=2)
    kept, findings = prove_order("session", _graph(run, planned, plan), turned)
    assert (kept, len(findings)) == (0, len(turned))

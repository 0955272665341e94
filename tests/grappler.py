"""TensorFlow's own Grappler, run on a flat graph: what would the runtime fuse?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import config_pb2, device_properties_pb2
from tensorflow.python.framework import tensor_util
from tensorflow.python.grappler import cluster, tf_optimizer

from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.graph import graphdef
from moirai_tf.graph.graph import CLIENT_OPS, Graph, Operator
from moirai_tf.graph.importer import import_graph
from moirai_tf.graph.options import ImportOptions
from moirai_tf.graph.prune import prune
from moirai_tf.model.saved_model import read_saved_model

TASK = "/job:localhost/replica:0/task:0"


@dataclass(frozen=True)
class Optimised:
    """A graph as Grappler leaves it."""

    graph_def: Any
    devices: Mapping[str, str]
    """The devices that its operators were placed on before."""

    @property
    def computing(self) -> int:
        """Nodes that are no constants."""
        return sum(node.op != "Const" for node in self.graph_def.node)

    @property
    def working(self) -> dict[str, str]:
        """Name, as it was before, and op of each node that is neither constant nor identity."""
        folded = "ArithmeticOptimizer/FoldTransposeIntoMatMul_"
        return {
            node.name.replace(folded, ""): node.op
            for node in self.graph_def.node
            if node.op not in ("Const", "Identity")
        }

    @property
    def fused(self) -> dict[tuple[str, str], frozenset[str]]:
        """(op, work) of each operator that Grappler fused -> the ops it holds besides.

        The work of a contraction is known by its weights, which keep their scope when Grappler
        folds a scale into them; that of others by their own name.
        """
        found = {}
        for node in self.graph_def.node:
            parts = frozenset(p.decode() for p in node.attr["fused_ops"].list.s)
            work = node.input[1].rpartition("/")[0] if parts else node.name
            if node.op.startswith("_"):
                found[node.op, work] = parts
        return found

    @property
    def moved(self) -> int:
        """Fused operators whose result is not computed on the device it was placed on."""
        return sum(
            node.op.startswith("_") and node.device != self.devices.get(node.name, node.device)
            for node in self.graph_def.node
        )

    def lost(self, other: Optimised) -> list[tuple[str, str]]:
        """Fused operators of another result that are not fused here, or hold less."""
        return [
            work
            for work, parts in other.fused.items()
            if work not in self.fused or not parts <= self.fused[work]
        ]


def optimise(
    graph: Graph, weights: Mapping[str, np.ndarray], device_of: Sequence[int]
) -> Optimised:
    """Runs Grappler on a placed graph whose variables are constants.

    Args:
      graph: the flat graph.
      weights: value of every `VarHandleOp`, by name; see `variable_values`.
      device_of: for each operator, the number of its CPU device; the client has the first.
    """
    numbers = [
        0 if operator.op in CLIENT_OPS else number
        for operator, number in zip(graph.operators, device_of, strict=True)
    ]
    devices = {
        operator.name: f"{TASK}/device:CPU:{number}"
        for operator, number in zip(graph.operators, numbers, strict=True)
    }
    return _optimised(graph, weights, devices)


def optimise_on_gpu(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    capability: str = "8.0",
    elsewhere: Collection[str] = (),
) -> Optimised:
    """Runs Grappler on a graph whose operators are on one virtual GPU, where they can be.

    Args:
      graph: the flat graph.
      weights: value of every `VarHandleOp`, by name.
      capability: the GPU's compute capability.
      elsewhere: operators that are on the CPU all the same.
    """
    devices = {
        operator.name: f"{TASK}/device:{_type_beside_a_gpu(operator, elsewhere)}:0"
        for operator in graph.operators
    }
    host = device_properties_pb2.DeviceProperties(type="CPU", frequency=2500, num_cores=8)
    gpu = device_properties_pb2.DeviceProperties(
        type="GPU", frequency=1400, num_cores=100, bandwidth=10**9, memory_size=1 << 34,
        environment={"architecture": capability, "cuda": "12050", "cudnn": "9000"},
    )  # fmt: skip
    virtual = cluster.Cluster(
        devices=[
            device_properties_pb2.NamedDevice(name=f"{TASK}/device:{p.type}:0", properties=p)
            for p in (host, gpu)
        ]
    )
    try:
        return _optimised(graph, weights, devices, virtual)
    finally:
        virtual.Shutdown()


@dataclass(frozen=True)
class Transfer:
    """A tensor that crosses to another device."""

    tensor: str
    source: str
    target: str


def transfers(optimised: Optimised, graph: Graph) -> set[Transfer]:
    """What crosses in a graph as Grappler leaves it; small constants are copied instead."""
    nodes = {node.name: node for node in optimised.graph_def.node}
    reads = [(t, n.device) for n in nodes.values() for t in n.input if not t.startswith("^")]
    reads += [(text.removesuffix(":0"), f"{TASK}/device:CPU:0") for text in graphdef.fetches(graph)]
    return {
        Transfer(tensor, nodes[tensor.partition(":")[0]].device, device)
        for tensor, device in reads
        if nodes[tensor.partition(":")[0]].device != device
        and not _is_small_constant(nodes[tensor.partition(":")[0]])
    }


def _is_small_constant(node: Any) -> bool:
    return node.op == "Const" and tensor_util.MakeNdarray(node.attr["value"].tensor).size <= 16


def kernels_of(coarse: CoarseGraph, device_type: str) -> dict[str, list[str]]:
    """Operator whose output leaves a kernel of several -> the names of the others."""
    fine = coarse.fine.operators
    found = {}
    for kernel in (k for fused in coarse.operators for k in fused.kernels):
        if kernel.device_type == device_type:
            *others, root = (fine[member].name for member in kernel.members)
            found[root] = others
    return found


def _type_beside_a_gpu(operator: Operator, elsewhere: Collection[str]) -> str:
    host = operator.op in CLIENT_OPS or "GPU" not in operator.device_types
    return "CPU" if host or operator.name in elsewhere else "GPU"


def _optimised(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    devices: Mapping[str, str],
    virtual: cluster.Cluster | None = None,
) -> Optimised:
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    graph_def = _frozen(graphdef.to_graph_def(graph, devices), weights)
    meta_graph = graphdef.meta_graph(graph_def, graphdef.fetches(graph))
    return Optimised(tf_optimizer.OptimizeGraph(config, meta_graph, cluster=virtual), devices)


def placements(graph: Graph, devices: int) -> dict[str, tuple[int, list[int]]]:
    """Kind of placement -> number of units that are placed, and each operator's device."""
    coarse, expansion = coarsen(graph)
    random = np.random.default_rng(0).integers(0, devices, len(graph)).tolist()
    return {
        "one device": (len(graph), [0] * len(graph)),
        "operators in turn": (len(graph), [i % devices for i in range(len(graph))]),
        "operators at random": (len(graph), random),
        "fused operators in turn": (len(coarse), [k % devices for k in expansion.owner]),
        "fused operators at random": (len(coarse), [random[k] for k in expansion.owner]),
    }


def flat_graph(directory: Path, inputs: Mapping[str, np.ndarray]) -> Graph:
    """The operator graph of a SavedModel, for the shapes of some inputs."""
    shapes = tuple(f"{name}={','.join(map(str, a.shape))}" for name, a in inputs.items())
    return prune(import_graph(read_saved_model(directory), ImportOptions(input_shapes=shapes)))


def variable_values(directory: Path, graph: Graph) -> dict[str, np.ndarray]:
    """The values of the variables that a graph of a SavedModel reads."""
    handles = [o.name for o in graph.operators if o.op == "VarHandleOp"]
    with tf.Graph().as_default() as loaded, tf.compat.v1.Session() as session:
        tf.compat.v1.saved_model.loader.load(session, ["serve"], str(directory))
        reads = {name: _read(loaded.get_operation_by_name(name)) for name in handles}
        values: dict[str, np.ndarray] = session.run(reads)
        return values


def _read(handle: Any) -> Any:
    return tf.raw_ops.ReadVariableOp(
        resource=handle.outputs[0], dtype=tf.as_dtype(handle.get_attr("dtype"))
    )


def _frozen(graph_def: Any, weights: Mapping[str, np.ndarray]) -> Any:
    frozen = graph_pb2.GraphDef(library=graph_def.library)
    for node in graph_def.node:
        if node.op == "VarHandleOp":
            continue
        copy = frozen.node.add()
        if node.op != "ReadVariableOp":
            copy.CopyFrom(node)
            continue
        value = weights[node.input[0]]
        copy.name, copy.op, copy.device = node.name, "Const", node.device
        copy.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
        copy.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(value))
    return frozen

"""Planned orders that no solver made, and what a written model keeps of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import tensorflow as tf

from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.graph.graph import CLIENT_OPS
from moirai_tf.graph.importer import flat_nodes
from moirai_tf.graph.prune import prune
from moirai_tf.model.output import publish
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.placement.problem import topological_order
from moirai_tf.rewrite.directory import stage_placed, unplaced
from moirai_tf.rewrite.kept_order import Order, plan_order
from moirai_tf.rewrite.plan import Plan
from tests.placements import CPUS, plan_of
from tests.saved_models import graph_of, save_function

FIRST, SECOND = CPUS
GPU = "/job:worker/replica:0/task:1/device:GPU:0"


def coarse_of(path: Path, *, fuse: bool = False, **options: Any) -> CoarseGraph:
    """The graph whose operators are ordered."""
    return coarsen(prune(graph_of(path, **options)), FuseOptions(coarsen=fuse))[0]


def order_of(
    path: Path,
    coarse: CoarseGraph,
    rows: Sequence[Sequence[str]],
    second: Iterable[str] = (),
) -> tuple[Order, dict[str, str]]:
    """The order that a model is to keep, and its placement.

    Args:
      path: the model.
      coarse: its fused operators.
      rows: for each device, names of operators by start; each stands for its fused operator.
      second: operators on the second device, with all that is fused with them.
    """
    owner = {m: k for k, fused in enumerate(coarse.operators) for m in fused.members}
    index = coarse.fine.index
    moved = {owner[index[name]] for name in second}
    placement = {o.name: CPUS[owner[i] in moved] for i, o in enumerate(coarse.fine.operators)}
    numbers = [[owner[index[name]] for name in row] for row in rows]
    return plan_order(unplaced(read_saved_model(path)), coarse, numbers, placement), placement


def write_ordered(
    path: Path, output: Path, coarse: CoarseGraph, order: Order, placement: Mapping[str, str]
) -> Plan:
    """Writes the placed model with an order; returns its plan."""
    model = unplaced(read_saved_model(path))
    plan = plan_of(coarse.fine, placement)
    staged, plan = stage_placed(model, coarse.fine, plan, output, overwrite=False, order=order)
    publish(staged)
    return plan


def random_rows(coarse: CoarseGraph, seed: int) -> tuple[list[list[str]], list[str]]:
    """All fused operators on two devices by lot, each device in an order that some schedule has."""
    lots = random.Random(seed)
    count = len(coarse)
    shuffled = lots.sample(range(count), count)
    rank = {old: new for new, old in enumerate(shuffled)}
    edges = [(rank[t.producer], rank[c]) for t in coarse.tensors for c in t.consumers]
    together = {k for group in coarse.colocation for k in group}
    rows: list[list[str]] = [[], []]
    for k in (shuffled[new] for new in topological_order(count, edges)):
        ops = {coarse.fine.operators[m].op for m in coarse.operators[k].members}
        device = 0 if ops & CLIENT_OPS or k in together else lots.randrange(2)
        rows[device].append(coarse.operators[k].name)
    return rows, rows[1]


def waits_in(meta_graph: Any, signature: str) -> tuple[dict[str, int], list[set[int]]]:
    """Flat name -> index, and for each flat node of a MetaGraph what it waits for directly."""
    nodes = flat_nodes(meta_graph, signature)
    sources = [{ref.producer for ref in n.inputs} | set(n.controls) for n in nodes]
    return {node.name: i for i, node in enumerate(nodes)}, sources


def depends(sources: Sequence[Set[int]], second: int, first: int) -> bool:
    """Whether one node cannot start before another has finished."""
    pending, seen = [second], {second}
    while pending:
        new = sources[pending.pop()] - seen
        seen |= new
        pending.extend(new)
    return first in seen and first != second


def conv_blocks(path: Path) -> Path:
    """A model of two convolutions with bias and activation that read the same image."""
    kernels = [tf.Variable(tf.random.stateless_normal([3, 3, 2, 2], (i, 0))) for i in range(2)]
    biases = [tf.Variable(tf.random.stateless_normal([2], (i, 1))) for i in range(2)]

    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 2], tf.float32, "x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        def block(k: int) -> tf.Tensor:
            with tf.name_scope(f"block{k}"):
                conv = tf.nn.conv2d(x, kernels[k], 1, "SAME", name="conv")
                return tf.nn.relu(tf.nn.bias_add(conv, biases[k]), name="relu")

        return {"y": tf.concat([block(0), block(1)], -1, "y")}

    return save_function(path, serve, kernels=kernels, biases=biases)

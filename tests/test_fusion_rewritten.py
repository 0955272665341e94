"""Rewrites of Grappler that ignore devices: fused operators leave them nothing to carry."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.graph.graph import CLIENT_OPS, Graph
from moirai_tf.graph.prune import prune
from moirai_tf.rewrite.make_plan import transfers_of
from tests import grappler
from tests.saved_models import graph_of, save_graph

tf1 = tf.compat.v1

Build = Callable[[Any], Sequence[Any]]
"""From a matrix of 4 x 4 to what the model returns; `_heavy` keeps what it is given apart."""


def _heavy(x: Any) -> Any:
    """Something that neither fuses with its neighbours nor is rewritten."""
    return tf.raw_ops.Cumsum(x=x, axis=0)


def _negation(x: Any) -> Sequence[Any]:
    negated = -_heavy(x)
    return [_heavy(negated), _heavy(x + negated)]


def _involution(x: Any) -> Sequence[Any]:
    inverse = tf.math.reciprocal(_heavy(x))
    return [_heavy(inverse), _heavy(tf.math.reciprocal(inverse))]


def _transposes(x: Any) -> Sequence[Any]:
    turned = tf.transpose(_heavy(x))
    return [_heavy(turned), _heavy(tf.transpose(turned))]


def _product(x: Any) -> Sequence[Any]:
    turned = tf.transpose(_heavy(x))
    return [_heavy(turned), _heavy(tf.matmul(turned, turned))]


def _conjugate(x: Any) -> Sequence[Any]:
    wide = tf.math.conj(_heavy(tf.complex(x, x)))
    return [_heavy(wide), _heavy(tf.transpose(wide))]


def _negated_twice(x: Any) -> Sequence[Any]:
    no = tf.logical_not(tf.reverse(x > 0, [0]))
    return [tf.reverse(no, [1]), tf.reverse(tf.logical_not(no), [0])]


def _largest(x: Any) -> Sequence[Any]:
    positive = tf.nn.relu(_heavy(x))
    return [_heavy(tf.reduce_max(tf.identity(positive), 0, keepdims=True))]


def _largest_and_shape(x: Any) -> Sequence[Any]:
    positive = tf.nn.relu(_heavy(x))
    rows = tf.cast(tf.shape(positive)[:1], tf.float32)
    return [_heavy(tf.reduce_max(positive, 0, keepdims=True)), _heavy(rows)]


KINDS: dict[str, Build] = {
    "negation": _negation,
    "inverse of an inverse": _involution,
    "not of a not": _negated_twice,
    "transposes": _transposes,
    "transpose and product": _product,
    "conjugate and transpose": _conjugate,
    "largest behind an identity": _largest,
    "largest of what has a shape": _largest_and_shape,
}


def _graph(build: Build, folder: Path) -> Graph:
    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [4, 4], "x")
        outputs = {f"y{k}": y for k, y in enumerate(build(x))}
        save_graph(folder / "model", graph, {"x": x}, outputs)
    return prune(graph_of(folder / "model"))


def _unplanned(graph: Graph, owner: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Placements of clusters on two devices where Grappler leaves more transfers than planned."""
    clients = {owner[i] for i, o in enumerate(graph.operators) if o.op in CLIENT_OPS}
    free = sorted(set(owner) - clients)
    for chosen in itertools.product((0, 1), repeat=len(free)):
        number = {**dict.fromkeys(clients, 0), **dict(zip(free, chosen, strict=True))}
        optimised = grappler.optimise(graph, {}, [number[k] for k in owner])
        planned = Counter((t.source, t.target) for t in transfers_of(graph, optimised.devices))
        happened = Counter((t.source, t.target) for t in grappler.transfers(optimised, graph))
        if happened - planned:
            yield chosen


@pytest.mark.parametrize("kind", KINDS)
def test_no_placement_of_fused_operators_has_more_transfers(kind: str, tmp_path: Path) -> None:
    """Every placement is tried; of operators each on its own, some have more."""
    graph = _graph(KINDS[kind], tmp_path)
    _, expansion = coarsen(graph, device_types=("CPU",))
    assert list(_unplanned(graph, expansion.owner)) == []
    constants = {i for i, o in enumerate(graph.operators) if o.op == "Const"}
    with_readers = [
        graph.consumers[i][0] if i in constants else i for i, _ in enumerate(graph.operators)
    ]
    assert next(_unplanned(graph, with_readers), None) is not None

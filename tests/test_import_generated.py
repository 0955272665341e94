"""Calls at random, marked and wired at random: the import inlines what TensorFlow inlines.

Functions call functions, look in tables, write variables, loop and branch; some of their results
nobody reads. Then control outputs, control edges and marks are taken away or added in the
protobuf, so that every reason for not inlining a call occurs, alone and with others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from moirai_tf.graph.graph import CALL_OPS
from moirai_tf.graph.prune import prune
from tests.import_differences import Executed, differences, main_call
from tests.inliner_oracle import LOADERS, Job, executed
from tests.saved_models import edited, graph_of, ops_of, proto_of, save_function

SEEDS = range(8)
X = tf.TensorSpec([2, 4], tf.float32, "x")
INPUTS = {"x": np.linspace(-1.0, 1.0, 8, dtype=np.float32).reshape(2, 4)}

Step = Callable[[Any], Any]


def _steps(rng: random.Random, table: Any, v: tf.Variable) -> list[Step]:
    """What functions are made of: resources, control flow, state, chance."""

    def look(x: Any) -> Any:
        return x * table.lookup(tf.cast(x, tf.int32))

    def count(x: Any) -> Any:
        v.assign_add(0.5)
        return x + v

    def loop(x: Any) -> Any:
        first = [0, x, tf.exp(x)]
        return tf.while_loop(
            lambda i, *_: i < 2, lambda i, a, b: (i + 1, tf.tanh(a), b + 1.0), first
        )[1 + rng.randrange(2)]

    def branch(x: Any) -> Any:
        y = tf.cos(x)
        both = tf.cond(tf.reduce_sum(x) > 0.0, lambda: (x, y), lambda: (y, y))
        return both[rng.randrange(2)] * 2.0

    def noise(x: Any) -> Any:
        return x + tf.random.uniform([2, 4], seed=3)

    return [tf.sin, look, count, loop, branch, noise, lambda x: x * v]


def _program(rng: random.Random, folder: Path) -> Path:
    """A saved model whose functions call one another up to three deep."""
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1]), tf.constant([1.5, 2.5])), 0.5
    )
    v = tf.Variable(1.25)
    simple = _steps(rng, table, v)

    def function(depth: int) -> Step:
        steps = [rng.choice(simple) for _ in range(rng.randrange(1, 4))]
        steps += [function(depth - 1)] * rng.randrange(1, 3) if depth else []
        rng.shuffle(steps)

        @tf.function(autograph=False)
        def called(x: Any, unread: Any) -> Any:
            for step in steps:
                x = step(x)
            return x, unread + 1.0

        return lambda x: called(x, tf.constant(2.0))[0] if rng.random() < 0.5 else called(x, x)[0]

    top = [function(2) for _ in range(2)]

    @tf.function(autograph=False, input_signature=[X])
    def serve(x: Any) -> dict[str, Any]:
        return {"y": top[0](x) + 1.0, "z": top[1](tf.tanh(x))}

    return save_function(folder / "model", serve, table=table, v=v)


def _disturbed(rng: random.Random) -> Callable[[Any], None]:
    """Takes control outputs and control edges away, and marks functions."""

    def edit(meta_graph: Any) -> None:
        for function in meta_graph.graph_def.library.function:
            if "traced" in function.signature.name:
                continue
            if rng.random() < 0.2:
                function.control_ret.clear()
                del function.signature.control_output[:]
            for node in function.node_def if rng.random() < 0.15 else ():
                kept = [text for text in node.input if not text.startswith("^")]
                node.input[:] = kept
            mark = rng.choice(["", "", "", "", "api_implements", "_noinline"])
            if mark == "_noinline":
                function.attr[mark].b = True
            elif mark:
                function.attr[mark].s = function.signature.name.encode()
        if rng.random() < 0.4:
            _read_results(meta_graph, waited_for=rng.random() < 0.5)

    return edit


def _read_results(meta_graph: Any, *, waited_for: bool) -> None:
    """Puts nodes of the main graph between the signature's call and its results."""
    signature = meta_graph.signature_def["serving_default"]
    for key, info in signature.outputs.items():
        node = meta_graph.graph_def.node.add(name=f"result_{key}", op="Identity")
        node.attr["T"].type = info.dtype
        node.input.append(info.name)
        if waited_for:
            node.input.append(f"^{info.name.partition(':')[0]}")
        info.name = f"{node.name}:0"


def _models(seeds: Iterable[int], folder: Path) -> dict[int, Path]:
    found = {}
    for seed in seeds:
        rng, place = random.Random(seed), folder / str(seed)
        found[seed] = edited(_program(rng, place), place / "edited", _disturbed(rng))
    return found


def _wrong(models: Mapping[int, Path]) -> dict[str, list[str]]:
    """Seed and loader -> what is not as TensorFlow has it."""
    keys = [(seed, loader) for seed in models for loader in LOADERS]
    jobs = [
        (Job(str(models[seed]), ("serve",), "serving_default", loader), INPUTS)
        for seed, loader in keys
    ]
    found: dict[str, list[str]] = {}
    for (seed, loader), rows in zip(keys, executed(jobs), strict=True):
        graph, nodes = graph_of(models[seed]), {node["name"]: node for node in rows}
        if loader == "session":
            ran = Executed(prune(graph), nodes)
        elif all(op.scope.parent is None for op in graph.operators):
            continue  # a Session keeps the whole signature: the TF2 loader runs one operator
        else:
            ran = Executed(graph, nodes, *main_call(proto_of(models[seed]).meta_graphs[0], graph))
        if wrong := differences(ran):
            found[f"{seed} {loader}"] = wrong
    return found


def _both_kinds(models: Mapping[int, Path]) -> bool:
    """Whether some calls are inlined, and some kept."""
    graphs = [graph_of(model) for model in models.values()]
    kept = sum(op in CALL_OPS for graph in graphs for op in ops_of(graph))
    inlined = sum(len({o.scope for o in graph.operators}) > 1 for graph in graphs)
    return kept > len(models) / 3 and inlined > len(models) / 3


def test_the_import_inlines_what_tensorflow_inlines(tmp_path: Path) -> None:
    models = _models(range(4), tmp_path)
    assert _both_kinds(models)
    assert _wrong(models) == {}


@pytest.mark.slow
def test_the_import_inlines_what_tensorflow_inlines_in_many(tmp_path: Path) -> None:
    models = _models(range(4, 40), tmp_path)
    assert _both_kinds(models)
    assert _wrong(models) == {}

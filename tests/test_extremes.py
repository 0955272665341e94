"""Models of extreme size and depth: a result or a clear error, in bounded time and memory."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2

from moirai_tf.cluster.files import cluster_from_yaml
from moirai_tf.cost.inputs import generate_inputs
from moirai_tf.cost.layouts import alone
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import dump_graph
from moirai_tf.passes import Fuse, Import, Place, Profile, Prune, Publish, Rewrite
from moirai_tf.pipeline import MoiraiItem, Pipeline, need
from moirai_tf.rewrite.directory import strip
from moirai_tf.rewrite.kept_order import plan_order
from moirai_tf.rewrite.make_plan import write_placed
from tests.hostile import CLUSTER, bounded
from tests.refusals import written

_FLOAT = "attr { key: 'T' value { type: DT_FLOAT } }"


def _model(nodes: str, functions: str = "", sizes: str = "dim { size: 2 }", y: str = "y") -> Any:
    """A model of x -> y, by the text of its nodes."""
    text = f"""
      meta_graphs {{
        meta_info_def {{ tags: 'serve' }}
        graph_def {{
          versions {{ producer: 1882 }}
          node {{ name: 'x' op: 'Placeholder' attr {{ key: 'dtype' value {{ type: DT_FLOAT }} }}
                  attr {{ key: 'shape' value {{ shape {{ {sizes} }} }} }} }}
          {nodes} library {{ {functions} }}
        }}
        signature_def {{ key: 'serving_default' value {{
          inputs {{ key: 'x' value {{ name: 'x:0' dtype: DT_FLOAT
                    tensor_shape {{ {sizes} }} }} }}
          outputs {{ key: 'y' value {{ name: '{y}:0' dtype: DT_FLOAT }} }} }} }}
      }}"""
    return text_format.Parse(text, saved_model_pb2.SavedModel())


def _node(name: str, op: str, *inputs: str, more: str = _FLOAT) -> str:
    read = " ".join(f"input: '{text}'" for text in inputs)
    return f"node {{ name: '{name}' op: '{op}' {read} {more} }}\n"


def _call(function: str) -> str:
    types = "list { type: DT_FLOAT }"
    return (
        f"attr {{ key: 'f' value {{ func {{ name: '{function}' }} }} }} "
        f"attr {{ key: 'Tin' value {{ {types} }} }} attr {{ key: 'Tout' value {{ {types} }} }}"
    )


def _nested(depth: int, calls: int = 1, last: str = "", op: str = "PartitionedCall") -> Any:
    """Functions f0, f1, ... each of which calls the next one so many times; the last one `last`."""
    functions = []
    for i in range(depth):
        called = f"f{i + 1}" if i + 1 < depth else last
        source, body = "a", ""
        for k in range(calls):
            inner = _node(f"c{k}", op, source, more=_call(called)) if called else ""
            inner = inner or _node(f"c{k}", "Sin", source)
            body += inner.replace("node {", "node_def {", 1)
            source = f"c{k}:output:0" if called else f"c{k}:y:0"
        functions.append(
            f"function {{ signature {{ name: 'f{i}' input_arg {{ name: 'a' type: DT_FLOAT }} "
            f"output_arg {{ name: 'r' type: DT_FLOAT }} }} {body} "
            f"ret {{ key: 'r' value: '{source}' }} }}"
        )
    return _model(_node("y", op, "x", more=_call("f0")), "\n".join(functions))


def _dims(*sizes: int) -> str:
    return " ".join(f"dim {{ size: {size} }}" for size in sizes)


def _constant(sizes: str) -> str:
    """A constant whose only stored value stands for all its elements."""
    return _node(
        "c", "Const",
        more="attr { key: 'dtype' value { type: DT_FLOAT } } attr { key: 'value' value { tensor {"
        f" dtype: DT_FLOAT tensor_shape {{ {sizes} }} float_val: 1 }} }} }}",
    )  # fmt: skip


def _fill(*sizes: int) -> str:
    values = " ".join(f"int64_val: {size}" for size in sizes)
    types = f"{_FLOAT} attr {{ key: 'index_type' value {{ type: DT_INT64 }} }}"
    dims = (
        "attr { key: 'dtype' value { type: DT_INT64 } } attr { key: 'value' value { tensor { "
        f"dtype: DT_INT64 tensor_shape {{ {_dims(len(sizes))} }} {values} }} }} }}"
    )
    return _node("d", "Const", more=dims) + _constant("") + _node("big", "Fill", "d", "c",
                                                                   more=types)  # fmt: skip


def _fused_chain(read: str) -> str:
    return _node("m", "Mul", "x", read) + _node("y", "Sin", "m")


_TEXT_ATTR = "attr {{ key: '_note' value {{ s: '{}' }} }}"

_MODELS: dict[str, Callable[[], Any]] = {
    "1,000 nested calls": lambda: _nested(1_000),
    "150 nested calls": lambda: _nested(150),
    "40 nested calls that stay": lambda: _nested(40, op="StatefulPartitionedCall"),
    "function that calls itself": lambda: _nested(1, last="f0"),
    "mutual recursion": lambda: _nested(40, last="f0"),
    "2**60 calls": lambda: _nested(60, calls=2),
    "input of 2**40": lambda: _model(_node("y", "Sin", "x"), sizes=_dims(1 << 40)),
    "input of 2**62 by 2**62": lambda: _model(
        _node("y", "Sin", "x"), sizes=_dims(1 << 62, 1 << 62)
    ),
    "input of 254 dimensions": lambda: _model(_node("y", "Sin", "x"), sizes=_dims(*[1] * 254)),
    "input of 300 dimensions": lambda: _model(_node("y", "Sin", "x"), sizes=_dims(*[1] * 300)),
    "negative size": lambda: _model(_node("y", "Sin", "x"), sizes=_dims(-7)),
    "constant of 2**40": lambda: _model(
        _constant(_dims(1 << 40)) + _fused_chain("c"), sizes=_dims(1)
    ),
    "constant of 2**62": lambda: _model(
        _constant(_dims(1 << 62)) + _fused_chain("c"), sizes=_dims(1)
    ),
    "constant of 2**80": lambda: _model(
        _constant(_dims(1 << 40, 1 << 40)) + _fused_chain("c"), sizes=_dims(1)
    ),
    "fill of 2**40": lambda: _model(_fill(1 << 40) + _fused_chain("big"), sizes=_dims(1)),
    "fill of 2**80": lambda: _model(
        _fill(1 << 40, 1 << 40) + _fused_chain("big"), sizes=_dims(1)
    ),
    "outer product of 2**80": lambda: _model(
        _node("m", "MatMul", "x", "x", more=f"{_FLOAT} attr {{ key: 'transpose_b' value "
              "{ b: true } }") + _node("y", "Sin", "m"),
        sizes=_dims(1 << 40, 1),
    ),
    "text of 16 MiB": lambda: _model(
        _node("y", "Sin", "x", more=_FLOAT + _TEXT_ATTR.format("a" * (1 << 24)))
    ),
    "name of 1 MiB": lambda: _model(
        _node("n" * (1 << 20), "Sin", "x") + _node("y", "Sin", "n" * (1 << 20))
    ),
    "unknown op of 1 MiB": lambda: _model(_node("y", "o" * (1 << 20), "x")),
    "10,000 attributes": lambda: _model(
        _node("y", "Sin", "x", more=_FLOAT + "".join(
            f"attr {{ key: '_a{i}' value {{ i: {i} }} }}" for i in range(10_000)
        ))
    ),
    "sum of 50,000": lambda: _model(
        _node("y", "AddN", *["x"] * 50_000, more=f"{_FLOAT} attr {{ key: 'N' value "
              "{ i: 50000 } }")
    ),
    "wrong number of 2**62": lambda: _model(
        _node("y", "AddN", "x", more=f"{_FLOAT} attr {{ key: 'N' value {{ i: {1 << 62} }} }}")
    ),
    "name of 10,000 parts": lambda: _model(
        _node("a/" * 10_000 + "b", "Sin", "x") + _node("y", "Sin", "a/" * 10_000 + "b")
    ),
}  # fmt: skip


def _placed(source: Path, output: Path) -> MoiraiItem:
    passes = (
        Import(), Prune(), Fuse(), Profile(source="analytical", links="cluster"),
        Place(solver="heft"), Rewrite(output_dir=str(output)), Publish(),
    )  # fmt: skip
    item = Pipeline(passes).run(MoiraiItem(source, cluster_from_yaml(str(CLUSTER))))
    assert dump_graph(need(item.graph))
    strip(output, output.with_name("stripped"))
    return item


_USED = {
    "negative size",
    "150 nested calls", "40 nested calls that stay", "input of 254 dimensions", "text of 16 MiB",
    "name of 1 MiB", "10,000 attributes", "sum of 50,000", "name of 10,000 parts",
}  # fmt: skip
"""The others are refused."""


@pytest.mark.parametrize("case", _MODELS)
def test_extreme_models(case: str, tmp_path: Path) -> None:
    source = written(tmp_path / "m", _MODELS[case]())
    refusal = None
    try:
        with bounded():
            _placed(source, tmp_path / "out")
    except MoiraiError as error:
        refusal = error
        assert not (tmp_path / "out").exists()
    assert (refusal is None) == (case in _USED), refusal
    assert refusal is None or len(str(refusal)) < 30_000


def test_inputs_beyond_all_memory_are_not_made(tmp_path: Path) -> None:
    source = written(tmp_path / "m", _MODELS["input of 2**40"]())
    item = Pipeline((Import(), Prune())).run(MoiraiItem(source, cluster_from_yaml(str(CLUSTER))))
    with bounded(), pytest.raises(MoiraiError, match="memory"):
        generate_inputs(need(item.graph))


def _chain(size: int) -> str:
    """An expression as long as the graph, half of it identities."""
    links = [(f"n{i}", ("Identity", "Neg")[i % 2]) for i in range(size)]
    sources = ["x", *(name for name, _ in links)]
    nodes = "".join(_node(n, op, s) for (n, op), s in zip(links, sources, strict=False))
    return nodes + _node("y", "Sin", sources[-1])


def _side_by_side(size: int) -> str:
    """Many readers of one operator, and one reader of them all."""
    count = f"{_FLOAT} attr {{ key: 'N' value {{ i: {size} }} }}"
    names = [f"n{i}" for i in range(size)]
    return "".join(_node(n, "Sin", "x") for n in names) + _node("y", "AddN", *names, more=count)


def _one_weight(size: int) -> str:
    """A chain of products with one constant."""
    square = _constant(_dims(2, 2)) + _node("n0", "Diag", "x")
    products = "".join(_node(f"n{i + 1}", "MatMul", f"n{i}", "c") for i in range(size))
    return square + products + _node("y", "Sin", f"n{size}")


def _layers(size: int) -> str:
    """Layers of four operators that read two of the layer before."""
    last, nodes = ["x"] * 4, ""
    for i in range(size // 4):
        names = [f"n{i}_{k}" for k in range(4)]
        reads = zip(last, last[1:] + last[:1], strict=True)
        nodes += "".join(_node(n, "AddV2", *r) for n, r in zip(names, reads, strict=True))
        last = names
    return nodes + _node("y", "Sin", last[0])


def _branches(size: int) -> str:
    """TensorFlow 1's branches on one predicate, one after the other."""
    nodes = _node(
        "c", "Const",
        more="attr { key: 'dtype' value { type: DT_BOOL } } attr { key: 'value' value { tensor {"
        " dtype: DT_BOOL tensor_shape {} bool_val: true } } }",
    )  # fmt: skip
    two = f"{_FLOAT} attr {{ key: 'N' value {{ i: 2 }} }}"
    for i in range(size // 4):
        nodes += _node(f"s{i}", "Switch", f"m{i - 1}" if i else "x", "c")
        nodes += _node(f"a{i}", "Sin", f"s{i}:1") + _node(f"b{i}", "Cos", f"s{i}")
        nodes += _node(f"m{i}", "Merge", f"b{i}", f"a{i}", more=two)
    return nodes + _node("y", "Sin", f"m{size // 4 - 1}")


def _calls_made(source: Path) -> int:
    """How many functions are called to import, prune, fuse and write a model with an order."""
    cluster = cluster_from_yaml(str(CLUSTER))

    def work() -> None:
        item = Pipeline((Import(), Prune(), Fuse())).run(MoiraiItem(source, cluster))
        model, graph, coarse = need(item.model), need(item.graph), need(item.coarse)
        placement = alone(graph, cluster, cluster.client)
        order = plan_order(model, coarse, [range(len(coarse))], placement)
        placed = source.with_name(f"{source.name}_placed")
        write_placed(model, graph, cluster, placement, placed, order)

    profile = cProfile.Profile()
    profile.runcall(work)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize("nodes", [_chain, _side_by_side, _one_weight, _layers, _branches])
def test_work_grows_as_the_graph_does(nodes: Callable[[int], str], tmp_path: Path) -> None:
    """Four times the operators take less than five times the work."""
    few, many = (
        _calls_made(written(tmp_path / str(size), _model(nodes(size)))) for size in (800, 3200)
    )
    assert few > 800
    assert many < 5 * few

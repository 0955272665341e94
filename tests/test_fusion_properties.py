"""Fusion on random graphs: never a cycle, nothing lost, the same every time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.fusion.coarsen import coarsen, near_misses
from moirai_tf.fusion.merge import Merger
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.graph.graph import Graph, TensorRef
from tests.coarse_graph_check import violations
from tests.graphs import BOTH, GraphBuilder

_DATA_OPS = (
    "AddV2", "BiasAdd", "Cast", "ConcatV2", "Conv2D", "Exp", "Identity", "IdentityN", "MatMul",
    "MaxPool", "Mean", "Mul", "Relu", "Reshape", "Rsqrt", "Shape", "Sigmoid", "Softmax", "Split",
    "SquaredDifference", "Sub", "Tanh",
)  # fmt: skip
_SOURCES = ("Const", "VarHandleOp", "Placeholder")
_BINARY = {"AddV2", "BiasAdd", "ConcatV2", "Conv2D", "MatMul", "Mul", "Reshape", "Sub",
           "SquaredDifference", "IdentityN"}  # fmt: skip
_OUTPUTS = {"IdentityN": 2, "Split": 2}


@st.composite
def graphs(draw: st.DrawFn, most: int = 40) -> Graph:
    """Random directed acyclic graphs of ops that rules and joins know, with colocation."""
    builder = GraphBuilder()
    tensors = [builder.feed("x")]
    for i in range(draw(st.integers(3, most))):
        op = draw(st.sampled_from((*_DATA_OPS, *_DATA_OPS, *_SOURCES)))
        name = f"{op}_{i}"
        if op == "VarHandleOp":
            tensors += builder.variable(name, (8,), reads=draw(st.integers(1, 2)))
            continue
        arity = 0 if op in _SOURCES else 2 if op in _BINARY else 1
        # Mostly recent tensors: chains and diamonds are where fusions happen.
        recent = st.one_of(st.sampled_from(tensors[-4:]), st.sampled_from(tensors))
        inputs = [draw(recent) for _ in range(arity)]
        controls = [draw(st.sampled_from(tensors))] if draw(st.integers(0, 9)) == 0 else []
        types = draw(st.sampled_from((BOTH, BOTH, BOTH, ("CPU",))))
        outputs = _OUTPUTS.get(op, 1)
        out = builder.op(op, name, *inputs, outputs=outputs, controls=controls, device_types=types)
        tensors += [TensorRef(out.producer, port) for port in range(outputs)]
    for k in range(draw(st.integers(0, 3))):
        members = draw(st.lists(st.sampled_from(tensors), min_size=2, max_size=3, unique=True))
        if len({m.producer for m in members}) > 1 and not _any_fed(builder, members):
            builder.colocate(*members, reason=f"group {k}")
    for k, tensor in enumerate(draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3))):
        builder.fetch(f"y_{k}", tensor)
    return builder.build()


def _any_fed(builder: GraphBuilder, tensors: list[TensorRef]) -> bool:
    graph = builder.build()
    return any(graph.operators[t.producer].op == "Placeholder" for t in tensors)


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_every_invariant_holds(graph: Graph) -> None:
    coarse, expansion = coarsen(graph)
    assert violations(coarse, expansion) == ()
    assert len(coarse) <= len(graph)


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_every_invariant_holds_without_coarsening(graph: Graph) -> None:
    coarse, expansion = coarsen(graph, FuseOptions(coarsen=False))
    assert violations(coarse, expansion) == ()
    assert len(coarse) == len(graph)


@settings(max_examples=50, deadline=None)
@given(graphs(), st.randoms())
def test_expansion_covers_every_operator(graph: Graph, random: object) -> None:
    coarse, expansion = coarsen(graph)
    placement = {f.name: random.choice("abc") for f in coarse.operators}  # type: ignore[attr-defined]
    fine = expansion.expand(placement)
    assert set(fine) == {operator.name for operator in graph.operators}
    for fused in coarse.operators:
        assert {fine[graph.operators[m].name] for m in fused.members} == {placement[fused.name]}


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_twice_is_the_same(graph: Graph) -> None:
    assert coarsen(graph) == coarsen(graph)
    assert near_misses(graph) == near_misses(graph)


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_near_misses_are_apart(graph: Graph) -> None:
    _, expansion = coarsen(graph)
    for miss in near_misses(graph):
        assert len({expansion.owner[m] for m in miss.members}) > 1
        assert miss.reason


@settings(max_examples=150, deadline=None)
@given(graphs(most=25), st.data())
def test_merger_refuses_exactly_the_merges_that_make_a_cycle(
    graph: Graph, data: st.DataObject
) -> None:
    merger = Merger(graph, [False] * len(graph))
    cluster = list(range(len(graph)))  # What the merger should say, kept the slow way.
    for _ in range(12):
        chosen = data.draw(st.sets(st.sampled_from(range(len(graph))), min_size=2, max_size=3))
        members = sorted(chosen)
        merged = [min(cluster[m] for m in members) if c in {cluster[m] for m in members} else c
                  for c in cluster]  # fmt: skip
        reason = merger.merge(members, "rule")
        assert (reason is None) == _is_acyclic(graph, merged), reason
        cluster = merged if reason is None else cluster
        order = {root: place for place, root in enumerate(merger.clusters())}
        for producer, consumer in graph.edges():
            assert order[merger.find(producer)] <= order[merger.find(consumer)]


def test_merge_of_operators_far_apart_is_given_up() -> None:
    # a leads to a long chain, and another long chain leads to b: no cycle, but much to search.
    builder = GraphBuilder()
    a = ahead = builder.op("MaxPool", "a", builder.feed("x"))
    behind = builder.feed("z")
    for i in range(1100):
        ahead = builder.op("MaxPool", f"ahead_{i}", ahead)
        behind = builder.op("MaxPool", f"behind_{i}", behind)
    graph = builder.build()
    merger = Merger(graph, [False] * len(graph))
    reason = merger.merge([a.producer, behind.producer], "rule")
    assert reason == "more than 1000 operators lie between its members"
    assert merger.find(a.producer) != merger.find(behind.producer)
    assert merger.merge([a.producer, graph.index["behind_200"]], "rule") is None


def _is_acyclic(graph: Graph, cluster: list[int]) -> bool:
    edges = {(cluster[a], cluster[b]) for a, b in graph.edges() if cluster[a] != cluster[b]}
    left = set(cluster)
    while left:
        free = {c for c in left if not any(b == c and a in left for a, b in edges)}
        if not free:
            return False
        left -= free
    return True

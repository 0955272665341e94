"""What joins what, what stays apart, and what the coarse graph then says."""

from __future__ import annotations

import pytest

from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarse import CoarseGraph, FusedOperator
from moirai_tf.fusion.coarsen import coarsen, near_misses
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.graph.graph import Graph, TensorRef
from tests.coarse_graph_check import violations
from tests.graphs import GraphBuilder, branching_network, names


def _coarsened(builder: GraphBuilder, options: FuseOptions | None = None) -> CoarseGraph:
    """The coarse graph, checked."""
    coarse, expansion = coarsen(builder.build(), options)
    assert violations(coarse, expansion) == ()
    return coarse


def _groups(coarse: CoarseGraph) -> list[set[str]]:
    return [names(coarse.fine, fused.members) for fused in coarse.operators]


def _with(coarse: CoarseGraph, member: str) -> FusedOperator:
    """The fused operator that holds an operator."""
    index = coarse.fine.index[member]
    return next(fused for fused in coarse.operators if index in fused.members)


def _together(coarse: CoarseGraph) -> list[set[str]]:
    return [{coarse.operators[k].name for k in group} for group in coarse.colocation]


def _pool(builder: GraphBuilder, name: str, *inputs: TensorRef) -> TensorRef:
    """An operator that neither a rule nor a join takes in."""
    return builder.op("AvgPool", name, *inputs)


def test_network_becomes_one_operator_per_layer() -> None:
    # Two stages of 1 + 2 + 3 + 4 convolutions, a concat and a pool; a feed and a fetch.
    coarse, _ = coarsen(branching_network(300))
    assert len(coarse) == 2 * (10 + 2) + 2
    assert coarse.operators[1].name == "stage_0/branch_0/0/conv"
    assert coarse.operators[1].rule == "eigen/contraction+batch_norm+activation"
    assert len(coarse.operators[1].members) == 20
    # Every layer is read once, but for the two that are fed to four branches.
    assert len(coarse.tensors) == 2 * (10 + 2) + 1
    assert [len(t.consumers) for t in coarse.tensors].count(4) == 2


def test_variables_and_their_arithmetic_join_the_operator_they_feed() -> None:
    b = GraphBuilder()
    pooled = _pool(b, "pool", b.feed("x", (2, 4, 4, 8)))
    b.fetch("y", _pool(b, "last", b.batch_norm("bn", pooled)))
    coarse = _coarsened(b)
    assert len(_with(coarse, "bn/gamma").members) == 4 * 2 + 1 + 7
    assert _with(coarse, "bn/gamma").rule == "eigen/expression"
    assert _with(coarse, "bn/gamma").name == "bn/add_1"
    assert [f.name for f in coarse.operators] == ["x", "pool", "bn/add_1", "last", "y"]


def test_small_constant_of_parallel_readers_stays_alone() -> None:
    b = GraphBuilder()
    axis, x = b.const("axis", 1, "int32"), b.feed("x")
    b.fetch("y", _pool(b, "last", _pool(b, "a", x, axis), b.op("AvgPool", "b", x, axis)))
    coarse = _coarsened(b)
    assert {"axis"} in _groups(coarse)
    assert coarse.colocation == ()


def test_small_constant_joins_the_reader_that_all_others_follow() -> None:
    b = GraphBuilder()
    axis = b.const("axis", 1, "int32")
    first = _pool(b, "first", b.feed("x"), axis)
    b.fetch("y", _pool(b, "second", first, axis))
    assert {"axis", "first"} in _groups(_coarsened(b))


def test_parallel_readers_of_a_weight_share_its_device_but_stay_apart() -> None:
    b = GraphBuilder()
    kernel = b.weight("kernel", 8, 8)
    left = b.op("MatMul", "left", b.feed("a"), kernel)
    right = b.op("MatMul", "right", b.feed("b"), kernel)
    b.fetch("y", _pool(b, "last", left, right))
    coarse = _coarsened(b)
    assert {"kernel", "kernel/read"} in _groups(coarse)
    assert _together(coarse) == [{"kernel/read", "left", "right"}]


def test_tied_embedding_is_colocated_because_merging_would_make_a_cycle() -> None:
    b = GraphBuilder()
    lookup, output = b.variable("table", (100, 8), reads=2)
    axis = b.const("axis", 0, "int32")
    embedded = b.op("GatherV2", "lookup", lookup, b.feed("ids", (2,), "int32"), axis)
    transposed = b.op("Transpose", "transposed", output, b.const("order", [1, 0], "int32"),
                      shape=(8, 100))  # fmt: skip
    hidden = _pool(b, "hidden", embedded)
    b.fetch("y", b.op("MatMul", "logits", hidden, transposed, shape=(2, 100)))
    coarse = _coarsened(b)
    assert _together(coarse) == [{"table", "lookup", "logits"}]
    assert {"transposed", "table/read_1", "logits", "order"} in _groups(coarse)


def test_computed_weight_stays_with_its_readers() -> None:
    b = GraphBuilder()
    half = b.op("Cast", "half", b.weight("kernel", 64, 64), shape=(64, 64), dtype="bfloat16")
    first = _pool(b, "first", b.feed("x"), half)
    b.fetch("y", _pool(b, "last", _pool(b, "between", first), first, half))
    coarse = _coarsened(b)
    assert {"kernel", "kernel/read", "half", "first"} in _groups(coarse)
    assert _together(coarse) == [{"first", "last"}]


def test_generated_mask_may_travel() -> None:
    b = GraphBuilder()
    mask = b.op("Fill", "mask", b.const("shape", [64, 64], "int32"), b.const("one", 1.0),
                shape=(64, 64))  # fmt: skip
    first = _pool(b, "first", b.feed("x"), mask)
    b.fetch("y", _pool(b, "last", _pool(b, "between", first), mask))
    assert _coarsened(b).colocation == ()


def test_identities_join_what_they_pass_on() -> None:
    b = GraphBuilder()
    pooled = _pool(b, "pool", b.feed("x"))
    passed = b.op("Identity", "identity", b.op("StopGradient", "stop", pooled))
    b.fetch("a", passed)
    b.fetch("b", _pool(b, "last", passed))
    assert {"pool", "stop", "identity"} in _groups(_coarsened(b))


def test_identity_with_several_read_outputs_is_no_alias() -> None:
    b = GraphBuilder()
    both = b.op("IdentityN", "both", _pool(b, "a", b.feed("x")), _pool(b, "b", b.feed("z")),
                outputs=2)  # fmt: skip
    b.fetch("first", both)
    b.fetch("second", TensorRef(both.producer, 1))
    coarse = _coarsened(b)
    assert {"both"} in _groups(coarse)
    assert [t.source.port for t in coarse.tensors].count(1) == 1


def test_repeated_computation_may_run_apart() -> None:
    b = GraphBuilder()
    pooled = _pool(b, "pool", b.feed("x"))
    b.fetch("y", _pool(b, "last", b.op("Relu", "left", pooled), b.op("Relu", "right", pooled)))
    groups = _groups(_coarsened(b))
    assert {"left"} in groups
    assert {"right"} in groups


def test_operators_with_other_attributes_are_no_repetition() -> None:
    b = GraphBuilder()
    product = b.op("MatMul", "product", b.feed("x"), b.weight("w", 8, 8))
    left = b.op("Relu", "left", product, attrs={"of": "one kind"})
    right = b.op("Relu", "right", product, attrs={"of": "another kind"})
    b.fetch("y", _pool(b, "last", left, right))
    (miss,) = near_misses(b.build(), FuseOptions(rules=("eigen",)))
    assert miss.reason == "product feeds two consumers: left, right"


def test_fusion_sees_through_repeated_computation() -> None:
    b = GraphBuilder()
    product = b.op("MatMul", "product", b.feed("x"), b.weight("w", 8, 8))
    left, right = b.op("Relu", "left", product), b.op("Relu", "right", product)
    b.fetch("y", _pool(b, "last", left, right))
    fused = _with(_coarsened(b), "right")
    assert fused.rule == "eigen/contraction+activation"
    assert fused.name == "product"


def test_shape_arithmetic_joins_and_moves_no_data() -> None:
    b = GraphBuilder()
    source = _pool(b, "source", b.feed("x"))
    shape = b.op("Shape", "shape", source, shape=(2,), dtype="int32")
    rows = b.op("StridedSlice", "rows", shape, *(b.const(f"s{i}", [i], "int32") for i in range(3)),
                shape=(), dtype="int32")  # fmt: skip
    target = b.op("Pack", "pack", rows, b.const("columns", 4, "int32"), shape=(2,), dtype="int32")
    other = _pool(b, "other", b.feed("z", (4, 4)))
    b.fetch("y", _pool(b, "last", b.op("Reshape", "reshape", other, target)))
    b.fetch("kept", source)
    coarse = _coarsened(b)
    assert {"source", "shape"} in _groups(coarse)
    assert {"s0", "s1", "s2", "rows", "pack", "columns", "reshape", "other"} in _groups(coarse)
    (crossing,) = (t for t in coarse.tensors if t.source.producer == shape.producer)
    assert crossing.nbytes == 8


def test_shape_of_an_input_does_not_pull_the_input_along() -> None:
    b = GraphBuilder()
    shape = b.op("Shape", "shape", b.feed("x"), shape=(2,), dtype="int32")
    b.fetch("y", b.op("Reshape", "reshape", _pool(b, "pool", b.feed("z", (4, 4))), shape))
    assert {"shape"} in _groups(_coarsened(b))


def test_concatenation_joins_the_one_that_alone_reads_it_along_the_same_axis() -> None:
    builder = GraphBuilder()
    parts = [_pool(builder, name, builder.feed(f"x_{name}")) for name in "abcd"]
    axis, other_axis = (builder.const(f"axis_{k}", k, dtype="int32") for k in (1, 0))
    inner = builder.op("ConcatV2", "inner", parts[0], parts[1], axis)
    across = builder.op("ConcatV2", "across", parts[2], parts[3], other_axis)
    builder.fetch("y", builder.op("ConcatV2", "outer", inner, across, axis))
    groups = _groups(_coarsened(builder))
    assert any({"inner", "outer"} <= group for group in groups)
    assert not any({"across", "outer"} <= group for group in groups)


def test_pooling_joins_the_activation_that_it_alone_reads() -> None:
    builder = GraphBuilder()
    alone = builder.op("Relu", "alone", _pool(builder, "a", builder.feed("x")))
    shared = builder.op("Relu", "shared", _pool(builder, "b", builder.feed("y")))
    builder.fetch("other", builder.op("Softmax", "softmax", shared))
    for name, value in (("pool_alone", alone), ("pool_shared", shared)):
        builder.fetch(f"out_{name}", builder.op("MaxPool", name, value))
    groups = _groups(_coarsened(builder))
    assert any({"alone", "pool_alone"} <= group for group in groups)
    assert not any({"shared", "pool_shared"} <= group for group in groups)


def test_element_wise_operators_make_one_expression() -> None:
    b = GraphBuilder()
    x = _pool(b, "pool", b.feed("x"))
    left = b.op("Exp", "exp", b.op("Neg", "neg", x))
    right = b.op("Sqrt", "sqrt", b.op("Reshape", "view", _pool(b, "other", b.feed("z"))))
    b.fetch("y", _pool(b, "last", b.op("Sub", "difference", left, right)))
    coarse = _coarsened(b)
    assert {"neg", "exp", "sqrt", "difference"} in _groups(coarse)
    assert {"other", "view"} in _groups(coarse)
    assert _with(coarse, "neg").rule == "eigen/expression"
    assert _with(coarse, "neg").name == "difference"


def test_expression_ends_at_a_second_reader() -> None:
    b = GraphBuilder()
    neg = b.op("Neg", "neg", _pool(b, "pool", b.feed("x")))
    b.fetch("y", _pool(b, "last", b.op("Exp", "exp", neg), neg))
    groups = _groups(_coarsened(b))
    assert {"neg"} in groups
    assert {"exp"} in groups


def test_feeds_and_fetches_stay_the_clients() -> None:
    b = GraphBuilder()
    b.fetch("y", b.op("Identity", "identity", b.feed("x")))
    assert _groups(_coarsened(b)) == [{"x"}, {"identity"}, {"y"}]


def test_every_output_that_leaves_is_a_tensor_of_its_own() -> None:
    b = GraphBuilder()
    halves = b.op("Split", "split", b.const("axis", 0, "int32"), b.feed("x"), shape=(1, 8),
                  outputs=2)  # fmt: skip
    first = _pool(b, "first", halves)
    second = _pool(b, "second", halves, TensorRef(halves.producer, 1))
    b.fetch("y", _pool(b, "last", first, second))
    coarse = _coarsened(b)
    ports = {t.source.port: t for t in coarse.tensors if t.source.producer == halves.producer}
    assert sorted(ports) == [0, 1]
    assert len(ports[0].consumers) == 2
    assert ports[1].nbytes == 1 * 8 * 4


def test_control_dependencies_are_tensors_without_bytes() -> None:
    b = GraphBuilder()
    written = b.op("Assign", "write", b.feed("x"))
    waiting = b.op("MaxPool", "waiting", b.feed("z"), controls=[written])
    b.op("MaxPool", "reading", written, controls=[written])
    b.fetch("y", waiting)
    coarse = _coarsened(b)
    (control,) = (t for t in coarse.tensors if t.source.port < 0)
    assert control.nbytes == 0
    assert [coarse.operators[k].name for k in control.consumers] == ["waiting"]


def test_colocation_merges_unless_it_makes_a_cycle() -> None:
    b = GraphBuilder()
    first = _pool(b, "first", b.feed("x"))
    between = _pool(b, "between", first)
    last = _pool(b, "last", first, between)
    left = _pool(b, "left", last)
    right = _pool(b, "right", left)
    b.fetch("y", _pool(b, "end", left, right))
    b.colocate(first, last)
    b.colocate(left, right)
    coarse = _coarsened(b)
    assert {"left", "right"} in _groups(coarse)
    assert _with(coarse, "left").rule == "colocation"
    assert _together(coarse) == [{"first", "last"}]


def test_groups_that_share_an_operator_are_one() -> None:
    b = GraphBuilder()
    first = _pool(b, "first", b.feed("x"))
    second, third = b.op("AvgPool", "second", b.feed("z")), b.op("Softmax", "third", b.feed("w"))
    b.fetch("y", _pool(b, "last", first, second, third))
    b.colocate(first, second)
    b.colocate(second, third)
    assert _together(_coarsened(b)) == [{"first", "second", "third"}]


def test_fused_operator_runs_where_all_members_run() -> None:
    b = GraphBuilder()
    b.fetch("y", b.op("Relu", "relu", b.op("MatMul", "product", b.feed("x"), b.weight("w", 8, 8),
                                           device_types=("CPU",))))  # fmt: skip
    assert _with(_coarsened(b), "relu").device_types == ("CPU",)


def _cpu_only_bias() -> Graph:
    b = GraphBuilder()
    product = b.op("MatMul", "product", b.feed("x"), b.weight("w", 8, 8))
    bias = b.weight("bias", 8)
    b.fetch("y", b.op("BiasAdd", "add", product, bias, device_types=("CPU",)))
    return b.build()


def test_fusion_must_not_cost_the_main_work_a_device() -> None:
    coarse, _ = coarsen(_cpu_only_bias())
    assert _with(coarse, "product").device_types == ("CPU", "GPU")
    (miss,) = near_misses(_cpu_only_bias())
    assert miss.reason == "add runs on CPU only and would keep product from GPU"


def test_fusion_without_a_common_device_type_is_refused() -> None:
    b = GraphBuilder()
    product = b.op("MatMul", "product", b.feed("x"), b.feed("w"), device_types=("GPU",))
    b.fetch("y", b.op("Relu", "relu", product, device_types=("CPU",)))
    (miss,) = near_misses(b.build())
    assert miss.reason == "no device type runs all of product (GPU), relu (CPU)"


def test_colocation_without_a_common_device_type_is_an_error() -> None:
    b = GraphBuilder()
    left = b.op("MaxPool", "left", b.feed("x"), device_types=("GPU",))
    right = b.op("MaxPool", "right", left, device_types=("CPU",))
    b.colocate(left, right, reason="loc:@left")
    with pytest.raises(MoiraiError, match=r"left \(GPU\), right \(CPU\)[\s\S]*loc:@left"):
        coarsen(b.build())


def test_rules_of_a_backend_need_its_device_type() -> None:
    b = GraphBuilder()
    x = _pool(b, "pool", b.feed("x"))
    scores = b.op("BatchMatMulV2", "scores", x, b.feed("k"))
    b.fetch("y", b.op("Mul", "scaled", scores, b.const("factor", 0.5)))
    on_cpu, _ = coarsen(b.build(), FuseOptions(rules=("onednn",)), ["CPU", "GPU"])
    on_gpu, _ = coarsen(b.build(), FuseOptions(rules=("onednn",)), ["GPU"])
    assert _with(on_cpu, "scores") == _with(on_cpu, "scaled")
    assert _with(on_gpu, "scores") != _with(on_gpu, "scaled")


def test_without_coarsening_every_operator_stays_and_weights_still_do() -> None:
    b = GraphBuilder()
    b.fetch("y", b.op("MatMul", "product", b.feed("x"), b.weight("kernel", 8, 8)))
    coarse = _coarsened(b, FuseOptions(coarsen=False))
    assert len(coarse) == len(coarse.fine)
    assert _together(coarse) == [{"kernel", "kernel/read", "product"}]


def test_expansion_needs_a_device_for_every_fused_operator() -> None:
    coarse, expansion = coarsen(branching_network(100))
    placement = {fused.name: f"/device:CPU:{k % 2}" for k, fused in enumerate(coarse.operators)}
    fine = expansion.expand(placement)
    assert fine["stage_0/branch_0/0/relu"] == placement["stage_0/branch_0/0/conv"]
    del placement["images"]
    with pytest.raises(MoiraiError, match="the first is 'images'"):
        expansion.expand(placement)

"""What is placed as one runs as one only where the device's own runtime fuses it."""

from __future__ import annotations

from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.graph.graph import TensorRef
from tests.coarse_graph_check import violations
from tests.graphs import GraphBuilder, names

IMAGE = (2, 4, 4, 8)


def _kernels(
    builder: GraphBuilder, device_types: tuple[str, ...] = ("CPU", "GPU")
) -> dict[str, list[set[str]]]:
    """Device type -> names of the operators in each kernel of several."""
    graph = builder.build()
    coarse, expansion = coarsen(graph, device_types=device_types)
    assert violations(coarse, expansion) == ()
    found: dict[str, list[set[str]]] = {"CPU": [], "GPU": []}
    for fused in coarse.operators:
        for kernel in fused.kernels:
            found[kernel.device_type].append(names(graph, kernel.members))
    return found


def _layer(b: GraphBuilder, activation: str) -> TensorRef:
    conv = b.conv("c", b.feed("x", IMAGE))
    bias = b.op("BiasAdd", "bias", conv, b.weight("b", 8), shape=IMAGE)
    return b.op(activation, "activation", bias, shape=IMAGE)


def test_relu_is_part_of_a_convolution_everywhere() -> None:
    b = GraphBuilder()
    b.fetch("y", _layer(b, "Relu"))
    layer = {"c/conv", "bias", "activation"}
    assert _kernels(b) == {"CPU": [layer], "GPU": [layer]}
    assert _kernels(b, ("CPU",)) == {"CPU": [layer], "GPU": []}


def test_other_activations_are_placed_together_and_run_apart_on_a_gpu() -> None:
    b = GraphBuilder()
    b.fetch("y", _layer(b, "Relu6"))
    assert _kernels(b) == {"CPU": [{"c/conv", "bias", "activation"}], "GPU": []}
    coarse, _ = coarsen(b.build())
    assert [fused.name for fused in coarse.operators] == ["x", "c/conv", "y"]


def test_batch_norm_in_pieces_is_no_kernel_of_a_gpu() -> None:
    b = GraphBuilder()
    b.fetch("y", b.conv_block("block", b.feed("x", IMAGE), IMAGE))
    kernels = _kernels(b)
    assert kernels["GPU"] == []
    assert kernels["CPU"] == [{"block/conv", "block/bn/mul_1", "block/bn/add_1", "block/relu"}]


def test_only_chains_of_one_operand_are_one_kernel_of_a_cpu() -> None:
    # exp(-pool) is one kernel; the sum with two operands is in the expression but not in it.
    b = GraphBuilder()
    pooled = b.op("AvgPool", "pool", b.feed("x"))
    exp = b.op("Exp", "exp", b.op("Neg", "neg", pooled))
    total = b.op("AddV2", "sum", exp, b.feed("z"))
    b.fetch("y", b.op("AvgPool", "last", total))
    coarse, _ = coarsen(b.build())
    assert {"neg", "exp", "sum"} in [names(coarse.fine, f.members) for f in coarse.operators]
    assert _kernels(b) == {"CPU": [{"neg", "exp"}], "GPU": []}


def test_nothing_is_one_kernel_without_coarsening() -> None:
    b = GraphBuilder()
    b.fetch("y", _layer(b, "Relu"))
    coarse, _ = coarsen(b.build(), FuseOptions(coarsen=False))
    assert not any(fused.kernels for fused in coarse.operators)

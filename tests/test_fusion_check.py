"""The checker names every fault that is put into a coarse graph on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from moirai_tf.fusion.coarse import CoarseGraph, CoarseTensor, FusedOperator, Kernel
from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.graph.graph import TensorRef
from tests.coarse_graph_check import violations
from tests.graphs import GraphBuilder


def _coarse() -> CoarseGraph:
    """x -> layer (variable, product) -> pool -> late -> y, and late waits for an assignment."""
    b = GraphBuilder()
    product = b.op("MatMul", "layer", b.feed("x"), b.weight("kernel", 8, 8))
    pool = b.op("MaxPool", "pool", product)
    written = b.op("Assign", "written", pool)
    late = b.op("MaxPool", "late", pool, controls=[written])
    twin = b.op("MaxPool", "twin", b.op("MaxPool", "between", late), late, device_types=("CPU",))
    b.colocate(late, twin, reason="loc:@late")
    b.fetch("y", twin)
    coarse, _ = coarsen(b.build())
    assert [f.name for f in coarse.operators] == [
        "x", "layer", "pool", "written", "late", "between", "twin", "y",
    ]  # fmt: skip
    return coarse


def _with_operator(coarse: CoarseGraph, which: str, **changes: object) -> CoarseGraph:
    operators = tuple(
        replace(f, **changes) if f.name == which else f  # type: ignore[arg-type]
        for f in coarse.operators
    )
    return replace(coarse, operators=operators)


def _with_tensor(coarse: CoarseGraph, source: str, **changes: object) -> CoarseGraph:
    index = coarse.fine.index[source]
    tensors = tuple(
        replace(t, **changes) if t.source.producer == index else t  # type: ignore[arg-type]
        for t in coarse.tensors
    )
    return replace(coarse, tensors=tensors)


def _merged(coarse: CoarseGraph, *names: str) -> CoarseGraph:
    """Merges fused operators into the first one's place, whatever that breaks."""
    first, *others = (next(f for f in coarse.operators if f.name == n) for n in names)
    members = tuple(sorted(m for f in (first, *others) for m in f.members))
    kept = tuple(f for f in coarse.operators if f not in others)
    merged = FusedOperator(first.name, members, "by hand", first.device_types)
    return replace(coarse, operators=tuple(merged if f is first else f for f in kept))


def _swapped(coarse: CoarseGraph) -> CoarseGraph:
    x, layer, pool, *rest = coarse.operators
    return replace(coarse, operators=(x, pool, layer, *rest))


def _added(coarse: CoarseGraph, tensor: CoarseTensor) -> CoarseGraph:
    return replace(coarse, tensors=(*coarse.tensors, tensor))


def _split_variable(coarse: CoarseGraph) -> CoarseGraph:
    """The variable in one fused operator, its reader in the next, and a tensor between them."""
    x, layer, *rest = coarse.operators
    handle, read, product = layer.members
    operators = (
        x,
        FusedOperator("kernel", (handle, read), "by hand", layer.device_types),
        FusedOperator("layer", (product,), "", layer.device_types),
        *rest,
    )
    moved = tuple(
        replace(t, producer=t.producer + 1 if t.producer else 0,
                consumers=tuple(c + 1 for c in t.consumers))
        for t in coarse.tensors
    )  # fmt: skip
    weight = CoarseTensor(TensorRef(read, 0), 1, (2,), 256)
    colocation = tuple(tuple(k + 1 for k in group) for group in coarse.colocation)
    return replace(coarse, operators=operators, tensors=(*moved, weight), colocation=colocation)


FAULTS: list[tuple[str, Callable[[CoarseGraph], CoarseGraph]]] = [
    ("layer: members [3, 2, 4] are not ascending",
     lambda c: _with_operator(c, "layer", members=(3, 2, 4))),
    ("pool: member 99 is no operator", lambda c: _with_operator(c, "pool", members=(99,))),
    ("kernel is in 0 fused operators", lambda c: _with_operator(c, "layer", members=(3, 4))),
    ("layer is in 2 fused operators: layer, pool",
     lambda c: _with_operator(c, "pool", members=(3, 4))),
    ("pool: two fused operators have this name", lambda c: _with_operator(c, "late", name="pool")),
    ("nobody: none of its members has its name",
     lambda c: _with_operator(c, "pool", name="nobody")),
    ("layer: 3 members, made by 'no rule'", lambda c: _with_operator(c, "layer", rule="")),
    ("pool: 1 members, made by 'eigen'", lambda c: _with_operator(c, "pool", rule="eigen")),
    ("x: a feed or fetch of the client is fused", lambda c: _merged(c, "x", "layer")),
    ("device types ['TPU'], but its members share ['CPU', 'GPU']",
     lambda c: _with_operator(c, "pool", device_types=("TPU",))),
    ("pool: a kernel of TPU, where it cannot run",
     lambda c: _with_operator(c, "pool", kernels=(Kernel("TPU", (4, 5)),))),
    ("pool: a kernel of [4, 5], not all of them members",
     lambda c: _with_operator(c, "pool", kernels=(Kernel("CPU", (4, 5)),))),
    ("layer: member 3 in two kernels of CPU",
     lambda c: _with_operator(c, "layer", kernels=(Kernel("CPU", (2, 3)), Kernel("CPU", (3, 4))))),
    ("not in topological order: pool in pool depends on layer in layer", _swapped),
    ("not in topological order: late in late depends on pool in between",
     lambda c: _merged(c, "between", "pool")),
    ("pool:0: no tensor leads to all of its readers written, late",
     lambda c: _with_tensor(c, "pool", consumers=(3,))),
    ("x:0: two tensors have this source", lambda c: _added(c, c.tensors[0])),
    ("pool:0: its producer is not the fused operator that holds its source",
     lambda c: _with_tensor(c, "pool", producer=1)),
    ("pool:0: consumers [4, 3] are not ascending",
     lambda c: _with_tensor(c, "pool", consumers=(4, 3))),
    ("pool:0: its producer is among its consumers",
     lambda c: _with_tensor(c, "pool", consumers=(2, 3, 4))),
    ("^written: a control dependency of 8 bytes", lambda c: _with_tensor(c, "written", nbytes=8)),
    ("pool:0: a consumer does not read it",
     lambda c: _with_tensor(c, "pool", consumers=(3, 4, 7))),
    ("layer:0: 1 bytes, not those of the fine tensor",
     lambda c: _with_tensor(c, "layer", nbytes=1)),
    ("late must wait for written, but nothing says so",
     lambda c: replace(c, tensors=tuple(t for t in c.tensors if t.source.port >= 0))),
    ("^written: y need not wait for it", lambda c: _with_tensor(c, "written", consumers=(4, 7))),
    ("not kept together (loc:@late): late, twin", lambda c: replace(c, colocation=())),
    ("a fused operator is in two colocation groups",
     lambda c: replace(c, colocation=((4, 6), (1, 4)))),
    ("no device type runs all of a colocation group: late, twin",
     lambda c: _with_operator(c, "late", device_types=("GPU",))),
    ("kernel/read:0: may be sent to layer", _split_variable),
]  # fmt: skip


def test_a_good_coarse_graph_has_no_fault() -> None:
    assert violations(_coarse()) == ()


@pytest.mark.parametrize(("sentence", "spoil"), FAULTS, ids=[f[0] for f in FAULTS])
def test_fault_is_named(sentence: str, spoil: Callable[[CoarseGraph], CoarseGraph]) -> None:
    assert any(sentence in found for found in violations(spoil(_coarse())))


@pytest.mark.parametrize("field", ["owner", "names", "fine_names"])
def test_expansion_of_another_graph_is_named(field: str) -> None:
    coarse = _coarse()
    _, expansion = coarsen(coarse.fine)
    assert violations(coarse, expansion) == ()
    wrong = replace(expansion, **{field: list(reversed(getattr(expansion, field)))})
    assert len(violations(coarse, wrong)) == 1

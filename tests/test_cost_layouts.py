"""Which placements show every operator on a device: whole where it fits, else piece by piece."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moirai_tf.cluster import Cluster, Device, Link
from moirai_tf.cost.layouts import alone, layouts
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.graph.graph import CLIENT_OPS
from tests.graphs import GraphBuilder

A, B, C = (f"/device:CPU:{i}" for i in range(3))
LAYER_BYTES = 4 * 100
"""A layer of the chain holds its own output of 100 floats."""


def chain(layers: int):
    builder = GraphBuilder()
    tensor = builder.feed("x", (100,))
    for number in range(layers):
        tensor = builder.op("Cumsum", f"sum{number}", tensor, shape=(100,))
    builder.fetch("y", tensor)
    return builder.build()


def cluster(*memory: int | None) -> Cluster:
    names = (A, B, C)[: len(memory)]
    return Cluster(
        "small",
        tuple(Device(n, "CPU", memory_bytes=m) for n, m in zip(names, memory, strict=True)),
        tuple(Link(a, b, 1, 10**9) for a in names for b in names if a != b),
    )


def resident(graph, placement, device):
    return sum(o.resident_bytes for o in graph.operators if placement[o.name] == device)


def test_whole_where_it_fits():
    graph = chain(3)
    (layout,) = layouts(coarsen(graph)[0], cluster(None, 10**6), B)
    assert layout.whole
    for operator in graph.operators:
        where = A if operator.op in CLIENT_OPS else B
        assert layout.placement[operator.name] == where


def test_in_pieces_where_it_does_not():
    # Five layers of 400 bytes; B holds four, and is given two at a time.
    graph = chain(5)
    found = layouts(coarsen(graph)[0], cluster(None, 4 * LAYER_BYTES), B)
    shown = [[o.name for o in graph.operators if layout.placement[o.name] == B] for layout in found]
    assert shown == [["sum0", "sum1"], ["sum2", "sum3"], ["sum4"]]
    assert not any(layout.whole for layout in found)


def test_weights_are_where_they_are_read():
    # Weights come first in the order of the graph, their readers much later.
    builder = GraphBuilder()
    weights = [
        builder.op("Const", f"weight{i}", shape=(10, 10), weight_bytes=400) for i in range(4)
    ]
    tensor = builder.feed("x", (10, 10))
    for i, weight in enumerate(weights):
        tensor = builder.op("MatMul", f"product{i}", tensor, weight, shape=(10, 10))
    builder.fetch("y", tensor)
    graph = builder.build()
    for layout in layouts(coarsen(graph)[0], cluster(None, 3000), B):
        for i in range(4):
            assert layout.placement[f"weight{i}"] == layout.placement[f"product{i}"]


def test_what_is_larger_than_the_device_stays_away_from_it():
    # Layers of 400, 1200 and 400 bytes; B has 500.
    builder = GraphBuilder()
    tensor = builder.feed("x", (100,))
    for number, size in enumerate((100, 300, 100)):
        tensor = builder.op("Cumsum", f"sum{number}", tensor, shape=(size,))
    builder.fetch("y", tensor)
    graph = builder.build()
    found = layouts(coarsen(graph)[0], cluster(None, 500), B)
    shown = [[o.name for o in graph.operators if layout.placement[o.name] == B] for layout in found]
    assert shown == [["sum0"], ["sum2"]]


def test_nothing_fits_the_device():
    with pytest.raises(MoiraiError, match=r"more than the 399 bytes of '/device:CPU:1'"):
        layouts(coarsen(chain(2))[0], cluster(None, LAYER_BYTES - 1), B)


def test_no_room_for_the_rest():
    with pytest.raises(MoiraiError, match="no room for the model beside the piece"):
        layouts(coarsen(chain(6))[0], cluster(2 * LAYER_BYTES, 3 * LAYER_BYTES), B)


def test_what_a_device_cannot_run_stays_with_the_client():
    graph = chain(2)
    gpu = Device("/device:GPU:0", "GPU")
    links = (Link(A, gpu.name, 1, 10**9), Link(gpu.name, A, 1, 10**9))
    mixed = Cluster("mixed", (Device(A, "CPU"), gpu), links)
    able = [
        replace(o, device_types=("CPU", "GPU") if o.name == "sum1" else ("CPU",))
        for o in graph.operators
    ]
    placement = alone(replace(graph, operators=tuple(able)), mixed, gpu.name)
    assert [name for name, device in placement.items() if device == gpu.name] == ["sum1"]


@given(layers=st.integers(1, 12), room=st.integers(1, 5), other=st.integers(0, 12))
def test_pieces_cover_all_and_keep_every_limit(layers, room, other):
    graph = chain(layers)
    small = cluster(None, room * LAYER_BYTES, other * LAYER_BYTES)
    found = layouts(coarsen(graph)[0], small, B)
    seen = {name for layout in found for name, device in layout.placement.items() if device == B}
    assert seen == {o.name for o in graph.operators if o.op not in CLIENT_OPS}
    for layout in found:
        assert layout.placement.keys() == graph.index.keys()
        assert resident(graph, layout.placement, B) <= room * LAYER_BYTES
        assert resident(graph, layout.placement, C) <= other * LAYER_BYTES

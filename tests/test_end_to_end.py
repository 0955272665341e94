"""Whole pipelines on real models: same outputs, planned placement, planned transfers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf

import moirai_tf
from moirai_tf import MoiraiItem
from tests.cost_cases import saved
from tests.scatter import logical_cluster, scatter_pipeline
from tests.zoo import LARGE, SMALL, ZOO

ZooDir = Callable[[str], Path]

QUICK = ("lstm", "cond", "lookup_table", "two_signatures", "called_twice", "tf1", "bert")
"""What every run of the tests proves; `make test-slow` proves the whole zoo."""

SLOW = tuple(name for name in (*SMALL, *LARGE) if ZOO[name].servable)


def scattered(name: str, model: Path, output: Path, devices: int) -> MoiraiItem:
    """A model of the zoo, placed at random and verified by the pipeline."""
    pipeline = scatter_pipeline(ZOO[name], output, devices)
    return pipeline.run(MoiraiItem(model, logical_cluster(devices)))


def check(item: MoiraiItem) -> None:
    """What must hold of every placed model."""
    report, plan = item.report, item.plan
    assert report is not None
    assert plan is not None
    assert report.ok, str(report)
    as_written = [parity for parity in report.outputs if "Grappler off" in parity.run]
    assert as_written
    assert all(parity.bit_equal for parity in as_written), str(report)
    assert len(set(plan.placement.values())) > 1


@pytest.mark.parametrize("name", QUICK)
def test_a_scattered_model_computes_the_same_where_it_was_put(
    name: str, zoo_dir: ZooDir, tmp_path: Path
) -> None:
    check(scattered(name, zoo_dir(name), tmp_path / "out", 2))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("name", SLOW)
def test_every_model_of_the_zoo_at_two_and_four_devices(
    name: str, devices: int, zoo_dir: ZooDir, tmp_path: Path
) -> None:
    check(scattered(name, zoo_dir(name), tmp_path / "out", devices))


def test_optimize_places_a_branching_model(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """Two equal devices and free links: the branches of the ensemble share them."""
    summary = moirai_tf.optimize(
        zoo_dir("ensemble"), tmp_path / "out", logical_cluster(2), batch_size=64, time_limit_s=10
    )
    assert summary.report is not None
    assert summary.report.ok
    assert summary.placed is not None
    assert summary.placed.lower_bound_ns <= summary.placed.latency_ns
    assert summary.placed.single_device_ns is not None
    assert summary.placed.latency_ns <= summary.placed.single_device_ns
    assert "fused operators" in str(summary)


def test_optimizing_twice_gives_the_same_plan(zoo_dir: ZooDir, tmp_path: Path) -> None:
    """The second time the input is the placed model: it is taken back to its original first."""
    options = {"source": "analytical", "solver": "heft", "verify": False}
    moirai_tf.optimize(zoo_dir("called_twice"), tmp_path / "one", logical_cluster(2), **options)
    moirai_tf.optimize(tmp_path / "one", tmp_path / "two", logical_cluster(2), **options)
    for file in ("saved_model.pb", "fingerprint.pb", "assets.extra/moirai_plan.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_one_device_is_the_answer_where_links_are_slow(zoo_dir: ZooDir, tmp_path: Path) -> None:
    cluster = moirai_tf.Cluster(
        "far apart",
        logical_cluster(2).devices,
        tuple(
            moirai_tf.Link(a, b, 10**9, 10**6)
            for a, b in (("/device:CPU:0", "/device:CPU:1"), ("/device:CPU:1", "/device:CPU:0"))
        ),
    )
    summary = moirai_tf.optimize(
        zoo_dir("mlp"), tmp_path / "out", cluster, source="analytical", verify=False
    )
    assert summary.used == ("/device:CPU:0",)
    assert summary.transfers == 0
    assert str(summary).startswith("one device is best: CPU:0, because no placement was found that")


@pytest.mark.parametrize("kind", ["feeds and fetches", "also a constant result", "other client"])
def test_one_device_beside_the_client_is_said_as_the_table_shows_it(
    kind: str, tmp_path: Path
) -> None:
    """x is fed and y fetched on the client; all work is pinned to the other device."""

    @tf.function(input_signature=[tf.TensorSpec([64, 64], tf.float32, "x")])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        more = {"z": tf.ones([2])} if kind == "also a constant result" else {}
        return {"y": tf.matmul(x, x), **more}

    client, other = ("/device:CPU:0", "/device:CPU:1")
    cluster = logical_cluster(2)
    if kind == "other client":
        client, other = other, client
        cluster = replace(cluster, client=client)
    summary = moirai_tf.optimize(
        saved(call, tmp_path / "m").path, tmp_path / "out", cluster, source="analytical",
        pin=(f"MatMul={other}",), verify=False,
    )  # fmt: skip
    assert summary.used == (other,)
    count = summary.placed.devices[client].operators
    assert count >= 2
    lines = str(summary).splitlines()
    assert lines[0].startswith(f"one device is best: {other.removeprefix('/device:')}, because ")
    (row,) = (line for line in lines if line.startswith(client.removeprefix("/device:")))
    assert row.split()[1:3] == [str(count), "0.000"]


def test_pins_and_forbidden_devices_hold(zoo_dir: ZooDir, tmp_path: Path) -> None:
    moirai_tf.optimize(
        zoo_dir("mlp"),
        tmp_path / "out",
        logical_cluster(3),
        source="analytical",
        solver="heft",
        pin=("MatMul=/device:CPU:1",),
        forbid=("/device:CPU:2",),
        verify=False,
    )
    placement = moirai_tf.read_plan(tmp_path / "out").placement
    assert {d for name, d in placement.items() if name.endswith("MatMul")} == {"/device:CPU:1"}
    assert "/device:CPU:2" not in placement.values()

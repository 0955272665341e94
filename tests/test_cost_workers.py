"""Profiles of real workers: every device its own times, links, the step, pieces and failures."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from moirai_tf.bench.local_cluster import local_cluster
from moirai_tf.cluster import read_cluster
from moirai_tf.cost.device_times import measure_devices
from moirai_tf.cost.inputs import chosen_inputs
from moirai_tf.cost.options import ProfileOptions
from moirai_tf.cost.profile import profile
from moirai_tf.cost.step_stats import KernelNames, device_steps, shared_ns
from moirai_tf.cost.steps import measured_slowdown
from moirai_tf.cost.table import StepCost
from moirai_tf.cost.table_files import read_table, table_text, write_table
from moirai_tf.cost.xplane import UNKNOWN
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.graph.prune import prune
from moirai_tf.runtime.identity import worker_facts
from moirai_tf.runtime.session import open_session
from tests.cost_cases import imported, saved, spec

QUICK = ProfileOptions(repeats=3, warmup=1)
WIDTH = 512


@pytest.fixture(scope="module")
def workers():
    with local_cluster([1.0, 0.5]) as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small product, a large one, and a last small one."""
    rng = np.random.default_rng(0)
    widths = (WIDTH, WIDTH, 4 * WIDTH, 8)
    weights = [
        tf.Variable(rng.normal(0, 0.05, pair).astype(np.float32))
        for pair in itertools.pairwise(widths)
    ]

    @tf.function(input_signature=[spec(None, WIDTH)])
    def call(x):
        for weight in weights:
            x = tf.nn.relu(tf.matmul(x, weight))
        return {"y": x}

    return saved(call, tmp_path_factory.mktemp("workers") / "m", *weights)


@pytest.fixture(scope="module")
def graph(model):
    return prune(imported(model, batch_size=32))


@pytest.fixture(scope="module")
def table(model, graph, workers):
    return profile(model, coarsen(graph)[0], workers.cluster, QUICK)


def test_every_device_is_measured_by_itself(table, graph, workers):
    assert [p.source for p in table.devices] == ["measure", "measure"]
    large, small = (
        next(o.name for o in graph.operators if o.op == "MatMul" and o.outputs[0].shape[1] == width)
        for width in (4 * WIDTH, 8)
    )
    for column in range(2):
        assert table.operators[large].time_ns[column] > table.operators[small].time_ns[column]
    for found in table.devices:
        assert found.measurement.attributed_ns > 0
        assert found.measurement.unknown_ns < found.measurement.attributed_ns
        assert found.measurement.pieces == 1
        # Weights of 512 x 512 + 512 x 2048 + 2048 x 8 floats were allocated, and not twice.
        weights = 4 * (512 * 512 + 512 * 2048 + 2048 * 8)
        assert weights < found.measurement.peak_bytes < 1.5 * weights


def test_times_of_a_device_add_up_to_its_step(table):
    for column, found in enumerate(table.devices):
        total = sum(cost.time_ns[column] or 0 for cost in table.operators.values())
        parts = total + found.measurement.fixed_ns + found.measurement.moved_ns
        if found.measurement.scale > 0.5:  # the least that is believed
            assert parts == pytest.approx(found.measurement.latency_ns, rel=0.01)


def test_links_of_every_pair_and_the_cost_of_a_step(table, workers):
    names = [device.name for device in workers.cluster.devices]
    pairs = {(known.link.source, known.link.target) for known in table.links}
    assert pairs == set(itertools.permutations(names, 2))
    assert table.step.client_ns > 0
    assert list(table.step.device_ns) == names[1:]
    assert list(table.handling) == list(table.slowdown) == names
    assert all(1 <= factor < 10 for factor in table.slowdown.values())


def test_the_table_knows_the_machines_and_survives_its_file(table, tmp_path):
    for found in table.devices:
        assert found.machine["cores"].isdigit()
        assert "kB" in found.machine["memory"]
    write_table(table, tmp_path / "costs.json")
    assert read_table(tmp_path / "costs.json") == table


def test_its_text_names_every_device_and_link(table, workers):
    text = table_text(table)
    for device in workers.cluster.devices:
        assert f"{device.name}  measured" in text
    assert text.count(" -> ") == len(table.links)


@pytest.fixture
def timed(model, graph, workers, table):
    """Devices timed, the second in pieces; Sessions that stay open."""
    first, second = workers.cluster.devices
    small = replace(workers.cluster, devices=(first, replace(second, memory_bytes=5_000_000)))
    with ExitStack() as sessions:
        yield (
            measure_devices(
                model, coarsen(graph)[0], small, [first.name, second.name],
                chosen_inputs(graph, "", 0), StepCost(), table.links, sessions, repeats=3, warmup=1,
            ),
            sessions,
        )  # fmt: skip


def test_the_client_runs_the_whole_model_again_in_the_same_session(timed, workers):
    found, sessions = timed
    client, other = (device.name for device in workers.cluster.devices)
    assert list(found) == [other, client]  # pieces while nothing else takes their room
    assert found[other].step is None
    (y,) = found[client].step()
    assert y.shape == (32, 8)
    sessions.close()
    with pytest.raises(RuntimeError, match="closed Session"):
        found[client].step()


def test_a_step_that_is_there_already_is_timed_beside_the_others(timed, model, graph, workers):
    found, _ = timed
    client, other = (device.name for device in workers.cluster.devices)
    runs = []

    def counted():
        runs.append(0)
        return found[client].step()

    slowdown = measured_slowdown(
        model, coarsen(graph)[0], workers.cluster, chosen_inputs(graph, "", 0), {client: counted},
        repeats=3,
    )  # fmt: skip
    # Two steps to warm up, three alone, three and more while the other computes.
    assert len(runs) >= 8
    assert set(slowdown) == {client, other}


def test_a_model_that_does_not_fit_is_timed_in_pieces(model, graph, workers):
    # The largest weights are 4 MB; a device with 5 MB cannot hold all three at once.
    first, second = workers.cluster.devices
    small = replace(workers.cluster, devices=(first, replace(second, memory_bytes=5_000_000)))
    table = profile(model, coarsen(graph)[0], small, QUICK)
    assert table.devices[1].measurement.pieces > 1
    assert table.slowdown == {}
    for operator in graph.operators:
        if operator.op == "MatMul":
            assert table.operators[operator.name].time_ns[1] > 0


def test_statistics_belong_to_the_device_that_ran_the_kernel(workers):
    first, second = (device.name for device in workers.cluster.devices)
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    with open_session(workers.cluster, config=config) as opened:
        x = tf.compat.v1.placeholder(tf.float32, [64, 64])
        with tf.device(second):
            there = tf.matmul(x, x, name="there")
        with tf.device(first):
            here = tf.reduce_sum(there, name="here")
        _, metadata = opened.run(here, {x: np.ones([64, 64], np.float32)}, trace=True)
    numbers = {"there": 0, "here": 1}
    steps = device_steps(metadata, numbers.get)
    assert steps[second].kernel_ns.keys() - {UNKNOWN} == {0}
    assert steps[first].kernel_ns.keys() - {UNKNOWN} == {1}
    assert steps[second].kernels[0] == 1


def test_kernels_that_overlap_share_the_device():
    # a runs 0..10, b 4..8, c 20..21: from 4 to 8 the two have half each.
    spans = [(0, 10, 0), (4, 8, 1), (20, 21, 2), (5, 5, 3)]
    assert shared_ns(spans) == [8.0, 2.0, 1.0, 0.0]


def test_facts_come_from_the_worker_itself(workers):
    facts = worker_facts(workers.cluster)
    for device, core in zip(workers.cluster.devices, workers.cores, strict=True):
        assert facts[device.name]["cores"] == str(core)


def test_names_of_transfers_belong_to_no_operator(graph):
    # TensorFlow calls a receiving node after the one that it receives from.
    owner = KernelNames(graph).owner
    product = next(o.name for o in graph.operators if o.op == "MatMul")
    assert owner(f"{product}/_12") == graph.index[product]  # so they are told apart by their type


def test_a_dying_worker_is_named(model, graph):
    with local_cluster([1.0, 1.0]) as doomed:
        doomed.kill(1)
        with pytest.raises(MoiraiError, match="worker /job:worker/replica:0/task:1 at localhost"):
            profile(model, coarsen(graph)[0], doomed.cluster, QUICK)


def test_analytical_costs_need_no_worker(model, graph):
    cluster = Path(__file__).parents[1] / "configs" / "two_servers_two_gpus.yaml"
    table = profile(
        model, coarsen(graph)[0], read_cluster(cluster), replace(QUICK, source="analytical")
    )
    assert {p.source for p in table.devices} == {"analytical"}
    assert table.links == ()

"""The whole way to a cost table: which source for which device, speeds, files, options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from moirai_tf.cluster import read_cluster
from moirai_tf.cost.coarse_problem import build_problem
from moirai_tf.cost.options import ProfileOptions
from moirai_tf.cost.profile import profile
from moirai_tf.cost.table_files import write_table
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarsen import coarsen
from moirai_tf.placement.validation import violations
from tests.cost_cases import imported, saved, spec

CONFIGS = Path(__file__).parents[1] / "configs"
QUICK = ProfileOptions(repeats=2, warmup=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    weights = tf.Variable(tf.random.normal([64, 64]))

    @tf.function(input_signature=[spec(None, 64)])
    def call(x):
        return {"y": tf.nn.relu(tf.matmul(x, weights)), "text": tf.as_string(tf.reduce_sum(x))}

    return saved(call, tmp_path_factory.mktemp("profile") / "m", weights)


@pytest.fixture(scope="module")
def graph(model):
    return imported(model, batch_size=4)


def test_equal_hardware_is_measured_once_and_takes_its_declared_speed(model, graph):
    table = profile(model, coarsen(graph)[0], read_cluster(CONFIGS / "four_local_cpus.yaml"), QUICK)
    assert [p.source for p in table.devices] == ["measure"] * 4
    assert len({p.measurement for p in table.devices}) == 1
    for cost in table.operators.values():
        time = cost.time_ns[0]
        assert cost.time_ns == (time, round(time / 0.8), 2 * time, 4 * time)
        assert cost.traffic_ns == (0, 0, 0, 0)
    assert table.inputs == {"x": "float32[4,64]"}
    assert table.versions["tensorflow"] == tf.__version__


def test_auto_measures_here_and_computes_elsewhere(model, graph):
    cluster = read_cluster(CONFIGS / "cpu_gpu.yaml")
    table = profile(model, coarsen(graph)[0], cluster, QUICK)
    assert [p.source for p in table.devices] == ["measure", "analytical"]
    assert table.devices[1].measurement is None
    coarse, _ = coarsen(graph)
    problem = build_problem(coarse, cluster, table)
    assert violations(problem) == []
    text = next(o for o in problem.operators if "AsString" in o.name)
    assert text.compute_ns[0] is not None
    assert text.compute_ns[1] is None


def test_analytical_runs_nothing(model, graph):
    cluster = read_cluster(CONFIGS / "four_gpus_one_server.yaml")
    elsewhere = replace(model, path=Path("no/such/directory"))
    table = profile(elsewhere, coarsen(graph)[0], cluster, replace(QUICK, source="analytical"))
    assert {p.source for p in table.devices} == {"analytical"}
    again = profile(elsewhere, coarsen(graph)[0], cluster, replace(QUICK, source="analytical"))
    assert again == table


def test_slower_gpus_cost_more(model, graph):
    cluster = read_cluster(CONFIGS / "four_gpus_one_server.yaml")
    table = profile(model, coarsen(graph)[0], cluster, replace(QUICK, source="analytical"))
    product = next(o.name for o in graph.operators if o.op == "MatMul")
    _, v100, p100, t4, p4 = table.operators[product].time_ns
    assert v100 < p100 < p4
    assert v100 < t4 < p4


def test_declared_speed_scales_computed_costs(model, graph):
    cluster = read_cluster(CONFIGS / "cpu_gpu.yaml")
    slow = replace(cluster, devices=tuple(replace(device, speed=0.5) for device in cluster.devices))
    options = replace(QUICK, source="analytical")
    normal, halved = (profile(model, coarsen(graph)[0], c, options) for c in (cluster, slow))
    for name, cost in normal.operators.items():
        assert halved.operators[name].time_ns == tuple(
            None if time is None else 2 * time for time in cost.time_ns
        )


def test_a_table_is_reused(model, graph, tmp_path):
    cluster = read_cluster(CONFIGS / "two_local_cpus.yaml")
    table = profile(model, coarsen(graph)[0], cluster, QUICK)
    write_table(table, tmp_path / "costs.json")
    for source in ("auto", "file"):
        options = ProfileOptions(source=source, costs=str(tmp_path / "costs.json"))
        assert profile(model, coarsen(graph)[0], cluster, options) == table
    with pytest.raises(MoiraiError, match="the cost table does not fit"):
        profile(model, coarsen(imported(model, batch_size=8))[0], cluster, options)


def test_a_table_is_refreshed_for_what_changed(model, graph, tmp_path):
    cluster = read_cluster(CONFIGS / "two_local_cpus.yaml")
    first, second = cluster.devices
    costs = str(tmp_path / "costs.json")
    before = profile(model, coarsen(graph)[0], cluster, QUICK)
    write_table(before, costs)
    slower = replace(cluster, devices=(first, replace(second, speed=second.speed / 4)))
    with pytest.raises(MoiraiError, match=r"described differently(.|\n)*--refresh=changed"):
        profile(model, coarsen(graph)[0], slower, replace(QUICK, costs=costs))
    after = profile(
        model, coarsen(graph)[0], slower, replace(QUICK, costs=costs, refresh=("changed",))
    )
    assert after.devices[0] == before.devices[0]
    assert after.devices[1].device == slower.devices[1]
    for name, cost in after.operators.items():
        assert cost.time_ns[0] == before.operators[name].time_ns[0]


def test_user_inputs(model, graph, tmp_path):
    cluster = read_cluster(CONFIGS / "two_local_cpus.yaml")
    np.savez(tmp_path / "inputs.npz", x=np.ones([4, 64], np.float32))
    profile(model, coarsen(graph)[0], cluster, replace(QUICK, inputs=str(tmp_path / "inputs.npz")))
    np.savez(tmp_path / "inputs.npz", x=np.ones([5, 64], np.float32))
    with pytest.raises(MoiraiError, match=r"'x' has the shape \[5, 64\]"):
        profile(
            model, coarsen(graph)[0], cluster, replace(QUICK, inputs=str(tmp_path / "inputs.npz"))
        )


def test_measured_links_are_kept(model, graph):
    cluster = read_cluster(CONFIGS / "two_local_cpus.yaml")
    table = profile(model, coarsen(graph)[0], cluster, replace(QUICK, links="measure"))
    assert {(known.link.source, known.link.target) for known in table.links} == {
        (link.source, link.target) for link in cluster.links
    }


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"source": "guess"}, "option source is 'guess'"),
        ({"source": "file"}, "option source is 'file'"),
        ({"source": "measure"}, "option source is 'measure'"),
        ({"source": "analytical", "costs": "costs.json"}, "option costs is 'costs.json'"),
        ({"links": "guess"}, "option links is 'guess'"),
        ({"refresh": ("changed",)}, "option refresh is 'changed'"),
        ({"costs": "costs.json", "refresh": ("nowhere",)}, "option refresh is 'nowhere'"),
        ({"repeats": 0}, "option repeats is 0"),
        ({"warmup": -1}, "option warmup is -1"),
        ({"trip_count": -1}, "option trip_count is -1"),
    ],
)
def test_options_that_cannot_be_met(model, graph, options, rule):
    cluster = read_cluster(CONFIGS / "cpu_gpu.yaml")
    with pytest.raises(MoiraiError) as caught:
        profile(model, coarsen(graph)[0], cluster, ProfileOptions(**options))
    assert caught.value.rule == rule

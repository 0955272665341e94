"""Cost tables survive their file, refuse broken files, and know when they are stale."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tensorflow as tf

from moirai_tf.cluster import Cluster, Device, Link
from moirai_tf.cost.table import (
    CostTable,
    DeviceProfile,
    Handling,
    MeasuredLink,
    Measurement,
    OperatorCost,
    StepCost,
    by_operator,
    described_inputs,
    fingerprint,
)
from moirai_tf.cost.table_files import SCHEMA, VERSION, merged, read_table, write_table
from moirai_tf.errors import MoiraiError
from tests.graphs import GraphBuilder

CPU = Device("/device:CPU:0", "CPU", memory_bytes=10**9, speed=0.5)
GPU = Device("/device:GPU:0", "GPU", num_cores=40, architecture="7.5")
LINKS = (Link(CPU.name, GPU.name, 10, 10**9), Link(GPU.name, CPU.name, 10, 10**9))
CLUSTER = Cluster("pair", (CPU, GPU), LINKS)


def graph_of(width: int = 8):
    builder = GraphBuilder()
    x = builder.feed("x", (2, width))
    builder.fetch("y", builder.op("Relu", "relu", x, shape=(2, width)))
    return builder.build()


@pytest.fixture
def table() -> CostTable:
    graph = graph_of()
    measurement = Measurement(20, 1000, 900, 850, 5, 0.25, 100, 20, 3, 0.9, 2, 4096)
    return CostTable(
        signature="serving_default",
        inputs=described_inputs(graph),
        fingerprint=fingerprint(graph),
        versions={"tensorflow": tf.__version__},
        machine={"cpus": "2"},
        devices=(
            DeviceProfile(CPU, "measure", measurement, {"processor": "one"}),
            DeviceProfile(GPU, "analytical"),
        ),
        operators=by_operator(graph, [[(0, 0), (70, 0), (0, 0)], [(0, 0), (None, 0), (0, 0)]]),
        links=(MeasuredLink(CPU.name, GPU.name, 5, 10**10, 0.02, ((256, 9), (4096, 20))),),
        step=StepCost(700, {GPU.name: 30}),
        handling={CPU.name: Handling(50, 300, 90, 600)},
        slowdown={CPU.name: 1.05},
        options={"repeats": "20"},
    )


def test_round_trip(table, tmp_path):
    write_table(table, tmp_path / "costs.json")
    assert read_table(tmp_path / "costs.json") == table


def test_a_line_per_operator(table, tmp_path):
    write_table(table, tmp_path / "costs.json")
    lines = (tmp_path / "costs.json").read_text().splitlines()
    assert '  "relu": {"time_ns": [70, null], "traffic_ns": [0, 0]},' in lines


def test_rows_are_columns_transposed(table):
    assert table.operators["relu"] == OperatorCost((70, None), (0, 0))
    assert table.inputs == {"x": "float32[2,8]"}


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        (["schema"], "other", "version: this is not version 2"),
        (["version"], 1, "version: this is not version 2"),
        (["operator"], {}, "operator: unknown"),
        (["devices"], {}, "devices: {} is not a list"),
        (["devices", 0, "source"], "guess", "devices[0].source: there is no source 'guess'"),
        (["devices", 0, "device", "name"], 3, "devices[0].device.name: 3 is not a string"),
        (["devices", 0, "measurement", "repeats"], 0, "devices[0].measurement.repeats: 0 is less"),
        (["links", 0, "bandwidth_bytes_per_s"], 0, "links[0].bandwidth_bytes_per_s: 0 is less"),
        (["links", 0, "times_ns"], [["a", 1]], "links[0].times_ns[0][0]: 'a' is not"),
        (["handling", CPU.name, "send_ns"], -1, f"handling[{CPU.name!r}].send_ns: -1 is less"),
        (["step", "client_ns"], -1, "step.client_ns: -1 is less"),
        (["devices", 0, "machine", "processor"], 1, "devices[0].machine['processor']: 1 is not"),
        (["operators", "relu", "time_ns"], [1], "operators['relu']: needs 2 times and traffics"),
        (["operators", "relu", "time_ns", 0], -1, "operators['relu'].time_ns[0]: -1 is less"),
        (["operators", "relu", "time_ns", 0], 1.5, "operators['relu'].time_ns[0]: 1.5 is not"),
        (["operators", "relu", "traffic_ns", 0], 71, "operators['relu']: traffic of 71 ns is more"),
        (["operators", "relu", "traffic_ns", 1], 1, "operators['relu']: traffic of 1 ns is more"),
    ],
)
def test_broken_files(table, tmp_path, path, value, rule):
    write_table(table, tmp_path / "costs.json")
    data = json.loads((tmp_path / "costs.json").read_text())
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    (tmp_path / "costs.json").write_text(json.dumps(data))
    with pytest.raises(MoiraiError) as caught:
        read_table(tmp_path / "costs.json")
    assert caught.value.rule.startswith(rule)


@pytest.mark.parametrize(
    "key",
    ["version", "devices", "operators", "fingerprint", "links", "step", "handling", "slowdown"],
)
def test_missing_fields(table, tmp_path, key):
    write_table(table, tmp_path / "costs.json")
    data = json.loads((tmp_path / "costs.json").read_text())
    del data[key]
    (tmp_path / "costs.json").write_text(json.dumps(data))
    with pytest.raises(MoiraiError, match=f"{key}: missing"):
        read_table(tmp_path / "costs.json")


@pytest.mark.parametrize("text", ["", "[", "[]", '{"a": 1', "\udcff"])
def test_not_a_table(tmp_path, text):
    (tmp_path / "costs.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(MoiraiError):
        read_table(tmp_path / "costs.json")


def test_fits(table):
    table.require_fit(graph_of(), CLUSTER)
    bigger = replace(CLUSTER, devices=(replace(CPU, memory_bytes=10**12), GPU))
    table.require_fit(graph_of(), bigger)


def test_stale_for_other_shapes(table):
    with pytest.raises(MoiraiError, match=r"other shapes \(x: float32\[2,8\]\)"):
        table.require_fit(graph_of(width=16), CLUSTER)


def test_stale_for_other_devices(table):
    other = replace(CLUSTER, devices=(replace(CPU, speed=1.0), GPU))
    with pytest.raises(MoiraiError, match="'/device:CPU:0' was described differently"):
        table.require_fit(graph_of(), other)
    one = replace(table, devices=table.devices[:1])
    with pytest.raises(MoiraiError, match="knows no device '/device:GPU:0'"):
        one.require_fit(graph_of(), CLUSTER)


def test_stale_for_missing_operators(table):
    fewer = replace(table, operators={k: v for k, v in table.operators.items() if k != "relu"})
    with pytest.raises(MoiraiError, match="lacks 1 operators, the first is 'relu'"):
        fewer.require_fit(graph_of(), CLUSTER)


def test_stale_for_another_tensorflow(table):
    older = replace(table, versions={"tensorflow": "2.0.0"})
    with pytest.raises(MoiraiError, match=r"TensorFlow was 2\.0\.0 and is"):
        older.require_fit(graph_of(), CLUSTER)


def test_changed_devices_are_told_apart(table):
    assert table.changed_devices(CLUSTER) == {}
    slower = replace(CLUSTER, devices=(replace(CPU, speed=0.25), GPU))
    assert list(table.changed_devices(slower)) == [CPU.name]


def test_merging_takes_the_last_of_each(table):
    cpu = replace(
        table,
        devices=table.devices[:1],
        operators={k: OperatorCost((v.time_ns[0],), (0,)) for k, v in table.operators.items()},
        links=(),
        step=StepCost(),
    )
    newer = replace(
        cpu,
        devices=(replace(cpu.devices[0], machine={"processor": "two"}),),
        operators={k: OperatorCost((5,), (0,)) for k in table.operators},
        step=StepCost(900, {}),
    )
    both = merged([table, newer])
    assert [p.machine for p in both.devices] == [{"processor": "two"}, {}]
    assert both.operators["relu"] == OperatorCost((5, None), (0, 0))
    assert both.links == table.links
    assert both.step == StepCost(900, {GPU.name: 30})
    assert merged([newer, cpu]).operators == cpu.operators


def test_tables_of_other_models_do_not_merge(table):
    with pytest.raises(MoiraiError, match="differ in their fingerprint"):
        merged([table, replace(table, fingerprint="other")])


def test_step_cost_counts_every_other_worker_once():
    # Client 700; task 1 adds 30, task 2 the more of its CPU's 50 and its GPU's 80; the client none.
    one, two, client = (f"/job:worker/replica:0/task:{n}/device:CPU:0" for n in (1, 2, 0))
    gpu = two.replace("CPU", "GPU")
    step = StepCost(700, {one: 30, two: 50, gpu: 80})
    assert step.total_ns(client, [client]) == 700
    assert step.total_ns(client, [one, client, two, one]) == 780
    assert step.total_ns(client, [one, two, gpu]) == 810


def test_handling_grows_with_the_tensor():
    known = Handling(50, 300, 90, 600)
    assert (known.sending_ns(0), known.sending_ns(1 << 20)) == (50, 350)
    assert (known.receiving_ns(0), known.receiving_ns(1 << 19)) == (90, 390)


def test_schema_is_recorded(table, tmp_path):
    write_table(table, tmp_path / "costs.json")
    data = json.loads((tmp_path / "costs.json").read_text())
    assert (data["schema"], data["version"]) == (SCHEMA, VERSION)

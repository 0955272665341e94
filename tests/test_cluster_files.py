"""Cluster files are read strictly and written back to the same cluster."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moirai_tf.cluster import (
    Cluster,
    Device,
    Link,
    cluster_from_yaml,
    cluster_to_yaml,
    read_cluster,
    write_cluster,
)
from moirai_tf.errors import MoiraiError

CONFIGS = Path(__file__).parents[1] / "configs"
CPU0, CPU1 = "/device:CPU:0", "/device:CPU:1"

GOOD = """
name: pair
devices:
  - {name: /device:CPU:0, memory: 4 GiB}
  - {name: /device:CPU:1, memory: 2 GB, speed: 0.5}
links:
  - {from: /device:CPU:0, to: /device:CPU:1, latency: 20 us, bandwidth: 12 GB/s}
default_link: {latency: 1 ms, bandwidth: 1 GB/s}
"""


def test_reads_every_field():
    cluster = cluster_from_yaml(GOOD)
    assert cluster.name == "pair"
    assert cluster.client == CPU0
    assert [d.memory_bytes for d in cluster.devices] == [4 * 1024**3, 2 * 10**9]
    assert [d.speed for d in cluster.devices] == [1.0, 0.5]
    assert cluster.links == (
        Link(CPU0, CPU1, 20_000, 12_000_000_000),
        Link(CPU1, CPU0, 1_000_000, 1_000_000_000),
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs(path, tmp_path):
    cluster = read_cluster(path)
    assert cluster.name == path.stem
    count = len(cluster.devices)
    assert len(cluster.links) == count * (count - 1)
    write_cluster(cluster, tmp_path / "again.yaml")
    assert read_cluster(tmp_path / "again.yaml") == cluster


def test_between_links_every_ordered_pair():
    cluster = read_cluster(CONFIGS / "two_servers_two_gpus.yaml")
    first, second = ("/job:worker/replica:0/task:" + t for t in "01")
    # Inside a server 10 us + 12,000 bytes / 12 GB/s = 11 us, whichever way.
    for server in (first, second):
        names = [d.name for d in cluster.devices if d.name.startswith(server)]
        for a, b in itertools.permutations(names, 2):
            assert cluster.transfer_ns(12_000, a, b) == 11_000
    # Between servers 80 us + 3,125 bytes / (25 Gbit/s = 3.125 GB/s) = 81 us.
    assert cluster.transfer_ns(3_125, f"{first}/device:GPU:1", f"{second}/device:CPU:0") == 81_000


def test_transfer_is_exact_and_rounds_up():
    cluster = cluster_from_yaml(GOOD)
    # 20,000 ns + 1,000,000 bytes / 12 bytes per ns = 83,333.3 ns, rounded up.
    assert cluster.transfer_ns(1_000_000, CPU0, CPU1) == 20_000 + 83_334
    assert cluster.transfer_ns(0, CPU0, CPU1) == 20_000
    assert cluster.transfer_ns(10**15, CPU0, CPU0) == 0


@pytest.mark.parametrize(
    ("name", "address", "local"),
    [
        (CPU1, "", True),
        ("/job:localhost/replica:0/task:0/device:CPU:1", "", True),
        ("/device:GPU:0", "", False),
        ("/job:worker/replica:0/task:1/device:CPU:0", "", False),
        ("/job:worker/replica:0/task:1/device:CPU:0", "host:2222", False),
    ],
)
def test_local(name, address, local):
    kind = "GPU" if "GPU" in name else "CPU"
    assert Device(name, kind, address=address).local is local


def _with(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: [", "the cluster file: not YAML"),
        ("- 1", "the file: [1] is not an object"),
        (_with("name: pair", "name: a\nname: b"), "the cluster file: not YAML: the key 'name'"),
        (_with("name: pair", "title: pair"), "title: unknown; known here are name"),
        (_with("name: pair", "name: [pair]"), "name: ['pair'] is not a string"),
        (_with("name: pair", "{}"), "the cluster file: not YAML"),
        (_with("memory: 4 GiB", "memory: -4 GiB"), "devices[0].memory: '-4 GiB' is not a number"),
        (_with("memory: 2 GB", "memory: 2"), "devices[1].memory: '2' is not a number"),
        (_with("memory: 2 GB", "memory: 2 GB/s"), "devices[1].memory: '2 GB/s' is not a number"),
        (_with("speed: 0.5", "speed: 0"), "devices[1].speed: 0.0 is not a positive number"),
        (_with("speed: 0.5", "speed: .nan"), "devices[1].speed: nan is not finite"),
        (_with("speed: 0.5", "speed: fast"), "devices[1].speed: 'fast' is not a number"),
        (_with("speed: 0.5", "num_cores: 0"), "devices[1].num_cores: 0 is not positive"),
        (_with("speed: 0.5", "num_cores: 2.5"), "devices[1].num_cores: 2.5 is not a whole"),
        (_with("speed: 0.5", "memroy: 1 GB"), "devices[1].memroy: unknown"),
        (_with("speed: 0.5", "type: GPU"), "devices[1].type: 'GPU' contradicts the name"),
        (_with("speed: 0.5", "type: TPU"), "devices[1].type: 'TPU' is unknown"),
        (_with("speed: 0.5", "address: a:1"), "devices[1].address: 'a:1' is not the host:port"),
        (_with("{name: /device:CPU:1", "{name: /device:TPU:1"), "devices[1].type: 'TPU' is"),
        (_with("{name: /device:CPU:1", "{name: cpu1"), "devices[1].name: 'cpu1' is not a"),
        (
            "name: twice\ndevices: [{name: /device:CPU:0}, {name: /device:CPU:0}]",
            "devices[1].name: '/device:CPU:0' is devices[0] too",
        ),
        (_with("from: /device:CPU:0", "from: /device:CPU:9"), "links[0].from: there is no device"),
        (_with("to: /device:CPU:1", "to: /device:CPU:0"), "links: /device:CPU:0 -> /device:CPU:0"),
        (_with("latency: 20 us", "latency: -20 us"), "links[0].latency: '-20 us' is not a number"),
        (_with("bandwidth: 12 GB/s", "bandwidth: 0 B/s"), "links[0].bandwidth: 0 bytes/s is not"),
        (_with("bandwidth: 12 GB/s}", "bandwith: 12 GB/s}"), "links[0].bandwith: unknown"),
        (_with("latency: 20 us, ", ""), "links[0].latency: missing"),
        (_with("from: /device:CPU:0", "between: []"), "links[0]: a link has either"),
        (_with("default_link: {latency: 1 ms, bandwidth: 1 GB/s}", ""), "links: /device:CPU:1 ->"),
        ("name: empty\ndevices: []", "devices: no CPU"),
        ("name: no_cpu\ndevices: [{name: /device:GPU:0}]", "devices: no CPU"),
        (_with("name: pair", "name: pair\nclient: /device:CPU:7"), "client: '/device:CPU:7' is"),
    ],
)
def test_faults_name_their_field(text, rule):
    with pytest.raises(MoiraiError) as caught:
        cluster_from_yaml(text)
    assert caught.value.rule.startswith(rule)
    assert caught.value.why
    assert caught.value.fix


def test_a_link_twice():
    link = "  - {from: /device:CPU:0, to: /device:CPU:1, latency: 20 us, bandwidth: 12 GB/s}\n"
    with pytest.raises(MoiraiError, match="CPU:1 is there twice"):
        cluster_from_yaml(GOOD.replace(link, 2 * link))


def test_missing_file(tmp_path):
    with pytest.raises(MoiraiError, match="cannot be read"):
        read_cluster(tmp_path / "none.yaml")


@st.composite
def clusters(draw) -> Cluster:
    kinds = draw(st.lists(st.sampled_from(["CPU", "GPU"]), min_size=0, max_size=3))
    devices = tuple(
        Device(
            f"/job:w/replica:0/task:0/device:{kind}:{i}",
            kind,
            memory_bytes=draw(st.none() | st.integers(0, 10**15)),
            speed=draw(st.floats(0.01, 100)),
            address=draw(st.sampled_from(["", "host-1.lan:2222"])),
            frequency_mhz=draw(st.none() | st.integers(1, 10**4)),
            num_cores=draw(st.none() | st.integers(1, 10**4)),
            memory_bytes_per_s=draw(st.none() | st.integers(1, 10**13)),
            architecture=draw(st.sampled_from(["", "7.5"])),
            model=draw(st.sampled_from(["", "Tesla T4"])),
            launch_ns=draw(st.none() | st.integers(0, 10**6)),
        )
        for i, kind in enumerate(["CPU", *kinds])
    )
    links = tuple(
        Link(a.name, b.name, draw(st.integers(0, 10**10)), draw(st.integers(1, 10**13)))
        for a, b in itertools.permutations(devices, 2)
    )
    return Cluster(draw(st.text(min_size=1, max_size=10)), devices, links)


@settings(max_examples=40)
@given(clusters())
def test_writing_and_reading_is_identity(cluster):
    assert cluster_from_yaml(cluster_to_yaml(cluster)) == cluster

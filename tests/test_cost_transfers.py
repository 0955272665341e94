"""The fit of latency and bandwidth, and links measured for real."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from moirai_tf.cluster import read_cluster
from moirai_tf.cost.link_times import fit, measured_links

CONFIGS = Path(__file__).parents[1] / "configs"
SIZES = (1000, 10_000, 100_000, 1_000_000, 4_000_000)


def test_fit_finds_the_line():
    # 7,000 ns + 0.25 ns per byte, which is 4 GB/s.
    latency, bandwidth = fit(SIZES, [7000 + 0.25 * size for size in SIZES])
    assert latency == pytest.approx(7000, abs=1)
    assert bandwidth == pytest.approx(4 * 10**9, rel=1e-6)


@pytest.mark.parametrize("outlier", range(len(SIZES)))
def test_fit_bears_an_outlier(outlier):
    times = [7000 + 0.25 * size for size in SIZES]
    times[outlier] *= 10
    latency, bandwidth = fit(SIZES, times)
    assert latency == pytest.approx(7000, rel=0.5)
    assert bandwidth == pytest.approx(4 * 10**9, rel=0.5)


def test_fit_of_times_that_do_not_grow():
    assert fit(SIZES, [5000] * 5)[1] == 10**12
    assert fit(SIZES, [5000 - size / 1000 for size in SIZES])[1] == 10**12
    assert fit(SIZES, [0] * 5)[0] == 0


def test_every_pair_of_local_cpus_gets_a_link():
    cluster = read_cluster(CONFIGS / "four_local_cpus.yaml")
    links = measured_links(cluster)
    pairs = {(known.link.source, known.link.target) for known in links}
    assert pairs == set(itertools.permutations([d.name for d in cluster.devices], 2))
    assert len({known.times_ns for known in links}) == 1
    assert all(known.error >= 0 for known in links)


def test_devices_that_are_not_here_get_none():
    assert measured_links(read_cluster(CONFIGS / "cpu_gpu.yaml")) == ()

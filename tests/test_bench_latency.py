"""Latencies of runs that take turns, and the tables of a benchmark: no TensorFlow needed."""

from __future__ import annotations

import time

import pytest

from moirai_tf import MoiraiError
from moirai_tf.bench import BenchReport, BenchRow, Latencies, measure_latencies, ratio


def test_every_run_is_called_once_per_round_in_changing_order() -> None:
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    found = measure_latencies(runs, repeats=20, warmup=3)
    assert list(found) == ["a", "b", "c"]
    assert {len(latencies.samples_ns) for latencies in found.values()} == {20}
    measured = calls[-60:]
    rounds = [tuple(measured[i : i + 3]) for i in range(0, 60, 3)]
    assert {tuple(sorted(order)) for order in rounds} == {("a", "b", "c")}
    assert {order[0] for order in rounds} == {"a", "b", "c"}, "nobody always goes first"


def test_the_warm_up_does_not_count() -> None:
    calls: list[int] = []
    found = measure_latencies({"a": lambda: calls.append(1)}, repeats=1, warmup=4)
    assert len(calls) > 4 + 1
    assert len(found["a"].samples_ns) == 1


def test_the_warm_up_goes_on_while_a_run_gets_faster() -> None:
    """Every call takes 1 ms less than the one before, down to 1 ms at the 21st."""
    calls: list[int] = []

    def run() -> None:
        time.sleep(max(1, 21 - len(calls)) / 1000)
        calls.append(1)

    found = measure_latencies({"a": run}, repeats=3, warmup=0)
    assert len(calls) >= 25
    assert found["a"].median_ns < 10_000_000


@pytest.mark.parametrize(("repeats", "warmup"), [(0, 1), (-1, 0), (1, -1)])
def test_a_number_of_rounds_that_is_too_small_is_refused(repeats: int, warmup: int) -> None:
    with pytest.raises(MoiraiError, match=r"(repeats|warmup) is"):
        measure_latencies({"a": lambda: None}, repeats=repeats, warmup=warmup)


def test_median_quartiles_and_spread() -> None:
    latencies = Latencies((40, 10, 20, 30, 50))
    assert latencies.median_ns == 30
    assert latencies.quartiles_ns == (20, 40)
    assert latencies.spread == pytest.approx(20 / 30)


def test_a_ratio_is_taken_round_by_round() -> None:
    """The machine gets ten times slower; in every round one takes twice the other's time."""
    one, other = Latencies((20, 20, 200, 200, 200)), Latencies((10, 10, 100, 100, 100))
    assert ratio(one, other) == 2.0
    assert ratio(other, one) == 0.5
    slow_once = Latencies((10, 10, 1000, 100, 100))
    assert ratio(one, slow_once) == 2.0


def rows() -> BenchReport:
    """A placed model that was predicted to be twice as fast as one device, and is 1.5 times."""
    single = BenchRow("all on d0", 4_000_000, Latencies((6_000_000,) * 3))
    placed = BenchRow("placed", 2_000_000, Latencies((4_000_000,) * 3), "all on d0")
    bare = BenchRow("by hand", None, Latencies((5_000_000,) * 3))
    return BenchReport("two", (single, placed, bare), ("they share threads",))


def test_speed_ups_and_errors() -> None:
    report = rows()
    assert report.predicted_speedup("placed") == 2.0
    assert report.measured_speedup("placed") == 1.5
    assert report.row("placed").error == -0.5
    assert report.row("by hand").error is None
    assert report.predicted_speedup("by hand") is None
    assert report.measured_speedup("all on d0") is None


def test_the_table() -> None:
    assert str(rows()).splitlines() == [
        "run        predicted  measured          quartiles    error"
        "  predicted speed-up  measured speed-up",
        "all on d0   4.000 ms  6.000 ms  6.000 .. 6.000 ms  -33.3 %"
        "                   -                  -",
        "placed      2.000 ms  4.000 ms  4.000 .. 4.000 ms  -50.0 %"
        "              2.00 x             1.50 x",
        "by hand            -  5.000 ms  5.000 .. 5.000 ms        -"
        "                   -                  -",
        "note: they share threads",
    ]

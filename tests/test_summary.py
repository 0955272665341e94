"""What a user reads first: the verdict, short names, a table, where the time went."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moirai_tf.cluster.names import short_devices
from moirai_tf.errors import MoiraiError, near_names
from moirai_tf.progress import Progress, StageTime, Stopwatch, note, observed, stage, time_table
from moirai_tf.rewrite.plan import DeviceShare, PlanSummary
from moirai_tf.rewrite.verdict import verdict
from moirai_tf.summary import Summary

GPU, OTHER = "/device:GPU:0", "/device:GPU:1"

PLACED = PlanSummary(
    status="optimal", objective="latency", latency_ns=10_000_000, queued_ns=10_000_000, step_ns=0,
    predicted_ns=10_000_000, lower_bound_ns=9_990_000, gap=0.001, single_device=GPU,
    single_device_ns=12_300_000, single_device_predicted_ns=12_300_000, baselines_ns={},
    computed=(), devices={GPU: DeviceShare(3, 9_000_000, 1), OTHER: DeviceShare(2, 8_000_000, 1)},
    peak_bytes={GPU: 123_000_000, OTHER: 7_000_000},
)  # fmt: skip

SUMMARY = Summary(
    source=Path("model"), signature="serving_default", operators=7, fused_operators=5,
    placed=PLACED, because="", capacities={GPU: 10**9, OTHER: None}, transfers=1,
    transfer_bytes=4_000_000, servable=True, messages=("bound: by blocks",), report=None,
    output=Path("placed"), times=(StageTime(("import",), 2.04), StageTime(("place",), 0.01)),
)  # fmt: skip


def test_the_verdict_says_gain_devices_and_proof() -> None:
    """12.3 / 10 = 1.23; (10 - 9.99) / 10 = 0.1 %."""
    best = "1.23x faster than the best single device GPU:0; 2 devices used"
    assert verdict(PLACED) == f"{best}; proved within 0.1 %"
    assert verdict(replace(PLACED, gap=0.0)) == f"{best}; proved optimal"
    computed = replace(PLACED, computed=(GPU,))
    assert verdict(computed) == f"{best}; from computed costs; proved within 0.1 %"
    assert "; nothing is proved" in verdict(replace(PLACED, lower_bound_ns=0, gap=1.0))
    assert "; placed for throughput" in verdict(replace(PLACED, objective="throughput"))
    slower = replace(PLACED, single_device_predicted_ns=8_000_000)
    assert verdict(slower).startswith("1.25x slower than the best single device GPU:0; 2 devices")


def test_the_verdict_on_one_device_says_why() -> None:
    one = {GPU: DeviceShare(5, 10_000_000, 1), OTHER: DeviceShare()}
    alone = replace(PLACED, devices=one)
    assert verdict(alone, "links are slow") == (
        "one device is best: GPU:0, because links are slow; "
        "proved: no placement gains more than 0.1 %"
    )
    held = replace(alone, single_device=OTHER)
    assert verdict(held).startswith("all work is on GPU:0, where it must be")
    shared = replace(PLACED, single_device=None, single_device_predicted_ns=None)
    assert verdict(shared).startswith("no device can run the model alone; 2 devices share it")


def test_a_summary_is_verdict_table_and_where_to_look() -> None:
    assert str(SUMMARY).splitlines() == [
        "1.23x faster than the best single device GPU:0; 2 devices used; proved within 0.1 %",
        "",
        "device  fused operators  computes    memory         of",
        "GPU:0                 3  9.000 ms  123.0 MB  1000.0 MB",
        "GPU:1                 2  8.000 ms    7.0 MB",
        "",
        "predicted   10.000 ms; 1 transfer, 4.0 MB",
        "one device  12.300 ms on GPU:0",
        "model       model, signature 'serving_default': 7 operators, 5 after fusion",
        "output      placed",
        "look at it  moirai_report --placed_dir=placed --output=report.html",
    ]


def test_logical_cpus_are_no_separate_devices() -> None:
    def told(*names: str) -> bool:
        devices = {name: DeviceShare(1, 5_000_000, 1) for name in names}
        placed = replace(PLACED, devices=devices, single_device=names[0])
        return "these CPUs are logical" in str(replace(SUMMARY, placed=placed))

    assert told("/device:CPU:0", "/device:CPU:1")
    assert not told("/device:CPU:0")
    assert not told("/device:CPU:0", "/device:GPU:0")
    assert not told(*(f"/job:w/replica:0/task:{n}/device:CPU:0" for n in (0, 1)))


def test_a_long_summary_says_how_it_came_about() -> None:
    told = SUMMARY.text(verbose=True)
    assert told.startswith(str(SUMMARY))
    assert "bound       9.990 ms proved, gap 0.10 %" in told
    assert "note        bound: by blocks" in told


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["/device:CPU:0"], ["CPU:0"]),
        (["/device:CPU:0", "/device:GPU:1"], ["CPU:0", "GPU:1"]),
        (["/job:w/replica:0/task:0/device:CPU:0"], ["CPU:0"]),
        ([f"/job:w/replica:0/task:{n}/device:CPU:0" for n in (0, 1)], ["task:0", "task:1"]),
        (
            [f"/job:w/replica:0/task:{n}/device:GPU:{k}" for n in (0, 1) for k in (0, 1)],
            ["task:0/GPU:0", "task:0/GPU:1", "task:1/GPU:0", "task:1/GPU:1"],
        ),
    ],
)
def test_devices_are_called_by_what_tells_them_apart(names: list[str], short: list[str]) -> None:
    assert list(short_devices(names).values()) == short


def test_names_that_somebody_may_have_meant() -> None:
    names = ["net/mixed_1/concat", "net/mixed_2/concat", "net/conv2d/Conv2D"]
    assert near_names("mixed1.*", names).startswith("'net/mixed_1/concat'")
    assert near_names(r"^conv2$", names) == "'net/conv2d/Conv2D'"
    assert near_names("zzz", names) == ""


def test_stages_are_told_with_what_is_around_them() -> None:
    told: list[Progress] = []
    watch = Stopwatch()
    note("nobody listens")
    with observed(watch), stage("profile"), observed(told.append):
        with stage("trace", 2) as steps:
            steps.advance("fast")
        with stage("trace"):
            pass
    assert [(p.path, p.done, p.total, p.note) for p in told[:3]] == [
        (("profile", "trace"), 0, 2, ""),
        (("profile", "trace"), 1, 2, "fast"),
        (("profile", "trace"), 1, 2, ""),
    ]
    assert [p.seconds is None for p in told] == [True, True, False, True, False]
    assert [time.path for time in watch.times] == [("profile",), ("profile", "trace")]
    assert watch.times[1].seconds == sum(p.seconds or 0.0 for p in told)


def test_times_are_shown_inside_each_other() -> None:
    times = [StageTime(path, s) for path, s in ((("a",), 3.0), (("a", "b"), 1.0), (("c",), 0.04))]
    assert time_table(times) == [
        "where the time went      3.0 s",
        "a                        3.0 s",
        "  b                      1.0 s",
    ]


def test_a_notebook_shows_the_verdict_and_escapes_names() -> None:
    shown = replace(SUMMARY, source=Path("a<b"))._repr_html_()
    assert shown.startswith("<p><strong>1.23x faster than the best single device GPU:0; ")
    assert "model       a&lt;b, signature &#x27;serving_default&#x27;" in shown
    with pytest.raises(MoiraiError, match="no output to report on"):
        replace(SUMMARY, output=None).write_report("report.html")

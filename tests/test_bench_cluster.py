"""Benchmarks of placed models on real workers and on logical CPUs, and the traces they write."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moirai_tf import Cluster, MoiraiError, optimize, read_plan, remap
from moirai_tf.bench import BenchOptions, BenchReport, bench
from moirai_tf.bench.local_cluster import LocalCluster, local_cluster
from moirai_tf.rewrite.plan_file import SCHEDULE_FILE, read_planned_schedule
from tests.scatter import logical_cluster
from tests.zoo import ZOO

ZooDir = Callable[[str], Path]
Event = dict[str, Any]

QUICK = BenchOptions(repeats=3, warmup=1, trace_steps=3)


def described(cluster: Cluster) -> Cluster:
    """With what analytical costs need, as of equal devices."""
    known = logical_cluster(1).devices[0]
    return replace(
        cluster,
        devices=tuple(
            replace(device, frequency_mhz=known.frequency_mhz, num_cores=known.num_cores,
                    memory_bytes_per_s=known.memory_bytes_per_s)
            for device in cluster.devices
        ),
    )  # fmt: skip


def placed_on(cluster: Cluster, model: Path, output: Path, batch_size: int = 16) -> Path:
    """The ensemble, its branches on both devices."""
    optimize(
        model, output, described(cluster), batch_size=batch_size, source="analytical",
        solver="heft", verify=False, split="off",
    )  # fmt: skip
    assert len(set(read_plan(output).placement.values())) == 2
    return output


@dataclass(frozen=True)
class Case:
    """A benchmark that was run, and the trace file that it wrote."""

    original: Path
    placed: Path
    cluster: Cluster
    report: BenchReport
    trace: dict[str, Any]

    def group(self, title: str) -> list[Event]:
        """The events of one process."""
        names = [e for e in self.trace["traceEvents"] if e["name"] == "process_name"]
        (pid,) = (e["pid"] for e in names if e["args"]["name"] == title)
        return [e for e in self.trace["traceEvents"] if e["pid"] == pid]

    def slices(self, title: str, category: str) -> list[Event]:
        """The slices of one process, `operator` or `transfer`."""
        return [e for e in self.group(title) if e["ph"] == "X" and e["cat"] == category]


@pytest.fixture(scope="module", params=["workers", "this process"])
def case(
    request: pytest.FixtureRequest, zoo_dir: ZooDir, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    """The ensemble on two devices, with a trace."""
    folder, original = tmp_path_factory.mktemp("case"), zoo_dir("ensemble")
    cluster = logical_cluster(2)
    if request.param == "workers":
        cluster = request.getfixturevalue("workers").cluster
    placed = placed_on(cluster, original, folder / "placed")
    file = folder / "trace.json"
    report = bench(original, [placed], cluster, replace(QUICK, trace=str(file)))
    return Case(original, placed, cluster, report, json.loads(file.read_text()))


def test_a_report_compares_with_the_best_single_device(case: Case) -> None:
    plan, report = read_plan(case.placed), case.report
    single, placed = report.rows
    assert single.name == f"all on {plan.summary.single_device}"
    assert (placed.name, placed.baseline) == ("placed", single.name)
    assert placed.predicted_ns == plan.summary.predicted_ns
    assert len(placed.measured.samples_ns) == len(single.measured.samples_ns) == QUICK.repeats
    assert all(ns > 0 for row in report.rows for ns in row.measured.samples_ns)
    assert (report.measured_speedup("placed") or 0) > 0
    assert bool(report.notes) == (not case.cluster.remote), "logical CPUs share threads"
    lines = str(report).splitlines()
    assert lines[0].split()[:3] == ["run", "predicted", "measured"]
    assert lines[2].startswith("placed ")
    assert any(line.startswith("largest deviations of placed ") for line in lines)


def test_every_event_is_well_formed(case: Case) -> None:
    required = {"M": {"args"}, "X": {"ts", "dur", "tid", "args"}, "s": {"ts", "tid", "id"},
                "f": {"ts", "tid", "id", "bp"}}  # fmt: skip
    titled = {(e["pid"], e.get("tid")) for e in case.trace["traceEvents"] if e["ph"] == "M"}
    for event in case.trace["traceEvents"]:
        assert required[event["ph"]] | {"pid", "name"} <= event.keys()
        assert (event["pid"], event.get("tid")) in titled, "every track has a name"
        for key in ("ts", "dur"):
            assert event.get(key, 0) >= 0
            assert event.get(key, 0) == round(event.get(key, 0) * 1000) / 1000, "whole nanoseconds"


def test_slices_of_one_track_do_not_overlap(case: Case) -> None:
    for title in ("predicted", "measured"):
        slices = [e for e in case.group(title) if e["ph"] == "X" and e["dur"]]
        by_track = sorted(slices, key=lambda e: (e["tid"], e["ts"]))
        for one, two in itertools.pairwise(by_track):
            if one["tid"] == two["tid"]:
                assert finish_ns(one) <= start_ns(two)


def test_the_predicted_group_is_the_schedule_of_the_plan(case: Case) -> None:
    schedule = read_planned_schedule(case.placed)
    slices = case.slices("predicted", "operator")
    shown = {(e["name"], start_ns(e), finish_ns(e)) for e in slices}
    assert shown == {(o.name, o.start_ns, o.finish_ns) for o in schedule.operators}
    assert max(finish_ns(e) for e in slices) == schedule.makespan_ns
    assert schedule.makespan_ns == read_plan(case.placed).summary.latency_ns
    assert len(case.slices("predicted", "transfer")) == len(schedule.transfers) > 0
    tracks = {e["tid"] for e in slices}
    assert len(tracks) == 2, "a device of a schedule runs one operator at a time"


def test_both_groups_speak_of_the_same_operators(case: Case) -> None:
    """Everything that takes time was seen running, on its device, under its name."""
    placement = read_plan(case.placed).placement
    predicted = {e["name"]: track(case, e) for e in case.slices("predicted", "operator")}
    working = {e["name"] for e in case.slices("predicted", "operator") if e["dur"]}
    measured = case.slices("measured", "operator")
    assert working <= {e["name"] for e in measured}
    for event in measured:
        if event["args"]["node"] in placement:
            assert event["name"] in predicted, "a kernel that is an operator bears a fused name"
        if event["name"] in predicted:
            assert track(case, event).partition(" (")[0] == predicted[event["name"]]


def test_arrows_lead_from_makers_to_readers(case: Case) -> None:
    for title in ("predicted", "measured"):
        group = case.group(title)
        starts = {e["id"]: e for e in group if e["ph"] == "s"}
        ends = {e["id"]: e for e in group if e["ph"] == "f"}
        assert starts.keys() == ends.keys()
        assert len(starts) + len(ends) == sum(e["ph"] in "sf" for e in group), "an id is one arrow"
        assert starts, "the model was divided"
        for number, start in starts.items():
            assert start["ts"] <= ends[number]["ts"]
            left, reached = holder(group, start), holder(group, ends[number])
            assert {left["cat"], reached["cat"]} & {"operator"}
            assert left["tid"] != reached["tid"]
    ids = [e["id"] for e in case.trace["traceEvents"] if e["ph"] == "s"]
    assert len(ids) == len(set(ids)), "arrows of the two groups are apart"


def test_measured_transfers_are_those_between_servers(case: Case) -> None:
    transfers = case.slices("measured", "transfer")
    assert bool(transfers) == case.cluster.remote, "within a process nothing records them"
    sizes = {e["args"]["bytes"] for e in case.slices("predicted", "transfer")}
    assert not transfers or sizes & {e["args"]["bytes"] for e in transfers}


def test_the_trace_holds_the_comparison(case: Case) -> None:
    other, placed = case.trace["otherData"], case.report.row("placed")
    assert other["predicted_ns"] == placed.predicted_ns
    assert other["measured_ns"] == placed.measured.median_ns
    assert other["clock_shifts_ns"] == {}, "one machine, one clock"
    rows = other["largest_deviations"]
    differences = [abs(row["measured_ns"] - row["predicted_ns"]) for row in rows]
    assert differences == sorted(differences, reverse=True)
    assert set(rows[0]) == {"operator", "device", "predicted_ns", "measured_ns"}
    assert all(str(row["operator"]) in str(case.report) for row in rows)


def test_a_loop_runs_many_kernels_under_one_name(
    workers: LocalCluster, zoo_dir: ZooDir, tmp_path: Path
) -> None:
    placed, file = tmp_path / "placed", tmp_path / "trace.json"
    optimize(
        zoo_dir("lstm"), placed, described(workers.cluster), source="analytical", solver="heft",
        batch_size=len(next(iter(ZOO["lstm"].inputs().values()))), verify=False,
    )  # fmt: skip
    report = bench(zoo_dir("lstm"), [placed], workers.cluster, replace(QUICK, trace=str(file)))
    assert report.trace is not None
    inside = [s for s in report.trace.measured.spans if "/while/" in str(s.detail["node"])]
    loops = {span.name for span in inside}
    assert loops <= {span.name for span in report.trace.predicted.spans}
    assert len(inside) > 10 * len(loops) > 0
    for loop in (d for d in report.trace.deviations if d.name in loops):
        kernels = [s for s in report.trace.measured.spans if s.name == loop.name]
        assert loop.measured_ns == sum(s.duration_ns for s in kernels)


def test_two_placed_models_run_side_by_side(
    workers: LocalCluster, zoo_dir: ZooDir, tmp_path: Path
) -> None:
    one = placed_on(workers.cluster, zoo_dir("ensemble"), tmp_path / "one")
    two = placed_on(workers.cluster, zoo_dir("ensemble"), tmp_path / "two")
    options = replace(QUICK, single_device=False)
    report = bench(zoo_dir("ensemble"), [one, two], workers.cluster, options)
    assert [row.name for row in report.rows] == ["one", "two"]
    assert report.measured_speedup("one") is None
    with pytest.raises(MoiraiError, match="given twice"):
        bench(zoo_dir("ensemble"), [one, one], workers.cluster, options)
    other = placed_on(workers.cluster, zoo_dir("ensemble"), tmp_path / "other", batch_size=8)
    with pytest.raises(MoiraiError, match="other input shapes"):
        bench(zoo_dir("ensemble"), [one, other], workers.cluster, options)


def test_a_model_that_is_not_the_original_is_refused(case: Case, zoo_dir: ZooDir) -> None:
    with pytest.raises(MoiraiError, match="knows nothing of operator"):
        bench(zoo_dir("mlp"), [case.placed], case.cluster, QUICK)


def test_a_cluster_that_is_not_the_plans_is_refused(case: Case, tmp_path: Path) -> None:
    names = [device.name for device in case.cluster.devices]
    moved = tmp_path / "moved"
    remap(case.placed, moved, {names[1]: "/job:elsewhere/replica:0/task:7/device:CPU:0"})
    with pytest.raises(MoiraiError, match=r"(?s)has no '/job:elsewhere.*moirai_remap") as error:
        bench(case.original, [moved], case.cluster, QUICK)
    assert names[1] in str(error.value)
    other = replace(case.cluster, client=names[1])
    with pytest.raises(MoiraiError, match="the client of cluster"):
        bench(case.original, [case.placed], other, QUICK)
    with pytest.raises(MoiraiError, match="gives no address"):
        bench(case.original, [moved], None, QUICK)


def test_a_trace_needs_the_schedule(case: Case, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    remap(case.placed, bare, {})
    (bare / SCHEDULE_FILE).unlink()
    options = replace(QUICK, trace=str(tmp_path / "trace.json"))
    with pytest.raises(MoiraiError, match=r"holds no .*moirai_schedule\.json"):
        bench(case.original, [bare], case.cluster, options)
    schedule = json.loads((case.placed / SCHEDULE_FILE).read_text())
    del schedule["ops"][next(iter(schedule["ops"]))]
    (bare / SCHEDULE_FILE).write_text(json.dumps(schedule))
    with pytest.raises(MoiraiError, match="names other operators"):
        bench(case.original, [bare], case.cluster, options)


def test_inputs_that_the_model_refuses_are_an_error(zoo_dir: ZooDir, tmp_path: Path) -> None:
    placed, inputs = tmp_path / "placed", tmp_path / "inputs.npz"
    optimize(
        zoo_dir("lstm"), placed, logical_cluster(2), source="analytical", solver="heft",
        verify=False,
    )  # fmt: skip
    (tokens,) = ZOO["lstm"].inputs().items()
    np.savez(inputs, **{tokens[0]: np.full_like(tokens[1][:1], 10**6)})
    with pytest.raises(MoiraiError, match=r"(?s)cannot be run: .*not in"):
        bench(zoo_dir("lstm"), [placed], None, replace(QUICK, inputs=str(inputs)))
    with pytest.raises(MoiraiError, match="trace_steps is 0"):
        bench(zoo_dir("lstm"), [placed], None, replace(QUICK, trace_steps=0))
    with pytest.raises(MoiraiError, match="no placed model"):
        bench(zoo_dir("lstm"), [], None, QUICK)
    with pytest.raises(MoiraiError, match="cannot be written"):
        bench(zoo_dir("lstm"), [placed], None, replace(QUICK, trace=str(tmp_path / "no" / "t")))


def test_a_worker_that_dies_meanwhile_is_named(zoo_dir: ZooDir, tmp_path: Path) -> None:
    with local_cluster([1.0, 1.0]) as local:
        placed = placed_on(local.cluster, zoo_dir("ensemble"), tmp_path / "placed")
        endless = replace(QUICK, repeats=10**6, single_device=False)
        started = time.monotonic()
        death = threading.Timer(3.0, local.kill, [1])
        death.start()
        with pytest.raises(MoiraiError, match=r"/job:worker/replica:0/task:1 "):
            bench(zoo_dir("ensemble"), [placed], local.cluster, endless)
        death.join()
        assert time.monotonic() - started < 100, "it does not wait for ever"


def start_ns(event: Event) -> int:
    return round(event["ts"] * 1000)


def finish_ns(event: Event) -> int:
    return start_ns(event) + round(event["dur"] * 1000)


def track(case: Case, event: Event) -> str:
    """Name of an event's track."""
    (name,) = (
        e["args"]["name"]
        for e in case.trace["traceEvents"]
        if e["name"] == "thread_name" and (e["pid"], e["tid"]) == (event["pid"], event["tid"])
    )
    return str(name)


def holder(group: list[Event], end: Event) -> Event:
    """The slice that an end of an arrow hangs on."""
    (found,) = (
        e
        for e in group
        if e["ph"] == "X" and e["dur"] and e["tid"] == end["tid"]
        and start_ns(e) <= start_ns(end) < finish_ns(e)
    )  # fmt: skip
    return found

"""Time and memory of import, fusion and rewrite, without profiling, solving and verifying.

Prints a table for InceptionV3 at full size (goal: under 5 s) and for a generated graph of 100,000
operators (goal: under 60 s and 4 GB). Every colocation group falls on one of two devices by lot, so
that no two calls of a function agree: the most that the rewrite can be asked for.

    python benchmarks/import_fuse_rewrite.py
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
DEVICES = ("/device:CPU:0", "/device:CPU:1")
CASES = ("InceptionV3", "generated")
GOALS = {"InceptionV3": (5, None), "generated": (60, 4096)}
"""Seconds and MiB."""


def main() -> None:
    """Builds both models, runs each case in a process of its own, prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            _child("build", case, folder)
            _print(case, json.loads(_child("measure", case, folder)))


def build(case: str, folder: Path) -> None:
    """Writes the SavedModel of a case."""
    if case == "InceptionV3":
        from tests.zoo import application

        application(case, 299).build(folder / case)
        return
    from benchmarks.generated_model import write_model

    write_model(folder / case, 102_000)


def measure(case: str, folder: Path) -> dict[str, Any]:
    """Seconds, seconds of CPU and peak memory of each stage."""
    from moirai_tf.fusion.coarsen import coarsen
    from moirai_tf.graph.importer import import_graph
    from moirai_tf.graph.prune import prune
    from moirai_tf.model.output import publish
    from moirai_tf.model.saved_model import read_saved_model
    from moirai_tf.rewrite.directory import stage_placed

    rows = [("(TensorFlow imported)", 0.0, 0.0, _peak_mib())]

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start, cpu_start = time.perf_counter(), time.process_time()
        result = work()
        times = time.perf_counter() - start, time.process_time() - cpu_start
        rows.append((stage, *times, _peak_mib()))
        return result

    model = timed("read and validate", lambda: read_saved_model(folder / case))
    graph = timed("import", lambda: import_graph(model))
    graph = timed("prune", lambda: prune(graph))
    coarse, expansion = timed("fuse", lambda: coarsen(graph))
    plan = timed("plan", lambda: _plan(graph, expansion.expand(_scattered(coarse))))
    output = folder / f"{case}_placed"
    staged, plan = timed(
        "rewrite", lambda: stage_placed(model, graph, plan, output, overwrite=False)
    )
    timed("publish", lambda: publish(staged))
    return {
        "operators": len(graph),
        "fused": len(coarse),
        "clones": len(plan.edits.clones),
        "rows": rows,
    }


def _scattered(coarse: Any) -> dict[str, str]:
    """Fused operator -> one of two devices by lot; a group counts as one, the client is first."""
    from moirai_tf.graph.graph import CLIENT_OPS

    leader = list(range(len(coarse)))
    for group in coarse.colocation:
        for member in group:
            leader[member] = group[0]
    fine = coarse.fine.operators
    clients = {
        leader[k]
        for k, fused in enumerate(coarse.operators)
        if any(fine[m].op in CLIENT_OPS for m in fused.members)
    }
    lots = random.Random(0)
    chosen = {k: DEVICES[0] if k in clients else lots.choice(DEVICES) for k in sorted(set(leader))}
    return {fused.name: chosen[leader[k]] for k, fused in enumerate(coarse.operators)}


def _plan(graph: Any, placement: Mapping[str, str]) -> Any:
    from moirai_tf.rewrite.make_plan import transfers_of
    from moirai_tf.rewrite.plan import Plan, PlanDevice

    devices = tuple(PlanDevice(name, "CPU", None) for name in DEVICES)
    return Plan(
        graph.signature, graph.tags, devices, DEVICES[0], placement, transfers_of(graph, placement)
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _child(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def _print(case: str, found: Mapping[str, Any]) -> None:
    seconds = sum(row[1] for row in found["rows"])
    cpu_seconds = sum(row[2] for row in found["rows"])
    peak = found["rows"][-1][3]
    goal_s, goal_mib = GOALS[case]
    memory = f" and {goal_mib} MiB" if goal_mib else ""
    counts = f"{found['operators']} operators, {found['fused']} fused, {found['clones']} clones"
    print(f"\n{case}: {counts}")
    print("| stage                  |      s |  CPU s | peak MiB |\n|---|--:|--:|--:|")
    for stage, time_s, cpu_s, mib in [*found["rows"], ("all", seconds, cpu_seconds, peak)]:
        print(f"| {stage:<22} | {time_s:6.2f} | {cpu_s:6.2f} | {mib:8.0f} |")
    met = seconds < goal_s and (goal_mib is None or peak < goal_mib)
    print(f"goal: {goal_s} s{memory}: {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "build":
        build(sys.argv[2], Path(sys.argv[3]))
    else:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))

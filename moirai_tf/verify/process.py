"""Starts verification in a child process and adds what can be told without running anything."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from moirai_tf.cluster import Cluster, read_cluster
from moirai_tf.errors import MoiraiError
from moirai_tf.model.load import give_memory_back
from moirai_tf.model.output import real_path
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.progress import stage
from moirai_tf.rewrite.diff import misplaced, unplanned_changes
from moirai_tf.rewrite.directory import unplaced
from moirai_tf.rewrite.plan import Plan
from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.runtime.child import Child, at_once, without_gpus
from moirai_tf.runtime.connect import cluster_of_plan
from moirai_tf.runtime.devices import check_models
from moirai_tf.runtime.identity import worker_devices
from moirai_tf.verify.examine import examined
from moirai_tf.verify.options import CLUSTER, SESSION, TF2, VerifyOptions, check_verify_options
from moirai_tf.verify.parity import differences
from moirai_tf.verify.report import (
    MODEL,
    PLACEMENT,
    Examined,
    Finding,
    OutputParity,
    VerifyReport,
    check_report,
    proved,
)
from moirai_tf.verify.stand_in import stand_ins_here

_COPIES = 8
"""Of a model's weights that two processes may hold, their buffers and TensorFlow counted in."""
_GRAPH_COPIES = 45
"""The same of its graph and the constants in it, which TensorFlow's passes copy again and again."""
_COMPARABLE = {
    "NVIDIA_TF32_OVERRIDE": "0",
    "TF_CUDNN_USE_AUTOTUNE": "0",
    "TF_CUDNN_DETERMINISTIC": "1",
}
"""Kernels of GPUs that differ from a CPU's by rounding alone, the same ones in every run."""


def verify(
    original: str | Path,
    placed: str | Path,
    options: VerifyOptions | None = None,
    cluster: Cluster | str | Path | None = None,
) -> VerifyReport:
    """Proves that a placed model computes the same as the original, where its plan says.

    Works from any process: the models are run in a child process, which has the logical devices
    that the plan needs.

    Args:
      original: directory of the original SavedModel; only read.
      placed: directory of the placed SavedModel, which holds its plan; only read.
      options: how the models are run.
      cluster: the cluster of the plan, or its file; if it has addresses, the placed model is run on
        the workers too.

    Returns:
      What was compared and proved.

    Raises:
      MoiraiError: an output differs, an operator or a transfer is not where the plan says, weights
        move, or the models cannot be run here; it names the operators and outputs. Or a worker is
        missing or fails; it names the worker.
    """
    report = inspect_placed(original, placed, options, cluster)
    check_report(report, read_plan(placed))
    return report


def inspect_placed(
    original: str | Path,
    placed: str | Path,
    options: VerifyOptions | None = None,
    cluster: Cluster | str | Path | None = None,
) -> VerifyReport:
    """The same, but findings are returned in the report.

    A model of which nothing was placed is compared with the original, and not run.

    Raises:
      MoiraiError: the models cannot be read, run or compared here.
    """
    options = options or VerifyOptions()
    check_verify_options(options)
    plan = read_plan(placed)
    servers = _servers(cluster, plan, options)
    with stage("compare the files"):
        static = _static_findings(Path(original), Path(placed))
    if not plan.placement:
        return VerifyReport((), (), (), (), tuple(static))
    parts = _found_by_children(Path(original), Path(placed), plan, servers, options)
    report = proved(options, parts)
    return replace(report, findings=(*static, *report.findings))


def _found_by_children(
    original: Path,
    placed: Path,
    plan: Plan,
    servers: Cluster | None,
    options: VerifyOptions,
) -> list[Examined]:
    """What processes of their own find, at the same time if there is room for two."""
    devices = stand_ins_here(plan)
    give_memory_back()
    child = Child(
        "verification",
        timeout_s=options.verify_timeout_s,
        longer="allow more time (--verify_timeout_s), or smaller inputs (--inputs)",
        environment={**without_gpus(devices.values()), **_COMPARABLE},
    )
    paths = real_path(original), real_path(placed)

    def examine(options: VerifyOptions, *, placed_only: bool = False) -> Examined:
        return child.call(_examine, *paths, devices, servers, options, placed_only=placed_only)

    if not {TF2, SESSION} <= set(options.loaders):
        return [examine(options)]
    others = replace(options, loaders=tuple(x for x in options.loaders if x != TF2))
    alone = servers is None and plan.edits.split is None
    calls = [
        partial(examine, replace(options, loaders=(TF2,))),
        partial(examine, others, placed_only=alone),
    ]
    room = _has_room_for_two(paths[0], devices)
    first, second = at_once(calls) if room else [call() for call in calls]
    if alone:
        second = _compared(first, second) or examine(others)
    return [first, second]


def _has_room_for_two(original: Path, devices: Mapping[str, str]) -> bool:
    """Whether two processes can run the models at the same time."""
    return (
        len(os.sched_getaffinity(0)) > 1
        and bool(without_gpus(devices.values()))
        and _needed_bytes(original) < _available_bytes()
    )


def _compared(reference: Examined, other: Examined) -> Examined | None:
    """What a loader found of the placed model alone, compared with another loader's original.

    None if that does not settle it: an output differs, or one of the two models did not run. Then
    the loader's own run of the original tells whether the loader or the placement is the reason.
    """
    parities: list[OutputParity] = []
    for grappler, run in other.uncompared.items():
        original = reference.originals.get(grappler, {})
        if original.keys() != run.values.keys() or any(
            differences(run.run, original, run.values, parities, run.tolerance)
        ):
            return None
    if not parities or any(finding.kind == MODEL for finding in other.report.findings):
        return None
    return replace(other, report=replace(other.report, outputs=tuple(parities)))


def _needed_bytes(original: Path) -> int:
    """Memory that two processes may take that run a model at the same time."""
    weights = sum(file.stat().st_size for file in original.glob("variables/*"))
    graph = sum(file.stat().st_size for file in original.glob("saved_model.pb*"))
    return _COPIES * weights + _GRAPH_COPIES * graph


def _available_bytes() -> int:
    """Memory that processes can still take; 0 if the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else 0


def _servers(
    cluster: Cluster | str | Path | None, plan: Plan, options: VerifyOptions
) -> Cluster | None:
    """The cluster whose workers are to run the placed model; None if they are not.

    Raises:
      MoiraiError: it does not fit the plan, a worker does not answer, or nothing else could run.
    """
    if cluster is not None and not isinstance(cluster, Cluster):
        cluster = read_cluster(cluster)
    if CLUSTER in options.loaders and cluster is not None and cluster.remote:
        servers = cluster_of_plan(cluster, plan)
        found = [device for devices in worker_devices(servers).values() for device in devices]
        check_models(plan, found, f"cluster {cluster.name!r}")
        return servers
    if set(options.loaders) == {CLUSTER}:
        raise MoiraiError(
            f"option loaders is {list(options.loaders)}, but no workers are known",
            why="there is nothing that the placed model could be run on",
            fix="give a cluster file with the addresses of the workers, or other loaders",
        )
    return None


def _static_findings(original: Path, placed: Path) -> list[Finding]:
    """What the two protobufs tell: changes beyond devices, and nodes on other devices."""
    plan = read_plan(placed)
    before = unplaced(read_saved_model(original)).meta_graph(plan.tags)
    after = read_saved_model(placed).meta_graph(plan.tags)
    if plan.edits.split is None:
        changes = [Finding(MODEL, text) for text in unplanned_changes(before, after, plan)]
    else:
        same = unplaced(read_saved_model(placed)).meta_graph(plan.tags) == before
        text = "what remains without the plan's edits is not the original"
        changes = [] if same else [Finding(MODEL, text)]
    return changes + [Finding(PLACEMENT, text) for text in misplaced(after, plan)]


def _examine(
    original: Path,
    placed: Path,
    devices: Mapping[str, str],
    servers: Cluster | None,
    options: VerifyOptions,
    *,
    placed_only: bool = False,
) -> Examined:
    """What the child does."""
    with tempfile.TemporaryDirectory(prefix="moirai_verify_") as work:
        return examined(
            original, placed, devices, options, Path(work), servers, placed_only=placed_only
        )

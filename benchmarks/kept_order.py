"""What the planned order is worth in simulation, and what it takes to keep it.

Every model is placed with computed costs on clusters of equal and unequal CPUs. A row compares the
schedule with the ready queue of TensorFlow's executor on the same assignment, alone and with what
`order=planned` keeps in order, and counts the edges that this takes.

    python -m benchmarks.kept_order [--models=t5,swin] [--clusters=equal,half,four]
        [--solvers=auto,heft] [--batch_size=8]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from absl import app, flags

from moirai_tf import Cluster, Device, Link, MoiraiItem, default_pipeline
from moirai_tf.fusion.coarse import Expansion
from moirai_tf.pipeline import need
from moirai_tf.placement import Problem, Tensor, ready_queue
from moirai_tf.rewrite.plan import Plan
from tests.zoo import ZOO

_CLUSTERS = {"equal": (1.0, 1.0), "half": (1.0, 0.5), "four": (0.8, 0.6, 0.4, 0.2)}
_BYTES_PER_S = 10**10
_LATENCY_NS = 20_000

_MODELS = flags.DEFINE_list(
    "models",
    ["ensemble", "two_tower", "bert", "t5", "whisper", "swin", "inception_v3", "nasnet_mobile"],
    "names in the zoo",
)
_WANTED = flags.DEFINE_list("clusters", list(_CLUSTERS), "clusters to place on")
_SOLVERS = flags.DEFINE_list("solvers", ["auto"], "solvers of the pass `place`")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "examples per inference")
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", 10.0, "seconds for the solver")

_HEAD = (
    "| model | cluster | solver | schedule ms | order kept ms | ready queue ms | gain | neighbours "
    "| not kept | edges | relays |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def cluster_of(name: str) -> Cluster:
    """CPUs of the named speeds, with links of 20 us and 10 GB/s."""
    names = [f"/device:CPU:{i}" for i in range(len(_CLUSTERS[name]))]
    devices = tuple(
        Device(
            device, "CPU", frequency_mhz=round(2500 * speed), num_cores=1,
            memory_bytes_per_s=round(_BYTES_PER_S * speed),
        )
        for device, speed in zip(names, _CLUSTERS[name], strict=True)
    )  # fmt: skip
    links = tuple(Link(a, b, _LATENCY_NS, _BYTES_PER_S) for a in names for b in names if a != b)
    return Cluster(name, devices, links)


def row(name: str, cluster: str, solver: str, model: Path, output: Path) -> str:
    """One line of the table."""
    entry = ZOO[name]
    shapes = {key: (_BATCH_SIZE.value, *value.shape[1:]) for key, value in entry.inputs().items()}
    pipeline = default_pipeline(
        signature=entry.signature,
        tags=entry.tags,
        input_shapes=tuple(f"{k}={','.join(map(str, s))}" for k, s in shapes.items()),
        source="analytical",
        solver=solver,
        time_limit_s=_TIME_LIMIT_S.value,
        order="planned",
        output_dir=str(output),
        overwrite=True,
        verify=False,
    )
    item = pipeline.run(MoiraiItem(model, cluster_of(cluster)))
    problem, schedule = need(item.problem), need(need(item.result).schedule)
    plan = need(item.plan)
    queued_ns, kept_ns = (
        ready_queue(p, schedule.assignment).makespan_ns
        for p in (problem, _with_order(problem, need(item.expansion), plan))
    )
    order = plan.summary.order
    return (
        f"| {name} | {cluster} | {solver} | {schedule.makespan_ns / 1e6:.3f} "
        f"| {kept_ns / 1e6:.3f} | {queued_ns / 1e6:.3f} "
        f"| {100 * (queued_ns / schedule.makespan_ns - 1):.1f} % "
        f"| {order['neighbours']} | {order['left_out']} | {order['edges']} "
        f"| {len(plan.edits.relays)} |"
    )


def _with_order(problem: Problem, expansion: Expansion, plan: Plan) -> Problem:
    """The problem whose ready queue must respect what a plan keeps in order."""
    owner = dict(zip(expansion.fine_names, expansion.owner, strict=True))
    free = tuple((0,) * len(problem.devices) for _ in problem.devices)
    waits = (Tensor(owner[p.before], (owner[p.after],), free) for p in plan.order)
    return replace(problem, tensors=(*problem.tensors, *waits))


def main(_: Sequence[str]) -> None:
    """Prints the table row by row."""
    print(_HEAD, flush=True)
    for name in _MODELS.value:
        with tempfile.TemporaryDirectory() as directory:
            model = Path(directory) / "model"
            ZOO[name].build(model)
            for cluster in _WANTED.value:
                for solver in _SOLVERS.value:
                    print(row(name, cluster, solver, model, Path(directory) / "out"), flush=True)


if __name__ == "__main__":
    app.run(main)

"""Predicted against measured latency, and the speed-up, on real unequal workers.

Every model is profiled and placed on every cluster, and three plans are measured in turns: the best
single device, moirai_tf's plan, and a deliberately bad one (runs of operators dealt out in turn).
Plans of several devices carry their order; the same placements without it are measured too.

    python -m benchmarks.fidelity [--models=bert,two_tower] [--clusters=equal,half,four]
        [--repeats=15] [--output=rows.json]
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from absl import app, flags, logging

from benchmarks.cluster_models import MODELS, ClusterModel
from moirai_tf import MoiraiItem, default_pipeline
from moirai_tf.bench.latency import measure_latencies, ratio
from moirai_tf.bench.models import opened, read_placed, read_signature
from moirai_tf.cluster import Cluster
from moirai_tf.cost import generate_inputs, predict
from moirai_tf.cost.layouts import alone
from moirai_tf.pipeline import need
from moirai_tf.placement import Problem, Schedule, ready_queue
from moirai_tf.placement.order import planned_orders
from moirai_tf.rewrite.order import Order, plan_order
from moirai_tf.runtime.local_cluster import local_cluster
from moirai_tf.runtime.placed import write_placed

_CLUSTERS = {"equal": (1.0, 1.0), "half": (1.0, 0.5), "four": (0.8, 0.6, 0.4, 0.2)}
_MODELS = flags.DEFINE_list("models", list(MODELS), "models to run")
_WANTED = flags.DEFINE_list("clusters", list(_CLUSTERS), "clusters to run on")
_REPEATS = flags.DEFINE_integer("repeats", 15, "measured rounds")
_PROFILE_REPEATS = flags.DEFINE_integer("profile_repeats", 8, "measured runs of a profile")
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", 15.0, "seconds for the solver")
_WORK = flags.DEFINE_string("work", "", "directory that keeps the models between runs")
_OUTPUT = flags.DEFINE_string("output", "", "file that keeps the rows (JSON)")

_BAD_RUN = 12
"""Operators of the bad plan that stay together before the next device has its turn."""
_CLEAR = 0.05
"""Predictions that differ by more must be ranked as the measurements are."""
BEST, SINGLE, BAD = "moirai", "single", "bad"
FREE = " unordered"
"""After the name of a plan: its placement in the order of TensorFlow's executor."""


@dataclass(frozen=True)
class Row:
    """One plan of one model on one cluster."""

    model: str
    cluster: str
    plan: str
    devices: int
    status: str
    predicted_ns: int
    measured_ns: int
    spread: float
    speedup: float
    """Best single device over this plan, paired; 1 for the single device."""
    predicted_speedup: float
    most_speedup: float
    """What no placement can exceed for the costs: the proved bound and the least step."""

    @property
    def error(self) -> float:
        """Of the prediction, relative to the measurement; positive if it promised too little."""
        return self.predicted_ns / self.measured_ns - 1


def bad_assignment(problem: Problem) -> list[int]:
    """Runs of neighbouring operators go to the devices in turn; groups stay together."""
    count = len(problem.devices)
    chosen: dict[int, int] = {}
    for position, operator in enumerate(problem.topological_order):
        unit = problem.unit_of[operator]
        if unit not in chosen:
            wanted = position // _BAD_RUN % count
            able = problem.unit_devices[unit]
            chosen[unit] = wanted if wanted in able else able[0]
    return [chosen[unit] for unit in problem.unit_of]


def rows(name: str, known: ClusterModel, model: Path, kind: str, cluster: Cluster) -> list[Row]:
    """Profiles, places and measures one model on one cluster."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        pipeline = default_pipeline(
            batch_size=known.batch_size,
            input_shapes=known.input_shapes,
            output_dir=str(work / BEST),
            repeats=_PROFILE_REPEATS.value,
            warmup=3,
            time_limit_s=_TIME_LIMIT_S.value,
        ).without("verify")
        item = pipeline.run(MoiraiItem(model, cluster))
        predicted = _written(item, cluster, work)
        placed = read_placed([work / BEST])
        signature = read_signature(model, placed)
        inputs = generate_inputs(signature.graph)
        with ExitStack() as stack:
            runs = {
                plan: stack.enter_context(
                    opened(work / plan, signature, inputs, cluster, timeout_s=120)
                ).step()
                for plan in predicted
            }
            found = measure_latencies(runs, repeats=_REPEATS.value, warmup=4)
    summary = need(item.plan).summary
    least_ns = summary["lower_bound_ns"] + need(item.costs).step.client_ns
    used = sum(row["compute_ns"] > 0 for row in summary["devices"].values())
    return [
        Row(
            model=name,
            cluster=kind,
            plan=plan,
            devices={SINGLE: 1, BAD: len(cluster.devices)}.get(plan.removesuffix(FREE), used),
            status=str(summary["status"]) if plan == BEST else "",
            predicted_ns=predicted[plan],
            measured_ns=found[plan].median_ns,
            spread=found[plan].spread,
            speedup=ratio(found[SINGLE], found[plan]),
            predicted_speedup=predicted[SINGLE] / predicted[plan],
            most_speedup=predicted[SINGLE] / least_ns,
        )
        for plan in predicted
    ]


def _written(item: MoiraiItem, cluster: Cluster, work: Path) -> dict[str, int]:
    """Writes the plans beside moirai_tf's; returns what is predicted of all of them."""
    problem, result, coarse = need(item.problem), need(item.result), need(item.coarse)
    model, graph, plan = need(item.model), need(item.graph), need(item.plan)
    bad = ready_queue(problem, bad_assignment(problem))
    names = [device.name for device in cluster.devices]
    chosen = {o.name: names[p.device] for o, p in zip(problem.operators, bad.placed, strict=True)}
    dealt = need(item.expansion).expand(chosen)
    order = plan_order(model, coarse, planned_orders(bad), dealt)

    def predicted(schedule: Schedule, *, order_kept: bool) -> int:
        found = predict(problem, schedule, coarse, need(item.costs), cluster.client)
        return found.latency_ns(order_kept=order_kept)

    def write(name: str, placement: Mapping[str, str], order: Order | None = None) -> None:
        write_placed(model, graph, cluster, placement, work / name, order)

    write(SINGLE, alone(graph, cluster, need(result.single_device)))
    write(BAD, dealt, order)
    write(BAD + FREE, dealt)
    found = {
        BEST: plan.summary["predicted_ns"],
        SINGLE: predicted(need(result.single_schedule), order_kept=False),
        BAD: predicted(bad, order_kept=True),
        BAD + FREE: predicted(bad, order_kept=False),
    }
    if plan.order:
        write(BEST + FREE, plan.placement)
        found[BEST + FREE] = predicted(need(result.schedule), order_kept=False)
    return found


def ranking(found: Sequence[Row]) -> tuple[int, int]:
    """(pairs of plans ranked as predicted, pairs whose predictions clearly differ)."""
    agree = total = 0
    for one in found:
        for other in found:
            same = (one.model, one.cluster) == (other.model, other.cluster)
            if same and one.predicted_ns > (1 + _CLEAR) * other.predicted_ns:
                total += 1
                agree += one.measured_ns > other.measured_ns
    return agree, total


def line(row: Row) -> str:
    """A row of the table."""
    return (
        f"| {row.model} | {row.cluster} | {row.plan} | {row.devices} | {row.status} "
        f"| {row.predicted_ns / 1e6:.1f} | {row.measured_ns / 1e6:.1f} | {100 * row.spread:.0f} % "
        f"| {100 * row.error:+.1f} % | {row.speedup:.2f} | {row.predicted_speedup:.2f} "
        f"| {row.most_speedup:.2f} |"
    )


def summary(found: Sequence[Row]) -> Iterator[str]:
    """What the table says in short."""
    rows = [row for row in found if not row.plan.endswith(FREE)]
    errors = [abs(row.error) for row in rows]
    agree, total = ranking(rows)
    best = [row for row in rows if row.plan == BEST]
    yield (
        f"{len(rows)} rows: median error {100 * np.median(errors):.1f} %, worst "
        f"{100 * max(errors):.1f} %; ranking agrees for {agree} of {total} clear pairs; lowest "
        f"speed-up {min(row.speedup for row in best):.2f}"
    )
    for plan in (SINGLE, BEST, BAD):
        own = [abs(row.error) for row in rows if row.plan == plan]
        yield f"{plan}: median error {100 * np.median(own):.1f} %, worst {100 * max(own):.1f} %"
    by_plan = {(row.model, row.cluster, row.plan): row for row in found}
    for plan in (BEST, BAD):
        gains = [
            row.measured_ns / by_plan[row.model, row.cluster, plan].measured_ns
            for row in found
            if row.plan == plan + FREE
        ]
        if gains:
            yield (
                f"{plan} without its order, {len(gains)} plans: takes {np.median(gains):.2f} x in "
                f"the median, {min(gains):.2f} x to {max(gains):.2f} x"
            )


def built(work: Path) -> Mapping[str, Path]:
    """Builds the wanted models, once."""
    paths = {name: work / name for name in _MODELS.value}
    for name, path in paths.items():
        if not path.exists():
            MODELS[name].build(path)
    return paths


def main(_: Sequence[str]) -> None:
    """Prints the table row by row, then the summary."""
    logging.set_verbosity(logging.WARNING)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as directory:
        models = built(Path(_WORK.value or directory))
        print("| model | cluster | plan | devices | status | predicted ms | measured ms | spread "
              "| error | speed-up | predicted | at most |\n"
              "|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
        for kind in _WANTED.value:
            with local_cluster(_CLUSTERS[kind]) as workers:
                for name, model in models.items():
                    for row in rows(name, MODELS[name], model, kind, workers.cluster):
                        found.append(row)
                        print(line(row), flush=True)
    print()
    print("\n".join(summary(found)))
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(json.dumps([asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    app.run(main)

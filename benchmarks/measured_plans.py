"""Plans of one model, written, predicted and measured in turns on one cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster_models import MODELS
from moirai_tf import MoiraiItem, default_pipeline
from moirai_tf.bench.latencies import Latencies, measure_latencies, ratio
from moirai_tf.bench.models import opened, read_placed, read_signature
from moirai_tf.cluster import Cluster
from moirai_tf.cost.inputs import generate_inputs
from moirai_tf.cost.layouts import alone
from moirai_tf.cost.predict import predict
from moirai_tf.pipeline import Pass, need
from moirai_tf.placement import Problem, Schedule, SolveOptions, ready_queue
from moirai_tf.placement.schedule import planned_orders
from moirai_tf.placement.solve import make
from moirai_tf.rewrite.kept_order import Order, plan_order
from moirai_tf.rewrite.make_plan import write_placed

_BAD_RUN = 12
"""Operators of the bad plan that stay together before the next device has its turn."""
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
    """With work; 0 of a published method, which is not counted."""
    status: str
    predicted_ns: int
    measured_ns: int
    spread: float
    speedup: float
    """Best single device over this plan, paired; 1 for the single device."""
    predicted_speedup: float
    most_speedup: float
    """What no placement can exceed for the costs: the proved bound and the least step."""
    verdict: str
    """Of the verification of moirai_tf's plan; empty for the others."""

    @property
    def error(self) -> float:
        """Of the prediction, relative to the measurement; positive if it promised too little."""
        return self.predicted_ns / self.measured_ns - 1


def bad_assignment(problem: Problem) -> list[int]:
    """Runs of neighbouring operators go to the devices in turn; groups stay together.

    What a device cannot run or has no room for goes to the first that can, with most room if none.
    """
    count = len(problem.devices)
    free = list(problem.capacity_bytes)
    chosen: dict[int, int] = {}
    for position, operator in enumerate(problem.topological_order):
        unit = problem.unit_of[operator]
        if unit not in chosen:
            wanted = position // _BAD_RUN % count
            able = sorted(problem.unit_devices[unit], key=lambda device: device != wanted)
            nbytes = problem.unit_memory_bytes[unit]
            roomy = (device for device in able if free[device] >= nbytes)
            chosen[unit] = next(roomy, max(able, key=free.__getitem__))
            free[chosen[unit]] -= nbytes
    return [chosen[unit] for unit in problem.unit_of]


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    repeats: int
    profile_repeats: int
    time_limit_s: float
    verify: bool
    batch_size: int = 0
    """0: the model's own."""
    split: str = "auto"
    methods: tuple[str, ...] = ()
    """Published methods whose plans are measured as well."""


def rows(name: str, model: Path, kind: str, cluster: Cluster, settings: Settings) -> list[Row]:
    """Profiles, places and measures one model on one cluster."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        item, undivided = _placed(name, model, cluster, settings, work / BEST)
        predicted = _written(item, undivided, cluster, work)
        predicted |= _published(undivided, cluster, work, settings)
        signature = read_signature(model, read_placed([work / BEST]))
        inputs = generate_inputs(signature.graph)
        found: dict[str, Latencies] = {}
        for plans in _together(name, list(predicted)):
            with ExitStack() as stack:
                runs = {
                    plan: stack.enter_context(
                        opened(work / plan, signature, inputs, cluster, timeout_s=120)
                    ).step()
                    for plan in plans
                }
                found |= measure_latencies(runs, repeats=settings.repeats, warmup=4)
    summary = need(item.plan).summary
    least_ns = summary.lower_bound_ns + need(item.costs).step.client_ns
    used = sum(row.compute_ns > 0 for row in summary.devices.values())
    return [
        Row(
            model=name,
            cluster=kind,
            plan=plan,
            devices={SINGLE: 1, BAD: len(cluster.devices), BEST: used}.get(
                plan.removesuffix(FREE), 0
            ),
            status=str(summary.status) + _shares(item) if plan == BEST else "",
            predicted_ns=predicted[plan],
            measured_ns=found[plan].median_ns,
            spread=found[plan].spread,
            speedup=ratio(found[SINGLE], found[plan]),
            predicted_speedup=predicted[SINGLE] / predicted[plan],
            most_speedup=predicted[SINGLE] / least_ns,
            verdict="proved" if plan == BEST and item.report is not None else "",
        )
        for plan in predicted
    ]


def _together(name: str, plans: list[str]) -> list[list[str]]:
    """Plans that are measured in turns: all, unless devices have no room for several models."""
    scarce = MODELS[name].gpu_memory_bytes is not None
    return [[plan] for plan in plans] if scarce else [plans]


def _placed(
    name: str, model: Path, cluster: Cluster, settings: Settings, output: Path
) -> tuple[MoiraiItem, MoiraiItem]:
    """What the whole pipeline made, and what its placement was before the batch was divided."""
    known = MODELS[name]
    has_gpus = any(device.type == "GPU" for device in cluster.devices)
    own_size = known.gpu_batch_size if has_gpus else known.batch_size
    batch_size = settings.batch_size or own_size
    pipeline = default_pipeline(
        batch_size=batch_size,
        input_shapes=known.input_shapes(batch_size),
        output_dir=str(output),
        repeats=settings.profile_repeats,
        warmup=3,
        time_limit_s=settings.time_limit_s,
        split=settings.split,
    )
    pipeline = pipeline if settings.verify else pipeline.without("verify")
    undivided = []

    def keep_undivided(step: Pass, item: MoiraiItem) -> None:
        if step.name == "place":
            undivided.append(item)

    return pipeline.run(MoiraiItem(model, cluster), keep_undivided), undivided[0]


def _shares(item: MoiraiItem) -> str:
    return "" if item.split is None else f", {' + '.join(map(str, item.split.shares))} rows"


def _written(best: MoiraiItem, item: MoiraiItem, cluster: Cluster, work: Path) -> dict[str, int]:
    """Writes the plans beside moirai_tf's; returns what is predicted of all of them.

    They are plans of the model as it was, even if the best one divides its batch.
    """
    problem, result, coarse = need(item.problem), need(item.result), need(item.coarse)
    model, graph, plan = need(item.model), need(item.graph), need(best.plan)
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
        BEST: plan.summary.predicted_ns,
        SINGLE: predicted(need(result.single_schedule), order_kept=False),
        BAD: predicted(bad, order_kept=True),
        BAD + FREE: predicted(bad, order_kept=False),
    }
    if plan.order and best.split is None:
        write(BEST + FREE, plan.placement)
        found[BEST + FREE] = predicted(need(result.schedule), order_kept=False)
    return found


def _published(
    item: MoiraiItem, cluster: Cluster, work: Path, settings: Settings
) -> dict[str, int]:
    """Writes the plans of published methods, in their order; returns what is predicted."""
    problem, coarse, found = need(item.problem), need(item.coarse), {}
    names = [device.name for device in cluster.devices]
    for method in settings.methods:
        made = make(problem, SolveOptions(solver=method, time_limit_s=settings.time_limit_s))
        if made is None:
            continue
        schedule = made[0].schedule
        chosen = {
            operator.name: names[device]
            for operator, device in zip(problem.operators, schedule.assignment, strict=True)
        }
        placement, orders = need(item.expansion).expand(chosen), planned_orders(schedule)
        kept = len(orders) > 1
        order = plan_order(need(item.model), coarse, orders, placement) if kept else None
        write_placed(need(item.model), need(item.graph), cluster, placement, work / method, order)
        prediction = predict(problem, schedule, coarse, need(item.costs), cluster.client)
        found[method] = prediction.latency_ns(order_kept=kept)
    return found

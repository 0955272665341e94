"""Solves a placement problem: an instance file, or a model with its cost table.

Example:
  moirai_place --instance=instance.json --output=schedule.json --time_limit_s=30
  moirai_place --instance=instance.json --output=schedule.json --objective=throughput
  moirai_place --saved_model_dir=model --cluster=cluster.yaml --costs=costs.json \\
    --output=schedule.json
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from absl import flags

from moirai_tf.cost.options import ProfileOptions
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.graph.options import ImportOptions
from moirai_tf.pipeline import MoiraiItem, Pipeline, need
from moirai_tf.placement import Problem, Result, read_problem, write_schedule
from moirai_tf.placement.objective import LATENCY
from moirai_tf.placement.solve import PlaceOptions

from . import _flags

_INSTANCE = flags.DEFINE_string("instance", None, "instance file (JSON) to solve")
_SAVED_MODEL_DIR = flags.DEFINE_string("saved_model_dir", None, "model to solve; only read")
_CLUSTER = flags.DEFINE_string("cluster", None, "YAML file of devices, with --saved_model_dir")
_OUTPUT = flags.DEFINE_string("output", None, "schedule file (JSON) to write")
flags.mark_flag_as_required("output")
_flags.define(ImportOptions, FuseOptions, ProfileOptions, PlaceOptions)


def main() -> None:
    """Solves, writes the schedule and prints what was found."""
    problem, result = _from_instance() if _INSTANCE.value else _from_model()
    write_schedule(problem, need(result.schedule), _OUTPUT.value)
    _flags.tell("\n".join(_report(problem, result)), _facts(problem, result))


def _from_instance() -> tuple[Problem, Result]:
    place = _flags.build(PlaceOptions)
    problem = read_problem(_INSTANCE.value, transfers=place.transfers, congestion=place.congestion)
    return place.solve(problem, place.pin)


def _from_model() -> tuple[Problem, Result]:
    from moirai_tf.cluster import read_cluster  # A problem is placed without TensorFlow.
    from moirai_tf.passes import Fuse, Import, Place, Profile, Prune

    profile = _flags.build(Profile)
    if not (_SAVED_MODEL_DIR.value and _CLUSTER.value and profile.costs):
        raise MoiraiError(
            "there is no problem to solve",
            why="it comes from an instance file, or from a model, a cluster and a cost table",
            fix="give --instance, or --saved_model_dir, --cluster and --costs",
        )
    first, last = (_flags.build(Import), Prune(), _flags.build(Fuse)), _flags.build(Place)
    pipeline = Pipeline((*first, profile, last))
    item = MoiraiItem(Path(_SAVED_MODEL_DIR.value), read_cluster(_CLUSTER.value))
    item = pipeline.run(item)
    return need(item.problem), need(item.result)


def _report(problem: Problem, result: Result) -> list[str]:
    lines = [
        f"problem      {problem.name}: {len(problem.operators)} operators, "
        f"{len(problem.devices)} devices, {problem.transfers}, {problem.congestion}",
        *_found(result),
    ]
    lines.extend(f"{name:<12} {value_ns} ns" for name, value_ns in result.baselines)
    lines.extend(f"note         {message}" for message in result.messages)
    return [*lines, f"schedule     {_OUTPUT.value}"]


def _facts(problem: Problem, result: Result) -> dict[str, object]:
    """What the report says."""
    claim = need(result.schedule).claim
    return {
        "problem": problem.name,
        "operators": len(problem.operators),
        "devices": len(problem.devices),
        "objective": LATENCY if claim is None else claim.objective.name,
        "status": result.status,
        "objective_ns": float(need(result.objective_ns)),
        "objective_bound_ns": float(need(result.objective_bound_ns)),
        "makespan_ns": result.makespan_ns,
        "lower_bound_ns": result.lower_bound_ns,
        "gap": result.gap,
        "single_device": result.single_device,
        "single_device_ns": result.single_device_ns,
        "baselines_ns": dict(result.baselines),
        "because": result.because,
        "notes": result.messages,
        "output": _OUTPUT.value,
    }


def _found(result: Result) -> list[str]:
    """The objective with its bound and, where that is not the makespan, what it is made of."""
    alone = "none" if result.single_device is None else f"{result.single_device_ns} ns"
    single = f"best single  {alone} ({result.single_device or 'no device can run all of it'})"
    claim = need(result.schedule).claim
    if claim is None:
        return [
            f"makespan     {result.makespan_ns} ns ({result.status})",
            f"lower bound  {result.lower_bound_ns} ns, gap {100 * need(result.gap):.3f} %",
            single,
        ]
    value, bound = map(_decimal, (need(result.objective_ns), need(result.objective_bound_ns)))
    return [
        f"{claim.objective.name:<12} {value} ns ({result.status})",
        f"lower bound  {bound} ns, gap {100 * need(result.objective_gap):.3f} %",
        f"bottleneck   {claim.bottleneck_ns} ns",
        f"makespan     {result.makespan_ns} ns",
        f"{single}, makespan",
    ]


def _decimal(value_ns: Fraction) -> Decimal:
    """Exact, since weights are decimals."""
    return Decimal(value_ns.numerator) / Decimal(value_ns.denominator)


def entry() -> None:
    """The command `moirai_place`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

"""A placement that no solver would choose: operators dealt out to devices at random.

It stands in a pipeline where `Place` stands, and tries what rewriting and verifying must survive.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from moirai_tf import Cluster, Device, Link, MoiraiItem, Pass, Pipeline, default_pipeline
from moirai_tf.cost.coarse_problem import build_problem
from moirai_tf.cost.predict import predict
from moirai_tf.pipeline import need
from moirai_tf.placement import Problem, Result, simulate
from moirai_tf.rewrite.make_plan import make_plan
from moirai_tf.summary import result_summary
from tests.zoo import ZooEntry


@dataclass(frozen=True)
class Scatter(Pass):
    """Deals runs of fused operators out to the devices that can run them."""

    name: ClassVar[str] = "place"
    requires: ClassVar[tuple[str, ...]] = ("coarse", "expansion", "costs")

    seed: int = 0
    run: int = 4
    """Mean length of a run of neighbours on one device."""

    def __call__(self, item: MoiraiItem) -> MoiraiItem:
        """Fills in `problem`, `result` and `plan`."""
        problem = build_problem(need(item.coarse), item.cluster, need(item.costs))
        rng = random.Random(self.seed)
        assignment = [0] * len(problem.operators)
        favourite = len(problem.devices) - 1
        for unit, members in enumerate(problem.units):
            if rng.random() < 1 / self.run:
                favourite = rng.randrange(len(problem.devices))
            able = problem.unit_devices[unit]
            device = favourite if favourite in able else rng.choice(able)
            for operator in members:
                assignment[operator] = device
        if len(set(assignment)) == 1:  # a small model, by chance
            _move_one(problem, assignment)
        schedule = simulate(problem, assignment, problem.topological_order)
        result = Result("feasible", schedule, messages=("scattered",))
        prediction = predict(
            problem, schedule, need(item.coarse), need(item.costs), item.cluster.client
        )
        plan = make_plan(
            need(item.graph), need(item.expansion), item.cluster, problem, schedule,
            result_summary(problem, result, prediction, None, (), [0] * len(problem.devices)),
        )  # fmt: skip
        return replace(item, problem=problem, result=result, plan=plan)


def _move_one(problem: Problem, assignment: list[int]) -> None:
    """Puts the last unit that can run elsewhere there."""
    for unit in reversed(range(len(problem.units))):
        others = [d for d in problem.unit_devices[unit] if d != assignment[0]]
        if others:
            for operator in problem.units[unit]:
                assignment[operator] = others[0]
            return


def scatter_pipeline(entry: ZooEntry, output: Path, devices: int) -> Pipeline:
    """Places a model of the zoo at random on so many devices, and verifies it on its own inputs."""
    arrays = entry.inputs()
    texts = {k: v.astype(str) if v.dtype == object else v for k, v in arrays.items()}
    inputs = output.with_suffix(".npz")
    np.savez(inputs, **texts)
    return default_pipeline(
        signature=entry.signature,
        tags=entry.tags,
        input_shapes=tuple(f"{k}={','.join(map(str, v.shape))}" for k, v in arrays.items()),
        source="analytical",
        inputs=str(inputs),
        output_dir=str(output),
        profile_anyway=True,
        split="off",
    ).replaced(Scatter(seed=devices))


def logical_cluster(count: int) -> Cluster:
    """Equal logical CPUs with links that cost next to nothing."""
    names = [f"/device:CPU:{i}" for i in range(count)]
    links = tuple(Link(a, b, 1_000, 10**12) for a in names for b in names if a != b)
    cpus = tuple(
        Device(name, "CPU", frequency_mhz=2500, num_cores=8, memory_bytes_per_s=10**10)
        for name in names
    )
    return Cluster(f"{count} logical CPUs", cpus, links)

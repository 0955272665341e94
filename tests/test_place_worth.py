"""More workers cost a step something; the plan says what a client will measure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from moirai_tf import MoiraiItem, default_pipeline
from moirai_tf.choice import COMPUTED_LEAST_GAIN, LEAST_GAIN
from moirai_tf.cost.table import StepCost
from moirai_tf.passes import Place
from moirai_tf.pipeline import need
from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.summary import summarise
from tests.cost_cases import saved, spec
from tests.scatter import logical_cluster

FIRST, SECOND = "/device:CPU:0", "/device:CPU:1"
WIDTH = 512


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two products that can run side by side."""
    rng = np.random.default_rng(0)
    weights = [tf.Variable(rng.normal(0, 0.05, [WIDTH, WIDTH]).astype(np.float32)) for _ in "ab"]

    @tf.function(input_signature=[spec(None, WIDTH)])
    def call(x):
        return {"y": tf.matmul(x, weights[0]) + tf.matmul(x, weights[1])}

    return saved(call, tmp_path_factory.mktemp("worth") / "m", *weights)


@pytest.fixture(scope="module")
def item(model):
    pipeline = default_pipeline(source="analytical", batch_size=4096).until("profile")
    return pipeline.run(MoiraiItem(model.path, logical_cluster(2)))


def placed_with(item, step, source="measure"):
    """The item placed as if its costs were measured, or as they are: computed."""
    costs = need(item.costs)
    devices = tuple(replace(profile, source=source) for profile in costs.devices)
    return Place()(replace(item, costs=replace(costs, step=step, devices=devices)))


def used(item):
    return {item.problem.devices[p.device].name for p in item.result.schedule.placed}


def test_side_by_side_is_worth_a_small_step(item):
    placed = placed_with(item, StepCost(1000, {SECOND: 1000}))
    assert used(placed) == {FIRST, SECOND}
    summary = placed.plan.summary
    assert summary.step_ns == 2000
    assert summary.predicted_ns == summary.latency_ns + 2000
    assert summary.single_device_predicted_ns == summary.single_device_ns + 1000


def test_one_device_where_a_step_with_two_costs_too_much(item):
    gain_ns = placed_with(item, StepCost()).plan.summary.single_device_ns
    placed = placed_with(item, StepCost(1000, {SECOND: gain_ns}))
    assert used(placed) == {FIRST}
    summary = placed.plan.summary
    assert summary.latency_ns == summary.single_device_ns
    assert summary.predicted_ns == summary.single_device_predicted_ns
    assert placed.result.because.startswith("with several a step is predicted to take ")
    assert "one device is best: CPU:0, because with several a step is" in summarise(placed).verdict
    assert summary.lower_bound_ns < summary.latency_ns
    assert summary.status == "feasible"


def test_a_gain_below_what_can_be_measured_is_none(item):
    free = placed_with(item, StepCost()).plan.summary
    gain_ns = free.single_device_ns - free.latency_ns
    least_ns = round(LEAST_GAIN * free.single_device_ns)
    enough = placed_with(item, StepCost(1, {SECOND: gain_ns - 2 * least_ns}))
    assert used(enough) == {FIRST, SECOND}
    little = placed_with(item, StepCost(1, {SECOND: gain_ns - least_ns // 2}))
    assert used(little) == {FIRST}


def test_computed_costs_need_a_larger_gain(item):
    free = placed_with(item, StepCost()).plan.summary
    assert free.computed == ()
    gain_ns = free.single_device_ns - free.latency_ns
    least_ns = round(COMPUTED_LEAST_GAIN * free.single_device_ns)
    enough = placed_with(item, StepCost(1, {SECOND: gain_ns - least_ns - 10}), "analytical")
    assert used(enough) == {FIRST, SECOND}
    assert enough.plan.summary.computed == (FIRST, SECOND)
    step = StepCost(1, {SECOND: gain_ns - least_ns + 10})
    assert used(placed_with(item, step)) == {FIRST, SECOND}
    little = placed_with(item, step, "analytical")
    assert used(little) == {FIRST}
    assert little.result.because.endswith("30% is no gain to count on where costs are computed")


@pytest.mark.parametrize(("order", "played"), [("planned", "latency_ns"), ("runtime", "queued_ns")])
def test_the_promise_is_that_of_the_order(model, tmp_path, order, played):
    pipeline = default_pipeline(
        source="analytical", batch_size=4096, order=order, output_dir=str(tmp_path / "placed")
    ).without("verify")
    done = pipeline.run(MoiraiItem(model.path, logical_cluster(2)))
    text = str(summarise(done))
    assert "x faster than the best single device CPU:0; 2 devices used; from computed costs" in text
    assert "ms (computed, not measured); " in text.partition("\npredicted ")[2]
    assert "ms (computed, not measured) on CPU:0" in text.partition("\none device ")[2]
    summary = read_plan(tmp_path / "placed").summary
    assert summary.predicted_ns == getattr(summary, played) + summary.step_ns
    assert (summary.order is not None) == (order == "planned")

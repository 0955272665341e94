"""Of a few good schedules the one that is predicted to be fastest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moirai_tf.choice import Chooser
from moirai_tf.cluster import Device
from moirai_tf.cost.table import DeviceProfile, Handling, StepCost
from moirai_tf.placement import Device as Place
from moirai_tf.placement import Operator, Problem, SolveOptions, Tensor, check, solve
from tests.cost_cases import table_of

CPU, GPU = "/device:CPU:0", "/device:GPU:0"
OPTIONS = SolveOptions(time_limit_s=5.0)
FREE = Handling(0, 0, 0, 0)
DEAR = Handling(0, 0, 90, 0)


@pytest.fixture(scope="module")
def problem(coarse):
    """10 for every operator, sin alone takes 3 on the other device; a tensor crosses in 3."""
    return Problem(
        "chain",
        (Place(CPU, None), Place(GPU, None)),
        tuple(
            Operator(o.name, (10, 3) if o.name.endswith("Sin") else (10, None), 0)
            for o in coarse.operators
        ),
        tuple(Tensor(t.producer, t.consumers, ((0, 3), (3, 0))) for t in coarse.tensors),
    )


def chosen(chain, coarse, problem, **costs):
    chooser = Chooser(coarse, table_of(chain, **costs), CPU)
    first = solve(problem, OPTIONS)
    return first, chooser.fastest(problem, first, lambda other: solve(other, OPTIONS), 1.0)


def test_moving_that_is_free_is_kept(chain, coarse, problem):
    # There and back with sin in between: 3 + 3 + 3 = 9, less than the 10 of staying.
    first, found = chosen(chain, coarse, problem, handling={CPU: FREE, GPU: FREE})
    assert found is first
    assert 1 in found.schedule.assignment


def test_what_keeps_devices_busy_is_not_moved(chain, coarse, problem):
    # Unpacking takes each side 90, of which the exact problem knows nothing.
    first, found = chosen(chain, coarse, problem, handling={CPU: DEAR, GPU: DEAR})
    assert 1 in first.schedule.assignment
    assert set(found.schedule.assignment) == {0}
    assert found.messages[0].startswith("moves less than the fastest schedule")
    assert found.schedule.lower_bound_ns == first.schedule.lower_bound_ns
    assert found.status == found.schedule.status == "feasible"
    assert not check(problem, found.schedule)


def test_gpus_have_more_than_one_answer(chain, coarse):
    table = replace(table_of(chain), devices=(DeviceProfile(Device(GPU, "GPU"), "measure"),))
    assert Chooser(coarse, table, CPU).shares_of_time == (0.5, 0.5 / 3)


def test_costs_without_handling_have_one_answer(chain, coarse, problem):
    first, found = chosen(chain, coarse, problem)
    assert found is first
    assert Chooser(coarse, table_of(chain), CPU).shares_of_time == (1.0, 0.0)


@pytest.mark.parametrize(("gpu_ns", "host_works"), [(31, False), (60, False), (300, True)])
def test_a_host_of_gpus_computes_where_that_is_worth_it(chain, coarse, problem, gpu_ns, host_works):
    # Alone on the CPU, where sin takes 30, the chain takes 10 for each other operator + 30.
    others_ns = 10 * (len(problem.operators) - 1)
    assert (others_ns + 30 < 0.7 * (others_ns + gpu_ns)) == host_works
    operators = tuple(
        replace(o, compute_ns=(30, gpu_ns) if o.name.endswith("Sin") else (10, None))
        for o in problem.operators
    )
    near = replace(
        problem,
        operators=operators,
        tensors=tuple(replace(t, time_ns=((0, 0), (0, 0))) for t in problem.tensors),
    )
    devices = tuple(DeviceProfile(Device(n, n[8:11]), "measure") for n in (CPU, GPU))
    costs = replace(table_of(chain, step=StepCost(1)), devices=devices)
    first = solve(near, OPTIONS)
    assert set(first.schedule.assignment) == {0}
    found = Chooser(coarse, costs, CPU).fastest(
        near, first, lambda other: solve(other, OPTIONS), 1.0
    )
    assert (found is first) == host_works
    assert (1 in found.schedule.assignment) != host_works


def test_an_answer_that_cannot_be_found_changes_nothing(chain, coarse, problem):
    chooser = Chooser(coarse, table_of(chain, handling={CPU: DEAR, GPU: DEAR}), CPU)
    first = solve(problem, OPTIONS)
    nothing = replace(first, schedule=None, status="infeasible")
    assert chooser.fastest(problem, first, lambda _: nothing, 0.0) is first


def test_a_worker_that_costs_more_than_it_gains_is_left_out(chain, coarse, problem):
    # It gains 1; taking part costs 5.
    first = solve(problem, OPTIONS)
    chooser = Chooser(coarse, table_of(chain, step=StepCost(0, {GPU: 5})), CPU)
    kept = chooser.worth_it(problem, first)
    assert set(kept.schedule.assignment) == {0}
    assert kept.because.startswith("with several a step is predicted to take")
    free = Chooser(coarse, table_of(chain), CPU)
    assert free.worth_it(problem, first) is first

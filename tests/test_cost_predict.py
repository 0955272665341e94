"""Predicted latency: the schedule as it is played plus the step; and peak memory along it."""

from __future__ import annotations

from dataclasses import replace

from moirai_tf.cluster import Device as ClusterDevice
from moirai_tf.cost.memory import peak_memory
from moirai_tf.cost.predict import kept_latency_ns, predict
from moirai_tf.cost.table import DeviceProfile, Handling, StepCost
from moirai_tf.placement import Device, Operator, Problem, Tensor, simulate
from tests.cost_cases import table_of

CPU, GPU = "/device:CPU:0", "/device:GPU:0"
WAY = ((0, 3), (3, 0))


def problem_of(coarse):
    """Every operator takes 10 on either of two devices and keeps 256 bytes."""
    return Problem(
        "chain",
        (Device(CPU, None), Device(GPU, None)),
        tuple(Operator(o.name, (10, 10), 256) for o in coarse.operators),
        tuple(Tensor(t.producer, t.consumers, WAY) for t in coarse.tensors),
    )


def test_the_parts_of_a_prediction(chain, coarse):
    # All operators in turn, the last one on the other device after a transfer of 3; the step costs
    # 70 and 5 more for the other device.
    problem = problem_of(coarse)
    schedule = simulate(problem, [0] * (len(coarse) - 1) + [1])
    table = table_of(chain, step=StepCost(70, {GPU: 5}))
    found = predict(problem, schedule, coarse, table, CPU)
    work_ns = 10 * len(coarse) + 3
    assert (found.planned_ns, found.queued_ns, found.step_ns) == (work_ns, work_ns, 75)
    assert found.latency_ns(order_kept=True) == found.latency_ns(order_kept=False) == work_ns + 75


def test_handling_of_tensors_is_in_it(chain, coarse):
    # The first operator feeds the rest on the other device; when its tensor can be read at 13 the
    # device still has 90 - 3 of unpacking to do, which comes before its operators.
    problem = problem_of(coarse)
    schedule = simulate(problem, [0] + [1] * (len(coarse) - 1))
    table = table_of(chain, handling={CPU: Handling(0, 0, 0, 0), GPU: Handling(0, 0, 90, 0)})
    found = predict(problem, schedule, coarse, table, CPU)
    assert found.planned_ns == found.queued_ns == 10 + 90 + 10 * (len(coarse) - 1)


def test_a_gpu_receives_after_what_it_was_given(chain, coarse):
    # The first operator ends on the CPU at 10; the GPU runs the third from 0 to 30, then its tensor
    # comes in 3, and the second runs until 43. The schedule has the tensor there at 13.
    problem = problem_of(coarse)
    first, second, third = problem.operators[:3]
    problem = replace(
        problem,
        operators=(first, second, replace(third, compute_ns=(30, 30))),
        tensors=(Tensor(0, (1,), WAY),),
    )
    schedule = simulate(problem, [0, 1, 1], [0, 2, 1])
    assert schedule.makespan_ns == 40
    table = table_of(chain)
    assert predict(problem, schedule, coarse, table, CPU).planned_ns == 40
    table = replace(table, devices=(DeviceProfile(ClusterDevice(GPU, "GPU"), "measure"),))
    assert predict(problem, schedule, coarse, table, CPU).planned_ns == 43
    assert kept_latency_ns(problem, schedule, coarse, table, CPU) == 43


def test_devices_that_compute_together_slow_down(chain, coarse):
    # Operators in turn never overlap, so the factor does not count.
    problem = problem_of(coarse)
    schedule = simulate(problem, [0] * (len(coarse) - 1) + [1])
    free = {name: Handling(0, 0, 0, 0) for name in (CPU, GPU)}
    table = table_of(chain, handling=free, slowdown={CPU: 1.5, GPU: 1.5})
    work_ns = 10 * len(coarse) + 3
    assert predict(problem, schedule, coarse, table, CPU).planned_ns == work_ns
    # Two operators without a tensor between them, 10 each on a device of their own: both 15.
    apart = replace(problem, operators=problem.operators[:2], tensors=())
    both = simulate(apart, [0, 1])
    assert predict(apart, both, coarse, table, CPU).planned_ns == 15


def test_memory_is_what_is_alive(chain, coarse):
    # On one device two tensors of 256 bytes are alive at a time: an operator's input and output.
    problem = problem_of(coarse)
    schedule = simulate(problem, [0] * len(coarse))
    here, there = peak_memory(coarse, problem, schedule, table_of(chain))
    assert here.tensor_bytes == 2 * 256
    assert (there.total_bytes, here.weight_bytes) == (0, 0)
    assert here.total_bytes < sum(operator.memory_bytes for operator in problem.operators)


def test_a_tensor_lives_on_both_ends_of_its_transfer(chain, coarse):
    problem = problem_of(coarse)
    schedule = simulate(problem, [0] * (len(coarse) - 1) + [1])
    here, there = peak_memory(coarse, problem, schedule, table_of(chain))
    assert here.tensor_bytes == 2 * 256
    assert there.tensor_bytes == 256

"""Plays where packing and unpacking interrupt what runs; arithmetic in the comments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moirai_tf.placement import Device, Operator, Problem, Tensor, ready_queue
from moirai_tf.placement.evaluate.events import simulate
from moirai_tf.placement.evaluate.execution import execution_ns
from moirai_tf.placement.schedule import planned_orders
from tests.placement_cases import problems

DEVICES = (Device("d0", None), Device("d1", None))
WAY = ((0, 10), (10, 0))
A, B = (Operator(name, (5, 5), 0) for name in "ab")


def free(_):
    return 0, 0


def handled(send_ns, receive_ns):
    return lambda transfer: (send_ns, receive_ns)


def pair(*operators, tensors):
    return Problem("pair", DEVICES, tuple(operators), tensors)


def test_idle_ends_take_what_the_problem_says():
    # a on d0 until 5; the transfer 5..15 however it is divided; b on d1 until 20.
    problem = pair(A, B, tensors=(Tensor(0, (1,), WAY),))
    for send_ns, receive_ns in ((0, 0), (4, 6), (10, 0), (3, 3)):
        assert execution_ns(problem, [0, 1], handled(send_ns, receive_ns)) == 20


def test_a_sender_is_interrupted():
    # a on d0 until 5, then c (20) at once; packing 5..9 makes c end at 29. b: 9, way 4, unpacked
    # at 15, runs until 20.
    problem = pair(
        A, B, Operator("c", (20, 20), 0),
        tensors=(Tensor(0, (1,), WAY), Tensor(0, (2,), WAY)),
    )  # fmt: skip
    assert execution_ns(problem, [0, 1, 0], handled(4, 2)) == 29
    assert execution_ns(problem, [0, 1, 0], free) == 25


def test_a_receiver_is_interrupted():
    # c runs on d1 from 0 and needs 30; a's tensor arrives at 5 + 4 + 4 = 13 and is unpacked until
    # 15 while c waits: c ends at 32, then b until 37.
    problem = pair(
        A, B, Operator("c", (30, 30), 0),
        tensors=(Tensor(0, (1,), WAY),),
    )  # fmt: skip
    assert execution_ns(problem, [0, 1, 1], handled(4, 2)) == 37


def test_a_kept_order_waits():
    # d1 is to run b before c although c is ready first: a 0..5, there at 15, b 15..20, c 20..50.
    problem = pair(
        A, B, Operator("c", (30, 30), 0),
        tensors=(Tensor(0, (1,), WAY),),
    )  # fmt: skip
    assert execution_ns(problem, [0, 1, 1], free, [[0], [1, 2]]) == 50
    assert execution_ns(problem, [0, 1, 1], free, [[0], [2, 1]]) == 35


def test_ends_that_work_at_the_same_time():
    # Both ends have 8 of work for a transfer of 10: a until 5, the target begins at 7, b runs from
    # 15 to 20. On d0 c (20) runs from 5, is interrupted for 8, and ends at 33.
    c = Operator("c", (20, 20), 0)
    problem = pair(A, B, c, tensors=(Tensor(0, (1,), WAY), Tensor(0, (2,), WAY)))
    assert execution_ns(problem, [0, 1, 0], handled(8, 8)) == 33
    # On d1 instead, c is there from the start: 0..15 but for the unpacking from 7 to 15, then the
    # rest of its 20, until 28; b after it, until 33.
    problem = pair(A, B, c, tensors=(Tensor(0, (1,), WAY),))
    assert execution_ns(problem, [0, 1, 1], handled(8, 8)) == 33


def test_a_gpu_receives_when_it_has_done_what_it_was_given():
    # On d1 c (30) is launched at 0, so the copy of a, which is there at 5, goes 30..40, and b runs
    # until 45; the problem has it there at 15. Launched before c, b is done at 20 and c at 50.
    c = Operator("c", (30, 30), 0)
    problem = pair(A, B, c, tensors=(Tensor(0, (1,), WAY),))
    gpus = [0, 1]
    assert execution_ns(problem, [0, 1, 1], free, [[0], [2, 1]], gpus) == 45
    assert execution_ns(problem, [0, 1, 1], free, [[0], [1, 2]], gpus) == 50
    assert simulate(problem, [0, 1, 1], [0, 2, 1]).makespan_ns == 35
    # A host's CPU receives at 15 whatever it runs: c until 30, b until 35.
    assert execution_ns(problem, [0, 1, 1], free, [[0], [2, 1]], [0]) == 35


def test_a_gpu_sends_what_it_has_made_while_it_goes_on():
    # d0 runs a until 5 and c until 35, launched together; a's copy goes 5..15, b until 20.
    c = Operator("c", (30, 30), 0)
    tensors = (Tensor(0, (1,), WAY), Tensor(0, (2,), WAY))
    problem = pair(A, B, c, tensors=tensors)
    assert execution_ns(problem, [0, 1, 0], free, [[0, 2], [1]], [0, 1]) == 35
    longer = pair(A, Operator("b", (40, 40), 0), c, tensors=tensors)
    assert execution_ns(longer, [0, 1, 0], free, [[0, 2], [1]], [0, 1]) == 55


def test_copies_of_a_gpu_follow_each_other():
    # a and c of d0 end at 5 and 10. Two tensors to d1 go 5..15 and 15..25; b and e: 30, 35.
    c, e = Operator("c", (5, 5), 0), Operator("e", (5, 5), 0)
    problem = pair(A, B, c, e, tensors=(Tensor(0, (1,), WAY), Tensor(2, (3,), WAY)))
    assert execution_ns(problem, [0, 1, 0, 1], free, None, [0, 1]) == 30
    # From a CPU a copy of its own engine: c's starts at 10, before b (15..20) was given, so both
    # wait for the port alone.
    assert execution_ns(problem, [0, 1, 0, 1], free, None, [1]) == 30


def test_memory_that_both_share_needs_no_copy():
    # A tensor that crosses in no time is there when the kernel that made it is done.
    near = ((0, 0), (0, 0))
    problem = pair(A, B, tensors=(Tensor(0, (1,), near),))
    assert execution_ns(problem, [0, 1], free, None, [0]) == 10
    shape = pair(Operator("a", (0, 0), 0), B, Operator("c", (30, 30), 0),
                 tensors=(Tensor(0, (1,), near),))  # fmt: skip
    assert execution_ns(shape, [0, 1, 0], free, [[2], [1]], [0]) == 30


@given(problems(), st.data())
def test_one_device_runs_its_work(problem, data):
    able = [k for k in range(len(problem.devices))
            if all(o.compute_ns[k] is not None for o in problem.operators)]  # fmt: skip
    if not able:
        return
    device = data.draw(st.sampled_from(able))
    alone = [device] * len(problem.operators)
    work_ns = sum(o.compute_ns[device] or 0 for o in problem.operators)
    assert execution_ns(problem, alone, handled(7, 7)) == work_ns
    assert execution_ns(problem, alone, free, None, [device]) == work_ns
    assert ready_queue(problem, alone).makespan_ns == work_ns


@given(problems(), st.integers(0, 5), st.integers(0, 5), st.data())
def test_no_play_beats_the_longest_path(problem, send_ns, receive_ns, data):
    devices = [data.draw(st.sampled_from(sorted(able))) for able in problem.unit_devices]
    assignment = [devices[unit] for unit in problem.unit_of]  # colocated operators stay together
    ends = [0] * len(problem.operators)
    for i in problem.topological_order:
        ends[i] += problem.operators[i].compute_ns[assignment[i]] or 0
        for t in problem.outgoing[i]:
            for consumer in problem.tensors[t].consumers:
                moved = problem.tensors[t].time_ns[assignment[i]][assignment[consumer]]
                ends[consumer] = max(ends[consumer], ends[i] + moved)
    played = execution_ns(problem, assignment, handled(send_ns, receive_ns))
    assert played >= max(ends)
    orders = planned_orders(simulate(problem, assignment))
    assert execution_ns(problem, assignment, handled(send_ns, receive_ns), orders) >= max(ends)
    gpus = data.draw(st.sets(st.sampled_from(range(len(problem.devices)))))
    for order in (orders, None):
        assert execution_ns(problem, assignment, free, order, gpus) >= max(ends)

"""Problems: derived views, every violation as a sentence, wishes of the user."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moirai_tf.errors import MoiraiError
from moirai_tf.placement import Device, Operator, Problem, Tensor, restrict, violations
from tests.placement_cases import problem_of, uniform

#     a -> b -> d,  a -> c -> d;  c cannot run on d0
DIAMOND = problem_of(
    {"a": (2, 4), "b": (6, 4), "c": (None, 8), "d": (2, 2)},
    [("a", "b c", 4), ("b", "d", 6), ("c", "d", 6)],
    memory={"a": 1, "b": 2, "c": 4, "d": 8},
    capacity=(None, 20),
)


def test_views_follow_the_data() -> None:
    assert DIAMOND.topological_order == (0, 1, 2, 3)
    assert DIAMOND.incoming == ((), (0,), (0,), (1, 2))
    assert DIAMOND.outgoing == ((0,), (1,), (2,), ())
    assert DIAMOND.compute_ns.tolist() == [[2, 4], [6, 4], [-1, 8], [2, 2]]
    assert DIAMOND.capacity_bytes == (15, 20)  # unlimited holds 1 + 2 + 4 + 8
    assert DIAMOND.quantum_ns == 2


def test_overlapping_groups_are_one_unit() -> None:
    grouped = replace(DIAMOND, colocation=((0, 2), (2, 3)))
    assert grouped.units == ((0, 2, 3), (1,))
    assert grouped.unit_of == (0, 1, 0, 0)
    assert grouped.unit_devices == ((1,), (0, 1))
    assert grouped.unit_memory_bytes == (13, 2)
    assert grouped.runnable.tolist() == [[False, True], [True, True], [False, True], [False, True]]


def test_tensors_that_share_a_matrix_share_the_array() -> None:
    table = uniform(3, 2)
    shared = replace(DIAMOND, tensors=tuple(replace(t, time_ns=table) for t in DIAMOND.tensors))
    assert len({id(array) for array in shared.time_ns}) == 1


def _with_operator(**change: object) -> Problem:
    first = replace(DIAMOND.operators[0], **change)  # type: ignore[arg-type]
    return replace(DIAMOND, operators=(first, *DIAMOND.operators[1:]))


def _with_tensor(**change: object) -> Problem:
    first = replace(DIAMOND.tensors[0], **change)  # type: ignore[arg-type]
    return replace(DIAMOND, tensors=(first, *DIAMOND.tensors[1:]))


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (replace(DIAMOND, transfers="broadcast"), "transfers: 'broadcast' is none of"),
        (replace(DIAMOND, congestion="bus"), "congestion: 'bus' is none of"),
        (replace(DIAMOND, devices=()), "devices: there are none"),
        (replace(DIAMOND, devices=(Device("d0"), Device("d0"))), "'d0' is used 2 times"),
        (replace(DIAMOND, devices=(Device("d0"), Device(""))), "devices: a name is empty"),
        (replace(DIAMOND, devices=(Device("d0"), Device("d1", -1))), "devices[1].memory: -1"),
        (_with_operator(name="b"), "ops: the name 'b' is used 2 times"),
        (_with_operator(compute_ns=(1, 2, 3)), "ops[0].compute: operator 'a' has 3 times for 2"),
        (_with_operator(compute_ns=(None, None)), "ops[0].compute: no device can run operator 'a'"),
        (_with_operator(compute_ns=(-1, 2)), "ops[0].compute: operator 'a' has a negative time"),
        (_with_operator(memory_bytes=-3), "ops[0].memory: -3 is negative"),
        (_with_operator(compute_ns=(2**53, 1)), "the times add up to"),
        (_with_operator(memory_bytes=2**53), "the memory adds up to"),
        (_with_tensor(producer=9), "tensors[0].producer: there is no operator 9"),
        (_with_tensor(consumers=()), "tensors[0].consumers: there are none"),
        (_with_tensor(consumers=(1, 1)), "tensors[0].consumers: an operator is named twice"),
        (_with_tensor(consumers=(7,)), "tensors[0].consumers: there is no operator 7"),
        (_with_tensor(time_ns=((0, 1),)), "tensors[0].time: not a 2 x 2 matrix"),
        (_with_tensor(time_ns=((0, -1), (1, 0))), "tensors[0].time: a time is negative"),
        (_with_tensor(time_ns=((5, 1), (1, 0))), "moving to the same device must take 0"),
        (_with_tensor(producer=3), "tensors: a cycle: "),
        (_with_tensor(consumers=(0,)), "tensors: a cycle: a -> a"),
        (replace(DIAMOND, colocation=((0, 11),)), "colocate[0]: there is no operator 11"),
        (replace(DIAMOND, colocation=((),)), "colocate[0]: the group is empty"),
    ],
)
def test_each_violation_is_a_sentence(broken: Problem, sentence: str) -> None:
    assert any(sentence in fault for fault in violations(broken)), violations(broken)


def test_cycle_is_spelled_out() -> None:
    loop = problem_of(
        {"a": (1,), "b": (1,), "c": (1,), "d": (1,)},
        [("a", "b", 0), ("b", "c", 0), ("c", "b d", 0)],
    )
    assert violations(loop) in (
        ["tensors: a cycle: b -> c -> b"],
        ["tensors: a cycle: c -> b -> c"],
    )


def test_group_without_a_common_device_is_named() -> None:
    split = problem_of({"a": (1, None), "b": (None, 1)}, [], colocation=((0, 1),))
    assert violations(split) == ["colocate: no device can run all of a, b, which must share one"]


def test_all_violations_are_returned_at_once() -> None:
    broken = replace(
        DIAMOND,
        devices=(Device("d0", -1), Device("d0")),
        operators=(Operator("a", (None, None)), *DIAMOND.operators[1:]),
        tensors=(Tensor(0, (), ((0,),)),),
    )
    assert len(violations(broken)) == 5


def test_pins_forbidden_devices_and_limits_narrow_a_problem() -> None:
    narrow = restrict(DIAMOND, pins=["^[ab]$=d1"], memory_limits=["d0=7", "d1=50"])
    assert [operator.compute_ns for operator in narrow.operators] == [
        (None, 4),
        (None, 4),
        (None, 8),
        (2, 2),
    ]
    assert [device.memory_bytes for device in narrow.devices] == [7, 20]
    assert not restrict(DIAMOND, forbidden=["d0"]).runnable[:, 0].any()
    assert restrict(DIAMOND) == DIAMOND


def test_pin_moves_the_whole_group() -> None:
    grouped = replace(DIAMOND, colocation=((0, 1),))
    assert restrict(grouped, pins=["a=d0"]).unit_devices[0] == (0,)


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"pins": ["z=d0"]}, "'z=d0': it matches no operator"),
        ({"pins": ["a=gpu"]}, "there is no device 'gpu'"),
        ({"pins": ["a"]}, "pin 'a': it is not regex=device"),
        ({"pins": ["(=d0"]}, "pin '(=d0': its regular expression is broken"),
        ({"pins": ["c=d0"]}, "left for c: 'c' can run only on d1; pin 'c=d0' holds 'c'"),
        (
            {"pins": ["a=d0", "a=d1"]},
            "left for a: pin 'a=d0' holds 'a'; pin 'a=d1' holds 'a'",
        ),
        ({"forbidden": ["d1"]}, "left for c: 'c' can run only on d1; 'd1' is forbidden"),
        ({"forbidden": ["gpu"]}, "there is no device 'gpu'"),
        ({"memory_limits": ["d0=lots"]}, "'lots' is not a number of bytes"),
        ({"memory_limits": ["d9=1"]}, "there is no device 'd9'"),
    ],
)
def test_impossible_wishes_are_refused(wish: dict[str, list[str]], sentence: str) -> None:
    with pytest.raises(MoiraiError, match=r"why: .*\n  fix: ") as caught:
        restrict(DIAMOND, **wish)
    assert sentence in caught.value.rule

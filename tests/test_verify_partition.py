"""Reading partition graphs and comparing them with a plan, on hand-made partitions.

The model is x -> a -> b -> y with a constant k that a and b read, and a variable w that b reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from tensorflow.core.framework import graph_pb2, node_def_pb2, types_pb2
from tensorflow.python.framework import tensor_util

from moirai_tf.rewrite.plan import Plan, PlanDevice, PlanTransfer
from moirai_tf.verify.names import Names
from moirai_tf.verify.partition import LARGE_CONSTANT_BYTES, PartitionedGraph
from moirai_tf.verify.placement_proof import Evidence, prove
from moirai_tf.verify.report import Finding, RunProof

_DEVICES = {f"CPU:{i}": f"/device:CPU:{i}" for i in range(3)}
_OPS = {"x": "Placeholder", "k": "Const", "w": "VarHandleOp", "read": "ReadVariableOp",
        "a": "Mul", "b": "AddN"}  # fmt: skip
_SOURCES = {"a": ["x", "k"], "read": ["w"], "b": ["a", "k", "read"]}


def _device(index: int) -> str:
    return f"/device:CPU:{index}"


def _node(name: str, op: str, cpu: int, *inputs: str) -> node_def_pb2.NodeDef:
    device = f"/job:localhost/replica:0/task:0/device:CPU:{cpu}"
    node = node_def_pb2.NodeDef(name=name, op=op, device=device, input=inputs)
    if op == "_Arg":
        node.attr["T"].type = types_pb2.DT_FLOAT
    return node


def _const(name: str, cpu: int, size: int = 1) -> node_def_pb2.NodeDef:
    node = _node(name, "Const", cpu)
    node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(np.zeros(size, np.float32)))
    return node


def _pair(tensor: str, source: int, target: int) -> list[node_def_pb2.NodeDef]:
    """The `_Send` and `_Recv` of a tensor; the latter is called `tensor@target`."""
    name = tensor.replace(":", "_")
    send = _node(f"{name}/send{target}", "_Send", source, tensor)
    recv = _node(f"{name}@{target}", "_Recv", target)
    for node in (send, recv):
        node.attr["tensor_name"].s = f"edge_{name}_{target}".encode()
        node.attr["send_device"].s = f"/job:localhost/task:0/device:CPU:{source}".encode()
        node.attr["recv_device"].s = f"/job:localhost/task:0/device:CPU:{target}".encode()
    return [send, recv]


def _model_nodes() -> dict[str, node_def_pb2.NodeDef]:
    return {
        name: node_def_pb2.NodeDef(name=name, op=op, input=_SOURCES.get(name, []))
        for name, op in _OPS.items()
    }


def _plan(placement: Mapping[str, int], transfers: Iterable[tuple[str, int, int]]) -> Plan:
    return Plan(
        signature="serving_default",
        tags=("serve",),
        devices=tuple(PlanDevice(name, "CPU", None) for name in _DEVICES.values()),
        client=_device(0),
        placement={name: _device(cpu) for name, cpu in placement.items()},
        transfers=tuple(PlanTransfer(t, 0, _device(s), _device(d), 4) for t, s, d in transfers),
    )


def _prove(
    plan: Plan, nodes: Iterable[node_def_pb2.NodeDef], *, grappler: bool = False
) -> tuple[RunProof, list[Finding]]:
    names = Names(plan.placement, _model_nodes(), frozenset({"x"}))
    graph = PartitionedGraph([graph_pb2.GraphDef(node=nodes)], names, _DEVICES)
    return prove(Evidence("run", graph, {}, _DEVICES), plan, grappler=grappler)


_PLACEMENT = {"x": 0, "k": 0, "a": 0, "w": 1, "read": 1, "b": 1}
_TRANSFERS = [("a", 0, 1), ("k", 0, 1), ("b", 1, 0)]


def _as_planned() -> list[node_def_pb2.NodeDef]:
    return [
        _node("_arg_x_0_0", "_Arg", 0),
        _const("k", 0),
        _node("a", "Mul", 0, "_arg_x_0_0", "k"),
        *_pair("a", 0, 1),
        *_pair("k", 0, 1),
        _node("w", "VarHandleOp", 1),
        _node("read", "ReadVariableOp", 1, "w"),
        _node("b", "AddN", 1, "a@1", "k@1", "read"),
        *_pair("b", 1, 0),
        _node("_retval_b_0_0", "_Retval", 0, "b@0"),
    ]


def _without(nodes: Iterable[node_def_pb2.NodeDef], *names: str) -> list[node_def_pb2.NodeDef]:
    return [n for n in nodes if n.name not in names]


def test_a_graph_that_is_as_planned() -> None:
    proof, findings = _prove(_plan(_PLACEMENT, _TRANSFERS), _as_planned())
    assert findings == []
    assert (proof.operators, proof.planned, proof.transfers) == (5, 3, 3)  # x is the client's
    assert (proof.control, proof.unused, proof.replicated, proof.planned_weights) == (0, 0, 0, 0)


def test_an_operator_elsewhere_is_named() -> None:
    nodes = _as_planned()
    next(n for n in nodes if n.name == "a").device = _device(2)
    _, findings = _prove(_plan(_PLACEMENT, _TRANSFERS), nodes)
    assert [f.names for f in findings] == [("a",)]
    assert "'a' (Mul) runs on /device:CPU:2, planned on /device:CPU:0" in findings[0].text


def test_an_operator_that_is_not_there_is_named() -> None:
    nodes = [*_without(_as_planned(), "a", "a/send1"), _node("c", "Mul", 0, "_arg_x_0_0"),
             *_pair("c", 0, 1)[:1]]  # fmt: skip
    _, findings = _prove(_plan(_PLACEMENT, [("k", 0, 1), ("b", 1, 0)]), _without(nodes, "c/send1"))
    assert [f.text for f in findings] == [
        "run: operator 'a' (Mul) does not run, planned on /device:CPU:0"
    ]


def test_step_statistics_can_contradict_the_plan() -> None:
    plan = _plan(_PLACEMENT, _TRANSFERS)
    names = Names(plan.placement, _model_nodes(), frozenset({"x"}))
    graph = PartitionedGraph([graph_pb2.GraphDef(node=_as_planned())], names, _DEVICES)
    ran = {"a": frozenset({_device(0)}), "b": frozenset({_device(2)})}
    proof, findings = prove(Evidence("run", graph, ran, _DEVICES), plan, grappler=False)
    assert proof.executed == 1
    assert [f.text for f in findings] == [
        "run: operator 'b' (AddN) ran on /device:CPU:2, planned on /device:CPU:1",
        "run: /device:CPU:1 does not tell that it ran anything, such as 'read'",
    ]


def test_missing_and_unplanned_transfers_are_named() -> None:
    _, missing = _prove(_plan(_PLACEMENT, [*_TRANSFERS, ("x", 0, 2)]), _as_planned())
    assert [f.text for f in missing] == [
        "run: the transfer of 'x' from /device:CPU:0 to /device:CPU:2 is planned but does not "
        "happen"
    ]
    _, unplanned = _prove(_plan(_PLACEMENT, _TRANSFERS[1:]), _as_planned())
    assert [(f.kind, f.names) for f in unplanned] == [("transfer", ("a", "b"))]
    assert "'a' from /device:CPU:0 to /device:CPU:1 is not planned; read by 'b'" in (
        unplanned[0].text
    )


def test_sending_twice_is_not_as_planned() -> None:
    again = _pair("a", 0, 1)
    for node in again:
        node.name += "/again"
        node.attr["tensor_name"].s = b"again"
    _, findings = _prove(_plan(_PLACEMENT, _TRANSFERS), [*_as_planned(), *again])
    assert len(findings) == 0  # nobody reads the second copy, so it counts as unused
    reader = _node("_retval_a_0_1", "_Retval", 1, again[1].name)
    _, findings = _prove(_plan(_PLACEMENT, _TRANSFERS), [*_as_planned(), *again, reader])
    assert ["happens more often than planned" in f.text for f in findings] == [True]


def test_a_detour_over_a_third_device_is_found() -> None:
    """An `Identity` of a function call on CPU:2 relays a: 0 -> 2 -> 1 instead of 0 -> 1."""
    relay = [*_pair("a", 0, 2), _node("Func/f/input/_0", "Identity", 2, "a@2"),
             *_pair("Func/f/input/_0", 2, 1)]  # fmt: skip
    nodes = [*_without(_as_planned(), "a/send1", "a@1"), *relay]
    reader = next(n for n in nodes if n.name == "b")
    reader.input[0] = "Func/f/input/_0@1"
    _, findings = _prove(_plan(_PLACEMENT, _TRANSFERS), nodes)
    cpus = [_device(i) for i in range(3)]
    assert [f.text.split(";")[0] for f in findings] == [
        f"run: the transfer of 'a' from {cpus[0]} to {cpus[1]} is planned but does not happen",
        f"run: the transfer of 'a' from {cpus[0]} to {cpus[2]} is not planned",
        f"run: the transfer of 'a' from {cpus[2]} to {cpus[1]} is not planned",
    ]


@pytest.mark.parametrize("servers", [True, False])
def test_a_server_may_pass_a_tensor_on_to_another_of_its_devices(servers: bool) -> None:
    """k is read on 2 (by a) and on 1 (by b); it arrives at 2, and 1 has it from there.

    That is how TensorFlow does it where both are devices of one other server, and a detour else.
    """
    task = "/job:w/replica:0/task:1" if servers else ""
    devices = {
        "CPU:0": _device(0),
        "CPU:1": f"{task}/device:CPU:1",
        "CPU:2": f"{task}/device:CPU:2",
    }
    x = "_arg_x_0_0"
    nodes = [
        _node(x, "_Arg", 0), _const("k", 0), *_pair(x, 0, 2), *_pair("k", 0, 2),
        *_pair("k@2", 2, 1), _node("a", "Mul", 2, f"{x}@2", "k@2"), *_pair("a", 2, 1),
        *_as_planned()[7:9], _node("b", "AddN", 1, "a@1", "k@2@1", "read"), *_as_planned()[10:],
    ]  # fmt: skip
    placement = {**_PLACEMENT, "a": 2}
    transfers = [("x", 0, 2), ("k", 0, 2), ("k", 0, 1), ("a", 2, 1), ("b", 1, 0)]
    names = list(devices.values())
    plan = replace(
        _plan(placement, []),
        placement={name: names[cpu] for name, cpu in placement.items()},
        transfers=tuple(PlanTransfer(t, 0, names[s], names[d], 4) for t, s, d in transfers),
    )
    graph = PartitionedGraph(
        [graph_pb2.GraphDef(node=nodes)],
        Names(plan.placement, _model_nodes(), frozenset({"x"})), devices,
    )  # fmt: skip
    for grappler in (True, False):
        _, findings = prove(Evidence("run", graph, {}, devices), plan, grappler=grappler)
        assert bool(findings) != servers


@pytest.mark.parametrize(
    "end", ["a/ctrl/_1", "a/ctrl_S13", "GroupCrossDeviceControlEdges_0/a/ctrl_G86"]
)
def test_control_edges_are_counted_apart(end: str) -> None:
    """As one process, the client of servers and a server's worker name them."""
    control = [_const(end, 0), *_pair(end, 0, 1)]
    control[0].input.append("^a")
    control.append(_node("a/_2", "Identity", 1, f"{end}@1"))
    proof, findings = _prove(_plan(_PLACEMENT, _TRANSFERS), [*_as_planned(), *control])
    assert findings == []
    assert (proof.control, proof.transfers) == (1, 3)


def test_copies_of_a_small_constant_save_its_transfer() -> None:
    nodes = [*_without(_as_planned(), "k", "k/send1", "k@1"), _const("k/replicate/_0", 0),
             _const("k/replicate/_1", 1)]  # fmt: skip
    for node in nodes:
        cpu = 1 if node.name == "b" else 0
        node.input[:] = [f"k/replicate/_{cpu}" if i in ("k", "k@1") else i for i in node.input]
    proof, findings = _prove(_plan(_PLACEMENT, _TRANSFERS), nodes)
    assert findings == []
    assert (proof.replicated, proof.transfers, proof.operators) == (1, 2, 5)


def test_weights_that_move_are_named_unless_they_are_planned() -> None:
    nodes = _as_planned()
    for name in ("w", "read"):
        next(n for n in nodes if n.name == name).device = _device(2)
    nodes += _pair("read", 2, 1)
    next(n for n in nodes if n.name == "b").input[2] = "read@1"
    there = {**_PLACEMENT, "w": 2, "read": 2}
    _, findings = _prove(_plan(there, _TRANSFERS), nodes, grappler=True)
    assert [f.names for f in findings if f.kind == "weights"] == [("read", "b")]
    proof, findings = _prove(_plan(there, [*_TRANSFERS, ("read", 2, 1)]), nodes, grappler=True)
    assert findings == []
    assert proof.planned_weights == 1


def test_a_large_constant_is_a_weight_and_a_small_one_is_not() -> None:
    for size, weights in (
        (LARGE_CONSTANT_BYTES // 4, True),
        (LARGE_CONSTANT_BYTES // 4 - 1, False),
    ):
        nodes = [_const("k", 0, size) if n.name == "k" else n for n in _as_planned()]
        _, findings = _prove(_plan(_PLACEMENT, [_TRANSFERS[0], _TRANSFERS[2]]), nodes)
        assert any(f.kind == "weights" for f in findings) is weights


def test_with_grappler_no_pair_of_devices_may_see_more_transfers() -> None:
    """Grappler may rename what it sends, but not add to it: 2 planned from 0 to 1, 3 happen."""
    more = [_node("new", "Neg", 0, "a"), *_pair("new", 0, 1)]
    plan = _plan(_PLACEMENT, _TRANSFERS)
    _, findings = _prove(plan, [*_as_planned(), *more], grappler=True)
    assert [f.text for f in findings] == [
        "run: 3 transfers from /device:CPU:0 to /device:CPU:1, planned are 2; not planned: 'new'"
    ]
    fewer = _without(_as_planned(), "k/send1", "k@1")
    next(n for n in fewer if n.name == "b").input.remove("k@1")
    assert _prove(plan, fewer, grappler=True)[1] == []


def test_an_operator_inside_a_onednn_kernel_counts() -> None:
    """oneDNN merges a (read by b) into b after partitioning; `Mul` is in the kernel's name."""
    placement = {**_PLACEMENT, "a": 1}
    nodes = [
        _node("_arg_x_0_0", "_Arg", 0),
        *_pair("_arg_x_0_0", 0, 1),
        _const("k", 0),
        *_pair("k", 0, 1),
        _node("w", "VarHandleOp", 1),
        _node("read", "ReadVariableOp", 1, "w"),
        _node("b", "_MklMulWithAddN", 1, "_arg_x_0_0@1", "k@1", "read"),
        *_pair("b", 1, 0),
        _node("_retval_b_0_0", "_Retval", 0, "b@0"),
    ]
    plan = _plan(placement, [("x", 0, 1), ("k", 0, 1), ("b", 1, 0)])
    proof, findings = _prove(plan, nodes)
    assert findings == []
    assert proof.operators == 5
    next(n for n in nodes if n.name == "b").op = "_MklAddN"
    assert [f.names for f in _prove(plan, nodes)[1]] == [("a",)]

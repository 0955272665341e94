"""Computes what operators cost on devices that are not here, with Grappler's virtual cluster.

TensorFlow's own cost estimator gives each operator a compute time, from its floating-point
operations and the device's peak, and a memory time, from the bytes of its operands and the device's
memory bandwidth; the two add up. Grappler hands out their sum in nanoseconds but the parts only in
microseconds, so the memory time is found as the difference to a device of boundless bandwidth.

A CPU takes that sum. For a GPU Grappler only counts: on a device of known speed its times are
operations and bytes, and `gpu_peaks` says what the GPU takes for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

from tensorflow.core.protobuf import device_properties_pb2
from tensorflow.python.framework.errors_impl import OpError
from tensorflow.python.grappler import cluster as grappler_cluster
from tensorflow.python.grappler import item as grappler_item

from moirai_tf.cluster import Device
from moirai_tf.cost.gpu_peaks import Work, kernel_ns
from moirai_tf.cost.loops import trip_count
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion import ops
from moirai_tf.graph.bodies import body_of
from moirai_tf.graph.graph import CALL_OPS, CLIENT_OPS, LOOPS, LOWERED_OPS, Graph, Operator
from moirai_tf.graph.graphdef import meta_graph, to_graph_def
from moirai_tf.graph.kernels import host_memory
from moirai_tf.graph.shapes import ShapeError
from moirai_tf.model.validate import function_attrs

Properties: TypeAlias = device_properties_pb2.DeviceProperties

Counts: TypeAlias = dict[bytes, Mapping[str, int]]
"""What Grappler says of one graph: a device's properties -> node -> nanoseconds."""
Column = list[tuple[int | None, int]]
"""(time, traffic) of each operator, in nanoseconds; time None where the device has no kernel."""

_BOUNDLESS_KB_PER_S = 10**15
_HOST = device_properties_pb2.NamedDevice(
    name="/device:CPU:0",
    properties=device_properties_pb2.DeviceProperties(type="CPU", frequency=1000, num_cores=1),
)
"""Takes what a GPU has no kernel for; its times are not used."""
_COUNTER = device_properties_pb2.DeviceProperties(
    type="GPU", frequency=1, num_cores=1, bandwidth=10**6, environment={"architecture": "6.0"}
)
"""A GPU that moves one byte in a nanosecond, and makes 64 lanes x 2 operations in a microsecond."""
_COUNTED_PER_NS = 0.128

_CONTRACTIONS = frozenset(ops.CONTRACTIONS) - {"DepthwiseConv2dNative"} | {
    "Conv2DBackpropInput", "Conv3DBackpropInputV2",
}  # fmt: skip
"""What tensor cores compute; a depthwise convolution has too little to reuse for them."""
_NO_KERNEL = (
    ops.IDENTITIES | ops.SHAPE_SOURCES | ops.VARIABLE_READS | ops.FRAME_OPS | LOWERED_OPS | CALL_OPS
    | {*ops.VIEWS, "Const", "HostConst", "NoOp", "ControlTrigger", "EnsureShape", "Bitcast",
       "PlaceholderWithDefault", "BroadcastGradientArgs"}
)  # fmt: skip
"""Ops that start nothing on a GPU: they hand on a buffer, or only the host does something. On a CPU
they move nothing, where Grappler counts some as if they copied what they are given."""


def analytical(graph: Graph, device: Device, trips: int, counts: Counts | None = None) -> Column:
    """Costs of every operator on one device, as if all that can run there did.

    A loop costs its trip count times its body and condition, a branch its most expensive function,
    a function that the runtime does not inline the sum of its operators.

    Args:
      graph: the flat graph, with static shapes.
      device: a CPU or GPU with the properties that Grappler needs.
      trips: iterations of a loop whose count is not static.
      counts: of other devices and this graph; it grows. Grappler counts once for all GPUs.

    Raises:
      MoiraiError: a property of the device is missing or unknown, or Grappler refuses the graph.
    """
    _check(device)
    own = _own_costs(graph, device, {} if counts is None else counts)
    return [
        (None, 0)
        if device.type not in operator.device_types
        else (0, 0)
        if operator.op in CLIENT_OPS
        else (
            own[operator.name][0] + _functions_time(graph, operator, device, trips),
            own[operator.name][1],
        )
        for operator in graph.operators
    ]


def starts_kernel(operator: Operator) -> bool:
    """Whether an operator makes a GPU run a kernel, rather than the host."""
    if operator.op in _NO_KERNEL or not operator.outputs:
        return False
    hosted = host_memory(operator.node, "GPU", ([], [spec.dtype for spec in operator.outputs]))
    return len(hosted.outputs) < len(operator.outputs)


def _check(device: Device) -> None:
    needed = ["frequency_mhz", "num_cores", "memory_bytes_per_s"]
    needed += ["architecture"] if device.type == "GPU" else []
    for name in needed:
        if not getattr(device, name):
            raise MoiraiError(
                f"device {device.name!r} has no {name.replace('bytes_per_s', 'bandwidth')}",
                why="the costs of a device that is not here are computed from its properties",
                fix="add the property to the cluster file; docs/cluster.md says how to find it",
            )


def _own_costs(graph: Graph, device: Device, counts: Counts) -> Mapping[str, tuple[int, int]]:
    """Node -> (time, traffic) in nanoseconds, without the functions that it holds."""
    properties = _COUNTER if device.type == "GPU" else _cpu_properties(device)
    boundless = Properties()
    boundless.CopyFrom(properties)
    boundless.bandwidth = _BOUNDLESS_KB_PER_S
    whole, compute = (_counted(graph, wanted, counts) for wanted in (properties, boundless))
    memory = {name: max(0, whole[name] - compute[name]) for name in whole}
    if device.type == "CPU":
        moving = {operator.name for operator in graph.operators if operator.op not in _NO_KERNEL}
        return {
            name: (whole[name], memory[name]) if name in moving else (compute[name], 0)
            for name in whole
        }
    return {
        operator.name: (0, 0)
        if operator.op in graph.functions
        else _on_gpu(operator, device, compute[operator.name], memory[operator.name])
        for operator in graph.operators
        if operator.name in whole
    }


def _cpu_properties(device: Device) -> Properties:
    return Properties(
        type=device.type,
        frequency=device.frequency_mhz,
        num_cores=device.num_cores,
        bandwidth=max(1, (device.memory_bytes_per_s or 0) // 1000),
    )


def _on_gpu(operator: Operator, device: Device, counted_ns: int, nbytes: int) -> tuple[int, int]:
    """(time, traffic) on a GPU of an operator that `_COUNTER` took so long for."""
    if not starts_kernel(operator):
        return 0, 0
    work = Work(
        operations=math.floor(counted_ns * _COUNTED_PER_NS),
        nbytes=nbytes,
        dtype=operator.outputs[0].dtype,
        contraction=operator.op in _CONTRACTIONS,
    )
    return kernel_ns(device, work)


def _functions_time(graph: Graph, operator: Operator, device: Device, trips: int) -> int:
    """Time of the functions that an operator runs, 0 if it holds none.

    A branch that does not suit its arguments (`tf.cond(tf.rank(x) > 1, ...)`) is never taken.

    Raises:
      ShapeError: no function of a branch suits them, or that of anything else does not.
    """
    if operator.op in graph.functions:
        return _body_time(body_of(graph, operator, operator.op).graph, device, trips)
    if operator.op not in LOWERED_OPS | CALL_OPS:
        return 0
    times: dict[str, int] = {}
    unsuited: ShapeError | None = None
    for attr, index, function in function_attrs(operator.node):
        try:
            time = _body_time(body_of(graph, operator, function.name).graph, device, trips)
        except ShapeError as error:
            unsuited = error
        else:
            times[attr if index < 0 else f"{attr}[{index}]"] = time
    if unsuited is not None and (operator.op in LOOPS | CALL_OPS or not times):
        raise unsuited
    if operator.op not in LOOPS:
        return max(times.values())
    counted = trip_count(graph, operator)
    count = trips if counted is None else counted
    return times["cond"] + count * (times["cond"] + times["body"])


def _body_time(body: Graph, device: Device, trips: int) -> int:
    """Sum over a function's operators; its host operators count nothing on a GPU."""
    own = _own_costs(body, device, {})
    return sum(
        own[operator.name][0] + _functions_time(body, operator, device, trips)
        for operator in body.operators
        if device.type in operator.device_types and operator.op not in CLIENT_OPS
    )


def _counted(graph: Graph, properties: Properties, counts: Counts) -> Mapping[str, int]:
    """Grappler's simulated run, from memory if there was one."""
    key = properties.SerializeToString(deterministic=True)
    if key not in counts:
        counts[key] = _grappler_times(graph, properties)
    return counts[key]


def _grappler_times(graph: Graph, properties: Properties) -> Mapping[str, int]:
    """Grappler's simulated run on one device: node -> nanoseconds."""
    target = device_properties_pb2.NamedDevice(
        name=f"/device:{properties.type}:0", properties=properties
    )
    devices = [target] if properties.type == "CPU" else [_HOST, target]
    placement = {
        operator.name: target.name if properties.type in operator.device_types else _HOST.name
        for operator in graph.operators
    }
    graph_def = to_graph_def(graph, placement, known_feeds=True)
    read = {text.lstrip("^").partition(":")[0] for node in graph_def.node for text in node.input}
    sinks = [node.name for node in graph_def.node if node.name not in read]
    cluster = grappler_cluster.Cluster(devices=devices, disable_timeline=False)
    try:
        item = grappler_item.Item(meta_graph(graph_def, sinks), ignore_colocation=True)
        _, _, stats = cluster.MeasureCosts(item)
    except (OpError, ValueError, RuntimeError) as error:
        raise MoiraiError(
            f"Grappler cannot compute costs of this graph: {error}",
            why="they are the costs of devices that are not here",
            fix="give measured costs of these devices as a file (--costs)",
        ) from error
    finally:
        cluster.Shutdown()
    return {
        node.node_name: node.op_end_rel_nanos - node.op_start_rel_nanos
        for measured in stats.dev_stats
        for node in measured.node_stats
    }

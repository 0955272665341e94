"""Which device types can run a node: TensorFlow's kernel registry, asked with the node's types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tensorflow.python.framework import kernels, op_def_registry

from moirai_tf.cluster import DEVICE_TYPES
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import CLIENT_OPS
from moirai_tf.model.op_types import attr_of, type_name
from moirai_tf.model.validate import function_attrs

_CLIENT_SIDE = CLIENT_OPS | {"_Arg"}
_ON_HOST = frozenset({"string", "resource"})


def device_types(node: Any, library: Mapping[str, Any]) -> tuple[str, ...]:
    """Device types with a kernel for the node and for everything inside its functions."""
    return tuple(t for t in DEVICE_TYPES if why_not(node, t, library) is None)


def why_not(node: Any, device_type: str, library: Mapping[str, Any]) -> str | None:
    """Why a device type cannot run the node, or None if it can.

    Args:
      node: a `NodeDef`.
      device_type: `CPU` or `GPU`.
      library: function name -> `FunctionDef`, for nodes with bodies.
    """
    return _why_not(node, device_type, library, frozenset())


def registered_kernels(op: str) -> Sequence[Any]:
    """The `KernelDef`s that this TensorFlow has for an op."""
    return _kernels_of(op)


def has_kernels(
    device_type: str, registered: Callable[[str], Sequence[Any]] = registered_kernels
) -> bool:
    """Whether TensorFlow was built for a device type; `tensorflow-cpu` was not for GPUs."""
    return any(kernel.device_type == device_type for kernel in registered("MatMul"))


def require_gpu_kernels(
    gpus: Sequence[str], registered: Callable[[str], Sequence[Any]] = registered_kernels
) -> None:
    """Refuses GPUs where nothing could be planned on them.

    Args:
      gpus: names of a cluster's GPUs, if it has any.
      registered: the registry of kernels.

    Raises:
      MoiraiError: there are GPUs, and TensorFlow has no kernels for any.
    """
    if gpus and not has_kernels("GPU", registered):
        raise MoiraiError(
            f"the cluster has {gpus[0]!r}, but this TensorFlow has no kernels for GPUs",
            why="which operators a GPU can run is asked of TensorFlow's kernels, so all would be "
            "planned on CPUs without a word",
            fix="install TensorFlow with them (pip install 'moirai_tf[gpu]') in the place of "
            "tensorflow-cpu, leave the GPUs out of the cluster file, or give a cost table that was "
            "made where TensorFlow has them (--costs)",
        )


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Ports that a kernel has in host memory; the rest are in its device's own memory."""

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()


def host_memory(node: Any, device_type: str, specs: Sequence[Sequence[str]]) -> HostMemory:
    """What the kernel of a node on a device type takes and gives in host memory.

    On a CPU all memory is host memory, and nothing is special. Elsewhere the registered kernel says
    it by argument (`KernelDef.host_memory_arg`), and some types never leave the host.
    Source: TensorFlow's tensorflow/core/framework/memory_types.cc.

    Args:
      node: a `NodeDef`.
      device_type: `CPU` or `GPU`.
      specs: the types of its inputs and of its outputs, as TensorFlow names them.
    """
    if device_type == "CPU":
        return HostMemory()
    op_def = op_def_registry.get(node.op)
    kernel = None if op_def is None else _kernel(node, device_type)
    hosted = set() if kernel is None else set(kernel.host_memory_arg)
    ports = [{i for i, dtype in enumerate(types) if dtype in _ON_HOST} for types in specs]
    if op_def is not None and hosted:
        for found, arguments in zip(ports, (op_def.input_arg, op_def.output_arg), strict=True):
            first = 0
            for argument in arguments:
                count = _count(node, argument)
                if argument.name in hosted:
                    found.update(range(first, first + count))
                first += count
    return HostMemory(frozenset(ports[0]), frozenset(ports[1]))


def _count(node: Any, argument: Any) -> int:
    """How many tensors an argument of an operator stands for."""
    if argument.number_attr:
        return int(attr_of(node, argument.number_attr).i)
    if argument.type_list_attr:
        return len(attr_of(node, argument.type_list_attr).list.type)
    return 1


def _kernel(node: Any, device_type: str) -> Any | None:
    """The `KernelDef` that runs a node on a device type, one for all devices only if need be."""
    types = dict(_types_of(node))
    label = attr_of(node, "_kernel").s.decode(errors="replace")
    for wanted in (device_type, "DEFAULT"):
        for kernel in _kernels_of(node.op):
            if (kernel.device_type, kernel.label) == (wanted, label) and _fits(kernel, types):
                return kernel
    return None


def _types_of(node: Any) -> tuple[tuple[str, int], ...]:
    defaults = _type_attributes(node.op)
    return tuple((name, attr_of(node, name).type or default) for name, default in defaults)


def _why_not(
    node: Any, device_type: str, library: Mapping[str, Any], inside: frozenset[str]
) -> str | None:
    if node.op in _CLIENT_SIDE:
        return None
    if node.op not in library:
        types = _types_of(node)
        label = attr_of(node, "_kernel").s.decode(errors="replace")
        reason = _registry(node.op, device_type, types, label)
        if reason is not None:
            return reason
    called = [function.name for _, _, function in function_attrs(node)]
    if node.op in library:
        called.append(node.op)
    for name in called:
        if name in inside or name not in library:
            continue
        for inner in library[name].node_def:
            reason = _why_not(inner, device_type, library, inside | {name})
            if reason is not None:
                return f"its function {name!r} holds {inner.name!r}: {reason}"
    return None


@cache
def _registry(
    op: str, device_type: str, types: tuple[tuple[str, int], ...], label: str
) -> str | None:
    registered = [
        kernel
        for kernel in _kernels_of(op)
        if kernel.device_type in (device_type, "DEFAULT") and kernel.label == label
    ]
    if not registered:
        return f"TensorFlow has no {device_type} kernel for {op}"
    if any(_fits(kernel, dict(types)) for kernel in registered):
        return None
    shown = ", ".join(f"{name}={type_name(dtype)}" for name, dtype in types)
    return f"TensorFlow has no {device_type} kernel for {op} with {shown}"


@cache
def _type_attributes(op: str) -> tuple[tuple[str, int], ...]:
    """Attributes that hold a type, with the default that exporters leave out."""
    op_def = op_def_registry.get(op)
    attributes = () if op_def is None else op_def.attr
    return tuple((a.name, a.default_value.type) for a in attributes if a.type == "type")


@cache
def _kernels_of(op: str) -> tuple[Any, ...]:
    return tuple(kernels.get_registered_kernels_for_op(op).kernel)


def _fits(kernel: Any, types: Mapping[str, int]) -> bool:
    return all(
        constraint.name not in types
        or types[constraint.name] in constraint.allowed_values.list.type
        for constraint in kernel.constraint
    )

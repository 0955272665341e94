"""Which kernels the plugin registers: those that would launch CUDA code on a real GPU.

TensorFlow's wheel registers its CUDA kernels whether there is a GPU or not. Each gets a twin with
the same types and the same arguments in host memory, and a higher priority, so that the same graphs
have the same kernels, and the same copies, as on a real GPU.
"""

from __future__ import annotations

from typing import Any

from moirai_tf.errors import MoiraiError

_PRIORITY = 100
"""Added to that of the kernel; TensorFlow's own are 0 and 1."""

_OWN = frozenset({
    "Assign", "AssignVariableOp", "Bitcast", "Const", "DestroyTemporaryVariable",
    "EmptyTensorList", "Enter", "Exit", "ExpandDims", "Identity", "IsVariableInitialized", "Merge",
    "NextIteration", "OptionalFromValue", "OptionalGetValue", "OptionalHasValue", "OptionalNone",
    "PlaceholderWithDefault", "PreventGradient", "Rank", "Reshape", "Shape", "ShapeN", "Size",
    "Squeeze", "StopGradient", "Switch", "SyncDevice", "TemporaryVariable",
    "TensorListElementShape", "TensorListLength", "TensorListPushBack", "TensorListReserve",
    "TensorListSetItem", "Variable", "VariableV2", "_EagerConst", "_SwitchN",
})  # fmt: skip
"""Kernels that launch nothing on a real GPU either: they pass buffers on, or know only shapes."""

_FOREIGN = ("Xla", "_Xla", "Collective", "Nccl", "_Nccl", "SparseMatrix", "CSR")
"""Beginnings of operators that only real GPUs have, or that speak to other devices."""

_FOREIGN_PARTS = ("Dataset", "Iterator", "ScopedAllocator", "ParallelConcat", "CSRSparse", "Debug")

_WRITTEN = frozenset({"CudnnRNN", "CudnnRNNV2", "CudnnRNNV3"})
"""Operators without a kernel on CPUs that the plugin computes itself."""

_READS_VARIABLE = frozenset({"ResourceGather", "ResourceGatherNd"})
"""Operators on a variable that the plugin knows to run on its value."""


def kernel_table() -> str:
    """The C source of the table of registrations.

    Raises:
      MoiraiError: this TensorFlow has no kernels for GPUs.
    """
    from tensorflow.python.framework import kernels

    known = kernels.get_all_registered_kernels().kernel
    computable = _WRITTEN | {kernel.op for kernel in known if kernel.device_type == "CPU"}
    twins = {
        _twin(kernel): kernel.op
        for kernel in known
        if kernel.device_type == "GPU" and kernel.op in computable and _launches(kernel)
    }
    if not twins:
        raise MoiraiError(
            "this TensorFlow has no kernels for GPUs",
            why="an emulated GPU has the kernels that TensorFlow has for real ones",
            fix="install the wheel `tensorflow` in the place of `tensorflow-cpu`",
        )
    rows = [f'    {{"{op}", {_literal(data)}}},' for data, op in sorted(twins.items())]
    return "\n".join([
        '#include "emulated_gpu.h"',
        "const KernelEntry kernel_table[] = {",
        *rows,
        "};",
        "const int kernel_table_size = sizeof kernel_table / sizeof *kernel_table;",
        "",
    ])  # fmt: skip


def _launches(kernel: Any) -> bool:
    """Whether a real GPU would run CUDA code, and the CPU's kernel can do it instead."""
    from tensorflow.python.framework import op_def_registry

    op = op_def_registry.get(kernel.op)
    if op is None or kernel.priority >= _PRIORITY or kernel.label or kernel.op in _OWN:
        return False
    if kernel.op.startswith(_FOREIGN) or any(part in kernel.op for part in _FOREIGN_PARTS):
        return False
    arguments = [*op.input_arg, *op.output_arg]
    if all(argument.name in kernel.host_memory_arg for argument in arguments):
        return False  # it is the CPU's kernel already
    if kernel.op in _READS_VARIABLE:
        return True
    return not any(argument.is_ref or _is_resource(argument) for argument in arguments)


def _is_resource(argument: Any) -> bool:
    from tensorflow.core.framework import types_pb2

    return bool(argument.type == types_pb2.DT_RESOURCE)


def _twin(kernel: Any) -> bytes:
    twin = type(kernel)()
    twin.CopyFrom(kernel)
    twin.priority += _PRIORITY
    # The C API takes a string that ends at a zero byte. Constraints to empty strings would have
    # one: without them the kernel takes any string.
    kept = [one for one in kernel.constraint if b"\0" not in one.SerializeToString()]
    del twin.constraint[:]
    twin.constraint.extend(kept)
    data: bytes = twin.SerializeToString(deterministic=True)
    return data


def _literal(data: bytes) -> str:
    return '"' + "".join(f"\\{byte:03o}" for byte in data) + '"'

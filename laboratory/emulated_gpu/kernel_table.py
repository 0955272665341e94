"""Which kernels the plugin registers: those that would launch CUDA code on a real GPU.

TensorFlow's wheel registers its CUDA kernels whether there is a GPU or not. Each gets a twin with
the same types and the same arguments in host memory, and a higher priority, so that the same graphs
have the same kernels, and the same copies, as on a real GPU. Those that cannot be emulated fail,
where TensorFlow's own would crash on a device without CUDA.
"""

from __future__ import annotations

from typing import Any

from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import kernels, op_def_registry

from moirai_tf.errors import MoiraiError

_PRIORITY = 100
"""Added to that of the kernel; TensorFlow's own are 0 and 1."""

_OWN = frozenset({
    "AssignVariableOp", "Bitcast", "Const", "DestroyTemporaryVariable",
    "EmptyTensorList", "Enter", "Exit", "ExpandDims", "Identity", "IsVariableInitialized", "Merge",
    "NextIteration", "OptionalFromValue", "OptionalGetValue", "OptionalHasValue", "OptionalNone",
    "PlaceholderWithDefault", "PreventGradient", "Rank", "Reshape", "Shape", "ShapeN", "Size",
    "Squeeze", "StopGradient", "Switch", "SyncDevice", "TemporaryVariable",
    "TensorListElementShape", "TensorListLength", "TensorListPushBack", "TensorListReserve",
    "TensorListSetItem", "Variable", "VariableV2", "_EagerConst", "_SwitchN",
})  # fmt: skip
"""Kernels that launch nothing on a real GPU either: they pass buffers on, or know only shapes."""

_HOST = (
    "Anonymous", "BatchFunction", "Collective", "DeleteIterator", "DummyIterationCounter", "Fact",
    "GetOptions", "IsTensorFloat32Enabled", "Iterator", "MakeIterator", "Ref", "SleepOp",
    "StatelessRandomGet", "TensorArrayClose", "TensorArrayRead", "TensorArraySize",
    "TensorArrayWrite", "_CopyFrom", "_ScopedAllocator",
)  # fmt: skip
"""Beginnings of more of these: data sets, references, what other devices are told."""

_HOST_TOO = frozenset({"TensorArray", "TensorArrayV2", "TensorArrayV3"})

_FOREIGN = ("CSR", "Debug", "Nccl", "ParallelConcat", "SparseMatrix", "Xla", "_Nccl",
            "_ParallelConcat", "_Xla")  # fmt: skip
"""Beginnings of operators that a kernel on a CPU does not replace."""

_COMPILED = frozenset({
    "XlaConvV2", "XlaDotV2", "XlaDynamicSlice", "XlaDynamicUpdateSlice", "XlaEinsum", "XlaGather",
    "XlaPad", "XlaSort",
})  # fmt: skip
"""Operators that TensorFlow compiles for a CPU one by one, as it does for a GPU."""

_WRITTEN = frozenset({"CudnnRNN", "CudnnRNNV2", "CudnnRNNV3"})
"""Operators without a kernel on CPUs that the plugin computes itself."""

_READS_VARIABLE = frozenset({"ResourceGather", "ResourceGatherNd"})
"""Operators on a variable that the plugin knows to run on its value."""


_WRITES_REFERENCE = frozenset({"Assign"})
"""Operators on a reference variable that the plugin writes."""


def kernel_table() -> str:
    """The C source of the table of registrations.

    Raises:
      MoiraiError: this TensorFlow has no kernels for GPUs.
    """
    known = kernels.get_all_registered_kernels().kernel
    computable = _WRITTEN | {kernel.op for kernel in known if kernel.device_type == "CPU"}
    twins = {
        _twin(kernel): (kernel.op, kernel.op in computable and _emulated(kernel.op))
        for kernel in known
        if kernel.device_type == "GPU" and _launches(kernel)
    }
    if not twins:
        raise MoiraiError(
            "this TensorFlow has no kernels for GPUs",
            why="an emulated GPU has the kernels that TensorFlow has for real ones",
            fix="install the wheel `tensorflow` in the place of `tensorflow-cpu`",
        )
    rows = [
        f'    {{"{op}", {_literal(data)}, {int(emulated)}}},'
        for data, (op, emulated) in sorted(twins.items())
    ]
    return "\n".join([
        '#include "emulated_gpu.h"',
        "const KernelEntry kernel_table[] = {",
        *rows,
        "};",
        "const int kernel_table_size = sizeof kernel_table / sizeof *kernel_table;",
        "",
    ])  # fmt: skip


def _launches(kernel: Any) -> bool:
    """Whether a real GPU would run CUDA code."""
    op = op_def_registry.get(kernel.op)
    if op is None or kernel.priority >= _PRIORITY or kernel.label:
        return False
    if kernel.op in _OWN | _HOST_TOO or kernel.op.startswith(_HOST) or "Dataset" in kernel.op:
        return False
    # With all arguments in host memory it is the CPU's kernel already.
    arguments = [*op.input_arg, *op.output_arg]
    return not all(argument.name in kernel.host_memory_arg for argument in arguments)


def _emulated(name: str) -> bool:
    """Whether the plugin can do what the kernel does, if there is one on CPUs."""
    if name in _READS_VARIABLE | _WRITES_REFERENCE | _COMPILED:
        return True
    op = op_def_registry.get(name)
    arguments = [*op.input_arg, *op.output_arg]
    return not name.startswith(_FOREIGN) and not any(
        argument.is_ref or argument.type == types_pb2.DT_RESOURCE for argument in arguments
    )


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

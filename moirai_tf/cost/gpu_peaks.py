"""What NVIDIA's GPUs can do, which Grappler does not know: a table by compute capability.

Grappler takes every GPU since Pascal for one of 64 lanes per multiprocessor, compares capabilities
as text, knows no tensor cores, and lets kernels start for nothing. Its counts of operations and
bytes are used with the figures below. `python -m benchmarks.gpu_peaks` compares both with published
figures; docs/costs.md has the result.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from moirai_tf.cluster import Device
from moirai_tf.errors import MoiraiError

_OPERATIONS_PER_MULTIPLY_ADD = 2

VECTOR_SHARE = 0.85
"""Part of the peak of FP32 lanes that kernels reach. It puts ResNet-50 at a batch of 256 on a V100
and a T4, where launches count little, at 1.36 and 0.97 of what NVIDIA published in
DeepLearningExamples (`benchmarks/gpu_peaks.py`)."""
TENSOR_SHARE = 0.5
"""The same of tensor cores; ResNet-50 in TF32 on an A100, batch 256, is at 0.71 with it."""
BANDWIDTH_SHARE = 0.8
"""Part of the nominal memory bandwidth that kernels reach; from the same three, whose operators
between convolutions do nothing but move their operands."""
LAUNCH_NS = 25_000
"""What a kernel takes however little it does: mostly the host's part, where TensorFlow's executor
prepares the operator, allocates its outputs and launches it. It puts ResNet-50 at a batch of 1, 198
kernels, at 1.02, 1.03 and 0.99 of what DeepLearningExamples has of an A100, a V100 and a T4."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Multiply-adds that one multiprocessor completes in one cycle, without sparsity."""

    float32: int
    """On FP32 lanes: all operators but contractions, and these where tensor cores cannot."""
    tensor_float32: int = 0
    """Contractions of float32 where TF32 exists, which TensorFlow uses unless told not to."""
    float16: int = 0
    """Contractions of float16 on tensor cores, accumulated in float32."""
    bfloat16: int = 0
    float64: int = 2


# Lanes: CUDA C++ Programming Guide, "Arithmetic Instructions", results per cycle, multiprocessor.
# Tensor cores: TFLOP/s of NVIDIA's whitepapers and datasheets, dense, FP16 with FP32 accumulation,
# then TF32, over 2 x multiprocessors x boost clock: V100 125 (80 x 1530 MHz), T4 65 (40 x 1590),
# A100 312, 156 (108 x 1410), A10 125, 62.5 (72 x 1695), L4 121, 60 (58 x 2040), H100 SXM 989, 495
# (132 x 1830), B200 2250, 1125 (148 x 1860), RTX 5090 209.5, 104.8 (170 x 2407).
# GeForce cards of 8.6 and 8.9 have half the tensor rates of data centre cards of that capability.
_RATES = {
    (5, 0): Rates(128, float64=4),
    (6, 0): Rates(64, float64=32),
    (6, 1): Rates(128, float64=4),
    (7, 0): Rates(64, float16=512, float64=32),
    (7, 5): Rates(64, float16=512),
    (8, 0): Rates(64, tensor_float32=512, float16=1024, bfloat16=1024, float64=32),
    (8, 6): Rates(128, tensor_float32=256, float16=512, bfloat16=512),
    (8, 9): Rates(128, tensor_float32=256, float16=512, bfloat16=512),
    (9, 0): Rates(128, tensor_float32=1024, float16=2048, bfloat16=2048, float64=64),
    (10, 0): Rates(128, tensor_float32=2048, float16=4096, bfloat16=4096, float64=64),
    (12, 0): Rates(128, tensor_float32=128, float16=256, bfloat16=256),
}


@dataclass(frozen=True, slots=True)
class Work:
    """What one kernel does."""

    operations: int
    """Floating-point operations, a multiply-add counted as two."""
    nbytes: int
    """Bytes of its operands, read and written once."""
    dtype: str
    """Of its output."""
    contraction: bool
    """Whether it is a product or convolution, which tensor cores compute."""


def rates_of(architecture: str) -> Rates:
    """Rates of a compute capability such as `8.6`; of the next older one if it is not known.

    Raises:
      MoiraiError: it is no capability, or older than all that are known.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)", architecture)
    capability = (int(match[1]), int(match[2])) if match else (0, 0)
    known = [other for other in _RATES if other <= capability]
    if known:
        return _RATES[max(known)]
    oldest = ".".join(map(str, min(_RATES)))
    raise MoiraiError(
        f"architecture {architecture!r} is not a compute capability of {oldest} or later",
        why="the computed costs of a GPU depend on what its multiprocessors can do",
        fix="give the compute capability as two numbers, such as architecture: '7.5'",
    )


def peak_flops(device: Device, dtype: str, *, contraction: bool) -> float:
    """Nominal floating-point operations per second, a multiply-add counted as two."""
    rates = rates_of(device.architecture)
    rate = (_tensor_rate(rates, dtype) if contraction else 0) or _vector_rate(rates, dtype)
    cycles = (device.num_cores or 0) * (device.frequency_mhz or 0) * 1e6
    return rate * _OPERATIONS_PER_MULTIPLY_ADD * cycles


def launch_ns(device: Device) -> int:
    """What a kernel takes on a GPU however little it does."""
    return LAUNCH_NS if device.launch_ns is None else device.launch_ns


def kernel_ns(device: Device, work: Work) -> tuple[int, int]:
    """(time, traffic) of one kernel, in nanoseconds.

    The roofline of Williams et al. (2009): a launch, then the longer of computing and of moving
    operands, which overlap. Traffic is what moving takes longer than computing.
    """
    tensor = work.contraction and _tensor_rate(rates_of(device.architecture), work.dtype) > 0
    share = TENSOR_SHARE if tensor else VECTOR_SHARE
    flops = peak_flops(device, work.dtype, contraction=work.contraction) * share
    bytes_per_s = (device.memory_bytes_per_s or 1) * BANDWIDTH_SHARE
    compute = math.ceil(work.operations * 1e9 / flops)
    memory = math.ceil(work.nbytes * 1e9 / bytes_per_s)
    return launch_ns(device) + max(compute, memory), max(0, memory - compute)


def _tensor_rate(rates: Rates, dtype: str) -> int:
    by_type = {
        "float32": rates.tensor_float32,
        "float16": rates.float16,
        "bfloat16": rates.bfloat16,
    }
    return by_type.get(dtype, 0)


def _vector_rate(rates: Rates, dtype: str) -> int:
    return rates.float64 if dtype in ("float64", "complex128") else rates.float32

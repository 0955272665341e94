"""Peaks of GPUs against NVIDIA's own figures."""

from __future__ import annotations

import pytest

from moirai_tf.cluster import Device
from moirai_tf.cost.gpu_peaks import Work, kernel_ns, peak_flops, rates_of


def _gpu(capability: str, multiprocessors: int, mhz: int) -> Device:
    return Device(
        "/device:GPU:0", "GPU", frequency_mhz=mhz, num_cores=multiprocessors,
        architecture=capability, memory_bytes_per_s=10**12,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "float32", "tensor_float32", "float16"),
    [
        (_gpu("6.1", 20, 1063), 5.4, None, None),  # P4
        (_gpu("6.0", 56, 1480), 10.6, None, None),  # P100
        (_gpu("7.0", 80, 1530), 15.7, None, 125),  # V100
        (_gpu("7.5", 40, 1590), 8.1, None, 65),  # T4
        (_gpu("8.0", 108, 1410), 19.5, 156, 312),  # A100
        (_gpu("8.6", 72, 1695), 31, 62.5, 125),  # A10
        (_gpu("8.9", 58, 2040), 30, 60, 121),  # L4
        (_gpu("9.0", 132, 1830), 62, 495, 989),  # H100 SXM
        (_gpu("9.0", 132, 1980), 66.9, None, None),  # the same, at the clock of its lanes
        (_gpu("10.0", 148, 1965), 75, None, None),  # B200
        (_gpu("10.0", 148, 1860), None, 1125, 2250),  # the same, at the clock of its tensor cores
        (_gpu("12.0", 170, 2407), 105, 105, 209.5),  # RTX 5090
    ],
)
def test_peaks_are_nvidias(device, float32, tensor_float32, float16):
    for nominal, dtype, contraction in (
        (float32, "int32", False), (tensor_float32, "float32", True), (float16, "float16", True),
    ):  # fmt: skip
        if nominal is not None:
            peak = peak_flops(device, dtype, contraction=contraction) / 1e12
            assert peak == pytest.approx(nominal, rel=0.02)


def test_capabilities_are_numbers_not_text():
    # "10.0" < "8.0" as text.
    assert rates_of("10.0").tensor_float32 > rates_of("9.0").tensor_float32 > 0
    assert rates_of("8.7") == rates_of("8.6")
    assert rates_of("10.3") == rates_of("10.0")
    assert rates_of("99.0") == rates_of("12.0")


def test_a_kernel_takes_its_launch_and_the_longer_of_computing_and_moving():
    gpu = Device(
        "/device:GPU:0", "GPU", frequency_mhz=1000, num_cores=1, architecture="6.0",
        memory_bytes_per_s=10**9, launch_ns=100,
    )  # fmt: skip
    # 64 lanes x 2 at 1 GHz and 0.85: 108.8 operations in a nanosecond; 0.8 bytes.
    assert kernel_ns(gpu, Work(1088, 4, "float32", contraction=True)) == (100 + 10, 0)
    assert kernel_ns(gpu, Work(1088, 80, "float32", contraction=True)) == (100 + 100, 90)
    assert kernel_ns(gpu, Work(0, 0, "float32", contraction=False)) == (100, 0)
    # float64: 32 lanes.
    assert kernel_ns(gpu, Work(1088, 4, "float64", contraction=True)) == (100 + 20, 0)

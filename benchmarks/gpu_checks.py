"""What a GPU is expected to say of itself, and what it says: the lines of `gpu_check`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from moirai_tf import MoiraiError, MoiraiItem, default_pipeline, optimize
from moirai_tf.cost.gpu_peaks import peak_flops
from moirai_tf.cost.table import CostTable
from moirai_tf.machine import this_machine
from moirai_tf.pipeline import need
from moirai_tf.runtime.devices import full_name
from moirai_tf.runtime.gpu_records import gpu_copies, gpu_kernels, is_record

_SIZES = (4096, 1024, 256)
"""Products of square matrices; each is 64 times the work of the next."""


@dataclass(frozen=True)
class Line:
    """One expectation."""

    what: str
    expected: str
    found: str
    agrees: bool


def products(x: tf.Tensor) -> tf.Tensor:
    """A product of every size, one after the other."""
    for size in _SIZES:
        x = tf.linalg.matmul(x[:size, :size], x[:size, :size], name=f"product_{size}") / size
    return x


def records(gpu: str) -> Iterator[Line]:
    """The records of one traced step on one GPU."""
    options = tf.compat.v1.RunOptions(trace_level=tf.compat.v1.RunOptions.FULL_TRACE)
    metadata = tf.compat.v1.RunMetadata()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        fed = tf.compat.v1.placeholder(tf.float32, [_SIZES[0], _SIZES[0]])
        with tf.device(gpu):
            result = products(fed)
        value = np.ones(fed.shape, dtype=np.float32)
        for _ in range(3):
            session.run(result, {fed: value}, options=options, run_metadata=metadata)
    stats = metadata.step_stats
    names = [device.device for device in stats.dev_stats]
    yield Line(
        "records of streams", "some", str(sum(map(is_record, names))), any(map(is_record, names))
    )
    device = full_name(gpu)
    kernels, copies = gpu_kernels(stats, device), gpu_copies(stats, device)
    told = {size: sum(k.time_ns for k in kernels if f"product_{size}" in k.operator)
            for size in _SIZES}  # fmt: skip
    for size, time_ns in told.items():
        yield Line(f"kernels named after product_{size}", "some", f"{time_ns / 1e3:.1f} us",
                    time_ns > 0)  # fmt: skip
    ratio = told[_SIZES[0]] / max(1, told[_SIZES[1]])
    yield Line("64 times the work takes longer", "8 to 90 times", f"{ratio:.1f}", 8 <= ratio <= 90)
    kinds = {copy.kind for copy in copies}
    yield Line("kinds of copies", "MemcpyH2D, MemcpyD2H", ", ".join(sorted(kinds)) or "none",
                {"MemcpyH2D", "MemcpyD2H"} <= kinds)  # fmt: skip
    seen_ns = max((c.time_ns for c in copies if c.kind == "MemcpyH2D"), default=0)
    rate = value.nbytes / max(1, seen_ns)
    yield Line(
        "bandwidth of the feed's copy", "1 to 100 GB/s", f"{rate:.1f} GB/s", 1 <= rate <= 100
    )


def profiles(table: CostTable) -> Iterator[Line]:
    """What the profile makes of it."""
    for profile in table.devices:
        found = profile.measurement
        if profile.device.type != "GPU" or found is None:
            continue
        part = (found.attributed_ns + found.fixed_ns + found.moved_ns) / max(1, found.latency_ns)
        yield Line(f"{profile.device.name}: parts of a step", "90 to 110 %", f"{100 * part:.0f} %",
                    0.9 <= part <= 1.1)  # fmt: skip
        if not profile.device.num_cores or not profile.device.frequency_mhz:
            continue
        column = table.columns[profile.device.name]
        largest_ns = max(cost.time_ns[column] or 0 for cost in table.operators.values())
        peak = peak_flops(profile.device, "float32", contraction=False)
        share = 2 * _SIZES[0] ** 3 / max(1, largest_ns) * 1e9 / peak
        yield Line(f"{profile.device.name}: largest product, of the FP32 peak", "20 to 105 % "
                    "(more with TF32)", f"{100 * share:.0f} %", share >= 0.2)  # fmt: skip


def check() -> list[Line]:
    """Everything, in a process that has the GPUs."""
    cluster = this_machine()
    gpus = [device for device in cluster.devices if device.type == "GPU"]
    lines = [Line("GPUs of this machine", "some", str(len(gpus)), bool(gpus))]
    for gpu in gpus:
        lines.append(Line(f"{gpu.name}: model, capability, memory", "all three",
                           f"{gpu.model}, {gpu.architecture}, {gpu.memory_bytes}",
                           all((gpu.model, gpu.architecture, gpu.memory_bytes))))  # fmt: skip
        lines += [Line(f"{gpu.name}: {known.what}", known.expected, known.found, known.agrees)
                  for known in records(gpu.name)]  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model"
        save(model)
        pipeline = default_pipeline(repeats=10).until("profile")
        lines += profiles(need(pipeline.run(MoiraiItem(model, cluster)).costs))
        try:
            summary = optimize(model, Path(directory) / "placed", cluster, repeats=10)
            lines.append(Line("optimize", "a verified model", str(summary.report), True))
        except MoiraiError as error:
            lines.append(Line("optimize", "a verified model", str(error), False))
    return lines


def save(path: Path) -> None:
    """The products as a SavedModel."""
    module = tf.Module()
    module.serve = tf.function(
        lambda x: {"y": products(x)},
        input_signature=[tf.TensorSpec([_SIZES[0], _SIZES[0]], tf.float32, "x")],
    )
    with tf.device("/device:CPU:0"):
        tf.saved_model.save(module, str(path), {"serving_default": module.serve})

"""Makes one measurement of those of equal processors: less noise, and none that a solver can use.

Every time is measured with an error. A solver that is free to choose puts each operator where it
happened to look cheap, and its answer promises more than any device holds. Devices with the same
processor and as many cores differ by one factor (a share of the processor, say), so an operator's
part of the whole is the same on all of them and the mean of what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from moirai_tf.runtime.gpu_records import gpu_index


def pooled(
    times_ns: Mapping[str, Sequence[int | None]], machines: Mapping[str, Mapping[str, str]]
) -> dict[str, list[int | None]]:
    """Times of every device: its own sum, and shares that it has in common with its equals.

    Args:
      times_ns: device -> time of each operator, None where it was not timed.
      machines: device -> what is known of its machine; a CPU without a processor, and a GPU
        without a model, is alone.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for device in times_ns:
        groups.setdefault(_kind(device, machines.get(device, {})), []).append(device)
    result = {}
    for members in groups.values():
        rows = {device: np.asarray(times_ns[device], dtype=float) for device in members}
        sums = {device: np.nansum(row) for device, row in rows.items()}
        busy = [device for device in members if sums[device]]
        shares = np.mean([rows[d] / sums[d] for d in busy], axis=0) if busy else 0.0
        for device in members:
            own = sums[device] * shares if device in busy else rows[device]
            result[device] = [None if np.isnan(ns) else round(float(ns)) for ns in own]
    return result


def _kind(device: str, machine: Mapping[str, str]) -> tuple[str, ...]:
    if gpu_index(device) is not None:
        return ("GPU", machine["gpu"]) if "gpu" in machine else (device,)
    if not {"processor", "cores"} <= machine.keys():
        return (device,)
    return "CPU", machine["processor"], str(_count(machine["cores"]))


def _count(cores: str) -> int:
    """Cores in a list of the kernel's, such as `0-3,8`."""
    ranges = [part.partition("-") for part in cores.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)

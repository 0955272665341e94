"""What the operators of a GPU take, from traced steps of it.

A GPU runs what is launched, one kernel after the other. Kernels tell how long they ran; between two
of them the GPU waits, because the host has not launched the next one yet or a tensor is on its way.
Three parts make up a step: kernels, the waits before them, and a rest, which is there whatever runs
(the first launch, the last answer). Kernels and waits are the operators'; the rest is fixed.

Traced steps are slower between kernels, so waits are scaled down to what an untraced step has room
for. If kernels alone take more than there is room for, less than was thought is fixed. A rest that
is most of a step, while most operators left no record, means that kernels went unseen: such a
profile is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moirai_tf.cluster.cluster import task_of
from moirai_tf.cost.host_memory import HostMemories, Links
from moirai_tf.cost.layouts import Layout, TracedLayout, own_ns
from moirai_tf.cost.table import Measurement, StepCost
from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import Graph, TensorRef
from moirai_tf.runtime.gpu_records import gpu_index

_LEAST_ATTRIBUTED = 0.5
_LARGEST_REST_NS = 500_000
"""A rest up to this may be more than half of a step: small models are over sooner than answered."""
_LONGEST_LAUNCH_NS = 100_000
"""What a busy host takes at most to launch the next kernel."""


def gpu_times(
    graph: Graph,
    shown: Sequence[Layout],
    traced: Sequence[TracedLayout],
    measurement: Measurement,
    host: str,
    links: Links,
) -> tuple[list[int], Measurement]:
    """Nanoseconds of every operator on a GPU, and what the profile says of itself.

    Args:
      graph: the flat graph.
      shown: the placements that were run; their device is the GPU.
      traced: what each showed.
      measurement: what is known of the profile already.
      host: the CPU of the GPU's server.
      links: (source, target) -> link.

    Raises:
      MoiraiError: kernels are not on record.
    """
    memories = HostMemories(graph)
    kernels = own_ns(graph, shown, [found.kernel_ns for found in traced])
    traced_waits = own_ns(graph, shown, [found.wait_ns for found in traced])
    waits = _own_waits(traced_waits, memories, shown[0], host, links)
    rest_ns, scale = 0.0, 1.0
    if shown[0].whole:
        busy_ns = measurement.latency_ns - measurement.fixed_ns - measurement.moved_ns
        left_ns = busy_ns - float(kernels.sum())
        scale = min(1.0, max(0.0, left_ns) / float(waits.sum())) if waits.any() else 1.0
        rest_ns = left_ns - scale * float(waits.sum())
    found = replace(
        measurement,
        attributed_ns=round(float(kernels.sum() + scale * waits.sum())),
        dispatch_ns=round(scale * float(waits.sum()) / max(1, int(np.count_nonzero(kernels)))),
        scale=round(scale, 4),
        fixed_ns=max(0, measurement.fixed_ns + round(rest_ns)),
    )
    launched = (kernels > 0) | (traced_waits > 0)
    computed = launched & _computing(graph, memories)
    unseen = computed & (kernels == 0)
    _require_seen(shown[0].device, found, rest_ns, int(unseen.sum()), int(computed.sum()))
    return [round(float(ns)) for ns in kernels + scale * waits], found


def _own_waits(
    waits: npt.NDArray[Any], memories: HostMemories, layout: Layout, host: str, links: Links
) -> npt.NDArray[Any]:
    """Waits without what a tensor takes that changes memory within the GPU: links' times count it.

    A piece of a model also waits for the devices that hold the rest; only a launch is its own.
    """
    copies = [
        memories.copies_ns(i, layout.device, host, links) if wait else 0
        for i, wait in enumerate(waits)
    ]
    own: npt.NDArray[Any] = np.maximum(0.0, waits - np.array(copies, dtype=float))
    return own if layout.whole else own.clip(max=_LONGEST_LAUNCH_NS)


def _computing(graph: Graph, memories: HostMemories) -> npt.NDArray[Any]:
    """Which operators make a tensor in a GPU's memory, for which they need a kernel."""
    return np.array([
        operator.resident_bytes > operator.weight_bytes
        and not all(memories.made_on_host(TensorRef(i, p)) for p in range(len(operator.outputs)))
        for i, operator in enumerate(graph.operators)
    ])  # fmt: skip


def _require_seen(
    device: str, found: Measurement, rest_ns: float, unseen: int, computed: int
) -> None:
    """Refuses a profile in which operators computed and most of a step is in no kernel's record."""
    most = _LEAST_ATTRIBUTED * (rest_ns + found.attributed_ns)
    unexplained = rest_ns > max(_LARGEST_REST_NS, most) and 2 * unseen > computed
    if not unexplained and (found.stream_ns or not computed):
        return
    recorded = f"kernels of {found.stream_ns / 1e6:.3f} ms" if found.stream_ns else "no kernel"
    seen = f"{recorded} on record, and {unseen} operators that computed without one"
    whole_ms = (rest_ns + found.attributed_ns) / 1e6
    raise MoiraiError(
        f"the profile of {device!r} explains {found.attributed_ns / 1e6:.3f} of {whole_ms:.3f} ms "
        f"of a step: {seen}",
        why="kernels run after their launch; without records of them nobody knows which took long",
        fix="allow CUPTI to record (NVIDIA: the driver's option NVreg_RestrictProfilingToAdminUsers"
        "=0, in a container --cap-add=SYS_ADMIN) and let no other profiler run; or use "
        "--source=analytical, or a table (--costs)",
    )


def with_rests(step: StepCost, client: str, measured: Mapping[str, Measurement]) -> StepCost:
    """What a step costs, with the rests of GPUs that their profiles found.

    Steps of the model tell better than those without work what the client takes: not more than the
    least that is fixed on a GPU of its server. (To another server feeds may be under way while its
    GPU computes, so what is fixed there comes out too small.)
    """
    fixed = {n: found.fixed_ns for n, found in measured.items() if gpu_index(n) is not None}
    own = task_of(client)
    near = [ns for name, ns in fixed.items() if task_of(name) == own]
    client_ns = min([step.client_ns, *near])
    rests = {name: max(0, ns - client_ns) for name, ns in fixed.items()}
    return StepCost(client_ns, {**step.device_ns, **rests})

"""Which members of fused operators run as one kernel, and on which device type.

Operators are merged where any device of a cluster fuses them, and for other reasons besides. What a
device then saves is only what its own runtime fuses: a convolution, its batch norm and its ReLU are
one kernel on a CPU and three on a GPU, wherever they are placed together.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from moirai_tf.fusion import ops
from moirai_tf.fusion.analysis import Analysis
from moirai_tf.fusion.coarse import Kernel
from moirai_tf.fusion.match import match
from moirai_tf.fusion.merge import Merger
from moirai_tf.fusion.rules import rules_for

_COMPOSED_TYPES = ("float32", "float64")


def kernels(
    analysis: Analysis, merger: Merger, rules: Sequence[str], device_types: Sequence[str]
) -> dict[int, list[Kernel]]:
    """Cluster -> its kernels of two operators or more; no operator is in two of one device type.

    Args:
      analysis: facts about the graph.
      merger: its clusters.
      rules: names of rule sets.
      device_types: those of the cluster's devices.
    """
    found: dict[int, list[Kernel]] = {}
    for device_type in device_types:
        fusions, _ = match(analysis, rules_for(rules, [device_type]))
        groups = [fusion.members for fusion in fusions]
        fused = {member for members in groups for member in members}
        groups += _compositions(analysis, fused) if device_type == "CPU" else ()
        for members in groups:
            clusters = {merger.find(member) for member in members}
            if len(clusters) == 1:
                found.setdefault(clusters.pop(), []).append(Kernel(device_type, members))
    return found


def _compositions(analysis: Analysis, fused: Container[int]) -> Iterator[tuple[int, ...]]:
    """Chains of operators of one operand, which Grappler makes one of on a CPU.

    The longest are meant (`arithmetic_optimizer.cc`, UnaryOpsComposition).
    """
    chains: dict[int, list[int]] = {}
    for i, operator in enumerate(analysis.graph.operators):
        if i in fused or not _is_composable(analysis, i):
            continue
        source = analysis.source(operator.inputs[0]).producer
        chain = chains.pop(source, []) if analysis.data_readers(source) == (i,) else []
        chains[i] = [*chain, i]
    yield from (tuple(chain) for chain in chains.values() if len(chain) > 1)


def _is_composable(analysis: Analysis, i: int) -> bool:
    operator = analysis.graph.operators[i]
    if operator.op not in ops.COMPOSABLE or analysis.fixed[i]:
        return False
    return operator.outputs[0].dtype in _COMPOSED_TYPES

"""What moirai_tf sees in a model, and why each operator is where it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from moirai_tf.cluster import DEVICE_TYPES
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.fusion.coarsen import coarsen, near_misses
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.graph.graph import Graph
from moirai_tf.graph.kernels import why_not


def explain(graph: Graph, options: FuseOptions, pattern: re.Pattern[str]) -> str:
    """Of each operator whose name the pattern is found in: functions, devices, fusion, group.

    Raises:
      MoiraiError: as `coarsen`.
    """
    coarse, expansion = coarsen(graph, options)
    missed: dict[int, list[str]] = {}
    for miss in near_misses(graph, options):
        for member in miss.members:
            missed.setdefault(member, []).append(str(miss))
    library = {f.signature.name: f for f in graph.library.function}
    lines: list[str] = []
    for i, operator in enumerate(graph.operators):
        if pattern.search(operator.name) is None:
            continue
        lines.append(f"{operator.name} ({operator.op})")
        if operator.scope.functions:
            lines.append(f"  through {' -> '.join(operator.scope.functions)}")
        for device_type in DEVICE_TYPES:
            reason = why_not(operator.node, device_type, library)
            lines.append(f"  {device_type}: {'yes' if reason is None else f'no, {reason}'}")
        lines.extend(f"  {line}" for line in _fusion(coarse, expansion.owner[i], i))
        lines.extend(f"  {reason}" for reason in missed.get(i, ()))
        lines.extend(f"  {line}" for line in _groups(graph, i))
    return "\n".join(lines) + "\n"


def _fusion(coarse: CoarseGraph, owner: int, operator: int) -> Iterator[str]:
    fused = coarse.operators[owner]
    others = [coarse.fine.operators[m].name for m in fused.members if m != operator]
    if others:
        yield f"fused as {fused.rule} in {fused.name} with {_few(others)}"
    for kernel in fused.kernels:
        if operator in kernel.members:
            with_it = [coarse.fine.operators[m].name for m in kernel.members if m != operator]
            yield f"one kernel on {kernel.device_type} with {_few(with_it)}"


def _groups(graph: Graph, operator: int) -> Iterator[str]:
    for group in graph.colocation:
        if operator in group.members:
            others = [graph.operators[m].name for m in group.members if m != operator]
            yield f"shares its device with {_few(others)} ({group.reason})"


def _few(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

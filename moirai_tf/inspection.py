"""What moirai_tf sees in a model, and why each operator is where it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from moirai_tf.cluster import DEVICE_TYPES
from moirai_tf.errors import MoiraiError, near_names
from moirai_tf.fusion.coarse import CoarseGraph
from moirai_tf.fusion.coarsen import coarsen, near_misses
from moirai_tf.fusion.options import FuseOptions
from moirai_tf.graph.graph import Graph
from moirai_tf.graph.kernels import why_not
from moirai_tf.graph.names import short_names


def explain(
    graph: Graph, options: FuseOptions, pattern: re.Pattern[str]
) -> dict[str, tuple[str, ...]]:
    """Lines on each operator whose name the pattern is found in: functions, devices, fusion, group.

    Operators are called by what tells them apart (see `short_names`); the pattern is searched in
    their whole names.

    Raises:
      MoiraiError: the pattern is found in no name; or as `coarsen`.
    """
    if not any(pattern.search(operator.name) for operator in graph.operators):
        raise _no_match(graph, pattern)
    short = short_names(operator.name for operator in graph.operators)
    coarse, expansion = coarsen(graph, options)
    missed: dict[int, list[str]] = {}
    for miss in near_misses(graph, options):
        for member in miss.members:
            missed.setdefault(member, []).append(str(miss))
    library = {f.signature.name: f for f in graph.library.function}
    found: dict[str, tuple[str, ...]] = {}
    for i, operator in enumerate(graph.operators):
        if pattern.search(operator.name) is None:
            continue
        lines = [f"{short[operator.name]} ({operator.op})"]
        if operator.scope.functions:
            lines.append(f"  through {' -> '.join(operator.scope.functions)}")
        for device_type in DEVICE_TYPES:
            reason = why_not(operator.node, device_type, library)
            lines.append(f"  {device_type}: {'yes' if reason is None else f'no, {reason}'}")
        lines.extend(f"  {line}" for line in _fusion(coarse, short, expansion.owner[i], i))
        lines.extend(f"  {reason}" for reason in missed.get(i, ()))
        lines.extend(f"  {line}" for line in _groups(graph, short, i))
        found[operator.name] = tuple(lines)
    return found


def _no_match(graph: Graph, pattern: re.Pattern[str]) -> MoiraiError:
    near = near_names(pattern.pattern, (operator.name for operator in graph.operators))
    return MoiraiError(
        f"{pattern.pattern!r} is found in the name of no operator",
        why=f"it chooses which of the {len(graph)} operators are explained",
        fix=f"near are {near}" if near else "moirai_inspect without --explain lists all names",
    )


def _fusion(
    coarse: CoarseGraph, short: Mapping[str, str], owner: int, operator: int
) -> Iterator[str]:
    fused, fine = coarse.operators[owner], coarse.fine
    others = [short[fine.operators[m].name] for m in fused.members if m != operator]
    if others:
        yield f"fused as {fused.rule} in {short.get(fused.name, fused.name)} with {_few(others)}"
    for kernel in fused.kernels:
        if operator in kernel.members:
            with_it = [short[fine.operators[m].name] for m in kernel.members if m != operator]
            yield f"one kernel on {kernel.device_type} with {_few(with_it)}"


def _groups(graph: Graph, short: Mapping[str, str], operator: int) -> Iterator[str]:
    for group in graph.colocation:
        if operator in group.members:
            others = [short[graph.operators[m].name] for m in group.members if m != operator]
            yield f"shares its device with {_few(others)} ({group.reason})"


def _few(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def graph_facts(graph: Graph) -> dict[str, object]:
    """What `dump_graph` says, for programs."""
    return {
        "signature": graph.signature,
        "operators": [
            {
                "name": operator.name,
                "op": operator.op,
                "inputs": [
                    {"operator": graph.operators[ref.producer].name, "port": ref.port}
                    for ref in operator.inputs
                ],
                "outputs": [{"type": str(spec), "bytes": spec.nbytes} for spec in operator.outputs],
                "device_types": operator.device_types,
                "weight_bytes": operator.weight_bytes,
            }
            for operator in graph.operators
        ],
        "colocation": [
            {"reason": g.reason, "operators": [graph.operators[m].name for m in g.members]}
            for g in graph.colocation
        ],
    }


def coarse_facts(coarse: CoarseGraph) -> dict[str, object]:
    """What `dump_coarse` says, for programs."""
    fine = coarse.fine.operators
    return {
        "signature": coarse.fine.signature,
        "fused_operators": [
            {
                "name": fused.name,
                "rule": fused.rule,
                "device_types": fused.device_types,
                "members": [fine[member].name for member in fused.members],
            }
            for fused in coarse.operators
        ],
        "tensors": [
            {
                "producer": fine[tensor.source.producer].name,
                "port": tensor.source.port,
                "bytes": tensor.nbytes,
                "readers": [coarse.operators[reader].name for reader in tensor.consumers],
            }
            for tensor in coarse.tensors
        ],
    }

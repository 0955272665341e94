"""A readable, diffable text of a coarse graph."""

from __future__ import annotations

from moirai_tf.fusion.coarse import CoarseGraph


def dump_coarse(coarse: CoarseGraph) -> str:
    """The graph after fusion: fused operators, their members, and the tensors between them."""
    fine = coarse.fine.operators
    lines = [f"# signature {coarse.fine.signature}: {len(coarse)} fused operators"]
    for fused in coarse.operators:
        rule = fused.rule or "single"
        lines.append(f"{fused.name} [{rule}] {{{','.join(fused.device_types)}}}")
        lines.extend(f"    {fine[m].op:<24} {fine[m].name}" for m in fused.members)
    for tensor in coarse.tensors:
        readers = ", ".join(coarse.operators[c].name for c in tensor.consumers)
        port = "control" if tensor.source.port < 0 else str(tensor.source.port)
        name = fine[tensor.source.producer].name
        lines.append(f"tensor {name}:{port} ({tensor.nbytes} bytes) -> {readers}")
    for group in coarse.colocation:
        lines.append("colocate: " + ", ".join(coarse.operators[m].name for m in group))
    return "\n".join(lines) + "\n"

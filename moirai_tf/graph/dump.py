"""A readable, diffable text of a graph: one operator a line, in topological order."""

from __future__ import annotations

from moirai_tf.graph.graph import Graph, Operator


def dump_graph(graph: Graph) -> str:
    """The operator graph before fusion.

    A line reads `name = Op(input, input:port, ^control) -> type[shape] {CPU,GPU} weights=bytes`.
    """
    lines = [f"# signature {graph.signature}: {len(graph)} operators"]
    lines.extend(_line(graph, operator) for operator in graph.operators)
    for group in graph.colocation:
        names = ", ".join(graph.operators[m].name for m in group.members)
        lines.append(f"colocate [{group.reason}]: {names}")
    return "\n".join(lines) + "\n"


def _line(graph: Graph, operator: Operator) -> str:
    inputs = [
        graph.operators[r.producer].name + (f":{r.port}" if r.port else "") for r in operator.inputs
    ]
    inputs.extend(f"^{graph.operators[c].name}" for c in operator.controls)
    outputs = ", ".join(str(spec) for spec in operator.outputs) or "-"
    weights = f" weights={operator.weight_bytes}" if operator.weight_bytes else ""
    types = ",".join(operator.device_types)
    return f"{operator.name} = {operator.op}({', '.join(inputs)}) -> {outputs} {{{types}}}{weights}"

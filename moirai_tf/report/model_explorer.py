"""Node data for Google's Model Explorer: device, time and weights of every node of a placed model.

Its adapter for SavedModels (`ai-edge-model-explorer-adapter` 0.2.1, "direct") has a graph for the
main graph and one for every function, and calls a node by its position in it; in a function 0 is
what stands for the inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moirai_tf.bench.models import planned_graph, read_placed, read_signature
from moirai_tf.cluster.units import megabytes, milliseconds
from moirai_tf.graph.graph import Graph
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.records import write_text
from moirai_tf.report.content import Content
from moirai_tf.report.figures import colours
from moirai_tf.rewrite.plan import Plan

_MAIN = "main"
_SHOWN_BYTES = 50_000
_Place = tuple[str, str]
"""Function of the original, empty for the main graph, and node."""


def write_node_data(content: Content, placed_dir: str | Path, path: str | Path) -> None:
    """Writes the file that Model Explorer lays over the placed model.

    Raises:
      MoiraiError: the model cannot be read, or the file cannot be written.
    """
    write_text(json.dumps(node_data(content, placed_dir), indent=1), Path(path))


def node_data(content: Content, placed_dir: str | Path) -> dict[str, Any]:
    """Graph -> `results` -> node -> `value`, its text, and `bgColor`, that of its device.

    A fused operator's time is at the node that it is named after.

    Raises:
      MoiraiError: the model cannot be read.
    """
    placed = read_placed([placed_dir])
    plan, graph = placed[0].plan, read_signature(placed_dir, placed).graph
    more = _more(content, planned_graph(placed[0], graph))
    graph_def = read_saved_model(placed_dir).meta_graph(plan.tags).graph_def
    bodies = {"": (graph_def.node, 0)}
    bodies |= {f.signature.name: (f.node_def, 1) for f in graph_def.library.function}
    data = {
        function or _MAIN: {"results": _results(content, plan, more, function, nodes, first)}
        for function, (nodes, first) in bodies.items()
    }
    return {function: found for function, found in data.items() if found["results"]}


def _results(
    content: Content, plan: Plan, more: Mapping[_Place, str], function: str, nodes: Any, first: int
) -> dict[str, dict[str, str]]:
    short, colour = content.short, colours(content)
    original = plan.edits.clones.get(function, function)
    return {
        str(number): {
            "value": short[node.device] + more.get((original, node.name), ""),
            "bgColor": colour[node.device],
        }
        for number, node in enumerate(nodes, first)
        if node.device in short
    }


def _more(content: Content, graph: Graph) -> dict[_Place, str]:
    """Time and weights of nodes that have any."""
    spans = {span.name: span.duration_ns for span in content.planned.spans}
    time_ns: dict[_Place, int] = {}
    weight_bytes: dict[_Place, int] = {}
    for operator in graph.operators:
        place = operator.scope.function, operator.node.name
        time_ns[place] = time_ns.get(place, 0) + spans.get(operator.name, 0)
        weight_bytes[place] = max(weight_bytes.get(place, 0), operator.weight_bytes)
    return {
        place: (f", {milliseconds(ns)}" if ns else "")
        + (f", {megabytes(held)} of weights" if held >= _SHOWN_BYTES else "")
        for place, ns in time_ns.items()
        for held in [weight_bytes[place]]
    }

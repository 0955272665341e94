"""The pictures of a report, as plotly figures; times are shown in milliseconds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import networkx as nx
import plotly.graph_objects as go

from moirai_tf.bench.timeline import Span, Timeline
from moirai_tf.cluster.units import milliseconds
from moirai_tf.report.content import Content
from moirai_tf.report.critical import TRANSFER, WAIT

_COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#dd8833", "#7799bb",
)  # fmt: skip
"""Told apart with any colour vision, on light and on dark (after Paul Tol's `bright`)."""
_GREY, _RED = "#8c8c8c", "#e0533a"
_MOST_BARS = 1_500
"""Of one timeline: what is shorter than this part of it is drawn together with its neighbours."""
_MANY_NODES = 1_500
"""From so many on a graph is drawn by WebGL."""


def colours(content: Content) -> dict[str, str]:
    """Device -> its colour in every picture."""
    return dict(zip((d.name for d in content.devices), itertools.cycle(_COLOURS), strict=False))


def timeline_figure(content: Content) -> go.Figure:
    """Every device and link over time: planned, and below it what was measured."""
    figure = go.Figure()
    rows: list[str] = []
    runs = [("planned", content.planned)]
    if content.measured is not None:
        runs.append(("measured", content.measured))
    for title, timeline in runs:
        for row, spans, colour in tracks(content, timeline):
            label = f"{title} {row}" if len(runs) > 1 else row
            rows.append(label)
            _add_bars(figure, label, spans, content.names, colour)
    end = {"color": _GREY, "width": 1, "dash": "dot"}
    figure.add_vline(x=content.planned.makespan_ns / 1e6, line=end, name="planned end")
    figure.update_layout(
        barmode="overlay", bargap=0.25, showlegend=False, height=90 + 34 * len(rows),
        margin={"l": 8, "r": 8, "t": 8, "b": 40},
    )  # fmt: skip
    figure.update_xaxes(title="ms", rangemode="tozero")
    figure.update_yaxes(
        categoryorder="array", categoryarray=rows[::-1], automargin=True, fixedrange=True
    )
    return figure


def tracks(content: Content, timeline: Timeline) -> Iterator[tuple[str, list[Span], str]]:
    """(title, spans, colour) of what has any; devices first, then links."""
    colour = colours(content)
    for device in content.devices:
        spans = [s for s in timeline.spans if s.device == device.name and s.duration_ns]
        if spans:
            yield content.short[device.name], spans, colour[device.name]
    moved: dict[tuple[str, str], list[Span]] = {}
    for move in timeline.moves:
        if move.span is not None and move.span.duration_ns:
            moved.setdefault((move.source, move.target), []).append(move.span)
    for (source, target), spans in sorted(moved.items()):
        yield f"{content.short[source]} → {content.short[target]}", spans, _GREY


def _add_bars(
    figure: go.Figure, row: str, spans: Sequence[Span], names: Mapping[str, str], colour: str
) -> None:
    bars = joined(spans, names)
    figure.add_bar(
        orientation="h",
        y=[row] * len(bars),
        base=[start_ns / 1e6 for start_ns, _, _ in bars],
        x=[(finish_ns - start_ns) / 1e6 for start_ns, finish_ns, _ in bars],
        customdata=[text for _, _, text in bars],
        hovertemplate="%{customdata}<br>%{base:.3f} ms + %{x:.3f} ms<extra></extra>",
        marker={"color": colour, "line": {"width": 0}},
        name=row,
    )


def joined(spans: Sequence[Span], names: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """(start, finish, text): spans too short to be seen become one with those before them."""
    ordered = sorted(spans, key=lambda span: (span.start_ns, span.finish_ns))
    least_ns = 0
    if len(ordered) > _MOST_BARS:
        least_ns = (ordered[-1].finish_ns - ordered[0].start_ns) // _MOST_BARS
    bars: list[tuple[int, int, int, str]] = []
    for span in ordered:
        name = names.get(span.name, span.name)
        if bars and span.finish_ns - bars[-1][0] < least_ns:
            start_ns, finish_ns, count, first = bars[-1]
            bars[-1] = start_ns, max(finish_ns, span.finish_ns), count + 1, first
        else:
            bars.append((span.start_ns, span.finish_ns, 1, name))
    return [
        (start, finish, first if count == 1 else f"{first} and {count - 1} more")
        for start, finish, count, first in bars
    ]


def graph_figure(content: Content) -> go.Figure:
    """The fused graph: depth from left to right, a lane for each device, its transfers red."""
    graph, device_of = content.coarse.to_networkx(), content.device_of
    place = _places(content, graph)
    scatter: Any = go.Scattergl if len(place) > _MANY_NODES else go.Scatter
    figure = go.Figure()
    inside = [(a, b) for a, b in graph.edges if device_of[a] == device_of[b]]
    across = [(a, b) for a, b in graph.edges if device_of[a] != device_of[b]]
    for title, edges, colour in (("same device", inside, _GREY), ("transfer", across, _RED)):
        if edges:
            x, y = _lines(edges, place)
            figure.add_trace(
                scatter(
                    x=x, y=y, mode="lines", name=title, hoverinfo="skip",
                    line={"color": colour, "width": 1}, opacity=0.5,
                )
            )  # fmt: skip
    took_ns = {span.name: span.duration_ns for span in content.planned.spans}
    for device, colour in colours(content).items():
        here = [n for n in graph.nodes if device_of[n] == device]
        if here:
            figure.add_trace(
                scatter(
                    x=[place[n][0] for n in here], y=[place[n][1] for n in here], mode="markers",
                    name=content.short[device], marker={"color": colour, "size": 8},
                    text=[_describe(content, graph, n, took_ns[n]) for n in here], hoverinfo="text",
                )
            )  # fmt: skip
    figure.update_layout(
        height=420, margin={"l": 8, "r": 8, "t": 8, "b": 8}, dragmode="pan", hovermode="closest",
        legend={"orientation": "h", "y": -0.02}, modebar={"bgcolor": "rgba(0,0,0,0)"},
    )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def _places(content: Content, graph: nx.DiGraph[str]) -> dict[str, tuple[float, float]]:
    """Depth, and within it the device's lane; in a lane by the mean place of what is read."""
    lane = {device.name: -float(k) for k, device in enumerate(content.devices)}
    position = {name: number for number, name in enumerate(graph)}
    place: dict[str, tuple[float, float]] = {}
    for depth, generation in enumerate(nx.topological_generations(graph)):
        rows: dict[str, list[str]] = {}
        for node in generation:
            rows.setdefault(content.device_of[node], []).append(node)
        for device, nodes in rows.items():
            nodes.sort(
                key=lambda n: (_mean(place[p][1] for p in graph.predecessors(n)), position[n])
            )
            step = 0.8 / len(nodes)
            for rank, node in enumerate(nodes):
                place[node] = depth, lane[device] + step * ((len(nodes) - 1) / 2 - rank)
    return place


def _mean(values: Iterator[float]) -> float:
    known = list(values)
    return -sum(known) / len(known) if known else 0.0


def _lines(
    edges: Sequence[tuple[str, str]], place: Mapping[str, tuple[float, float]]
) -> tuple[list[float | None], list[float | None]]:
    x: list[float | None] = []
    y: list[float | None] = []
    for source, target in edges:
        x += [place[source][0], place[target][0], None]
        y += [place[source][1], place[target][1], None]
    return x, y


def _describe(content: Content, graph: nx.DiGraph[str], node: str, took_ns: int) -> str:
    known, device = graph.nodes[node], content.short[content.device_of[node]]
    count = len(known["members"])
    fused = f"<br>{count} operators, {known['rule']}" if count > 1 else ""
    return f"{content.names.get(node, node)}<br>{device}, {milliseconds(took_ns)}{fused}"


def memory_figure(content: Content) -> go.Figure:
    """Memory in use on each device over time, and how much there is."""
    figure = go.Figure()
    end_ns = content.planned.makespan_ns
    for device, colour in zip(content.devices, colours(content).values(), strict=True):
        times = [ns / 1e6 for ns, _ in device.memory] + [end_ns / 1e6]
        sizes = [nbytes / 1e6 for _, nbytes in device.memory]
        figure.add_scatter(
            x=times, y=[*sizes, sizes[-1]], mode="lines", line={"shape": "hv", "color": colour},
            name=content.short[device.name],
        )  # fmt: skip
        if device.capacity_bytes is not None and device.capacity_bytes < 4 * device.peak_bytes:
            figure.add_scatter(
                x=[0, end_ns / 1e6], y=[device.capacity_bytes / 1e6] * 2, mode="lines",
                line={"color": colour, "dash": "dash"}, name=f"{content.short[device.name]} has",
            )  # fmt: skip
    figure.update_layout(
        height=300,
        margin={"l": 8, "r": 8, "t": 8, "b": 40},
        legend={"orientation": "h", "y": -0.25},
    )
    figure.update_xaxes(title="ms")
    figure.update_yaxes(title="MB", rangemode="tozero", automargin=True)
    return figure


def latency_figure(content: Content) -> go.Figure:
    """Makespans of this placement and of the other methods, and the proved bound."""
    names = [name for name, _ in content.latencies_ns]
    values = [ns / 1e6 for _, ns in content.latencies_ns]
    figure = go.Figure(
        go.Bar(
            orientation="h", y=names, x=values, text=[f" {value:.3f} ms" for value in values],
            marker={"color": [_COLOURS[0], *[_GREY] * (len(names) - 1)]}, hoverinfo="skip",
            textposition="inside", insidetextanchor="start",
        )
    )  # fmt: skip
    bound = content.lower_bound_ns / 1e6
    figure.add_vline(x=bound, line={"color": _COLOURS[1], "dash": "dash"})
    figure.update_layout(height=80 + 34 * len(names), margin={"l": 8, "r": 8, "t": 8, "b": 40})
    figure.update_xaxes(title="ms (dashed: no placement can be faster)", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True, fixedrange=True)
    return figure


def path_figure(content: Content) -> go.Figure:
    """What the latency consists of along the critical path."""
    total: dict[str, int] = {}
    colour: dict[str, str] = {}
    of_device = colours(content)
    for step in content.path:
        label = {TRANSFER: "transfers", WAIT: "waiting"}.get(step.kind, "")
        label = label or content.short[step.where]
        total[label] = total.get(label, 0) + step.duration_ns
        colour[label] = of_device.get(step.where, _GREY)
    figure = go.Figure()
    for label, ns in total.items():
        figure.add_bar(
            orientation="h", y=["critical path"], x=[ns / 1e6], name=label,
            marker={"color": colour[label], "line": {"width": 0}}, hovertemplate="%{x:.3f} ms",
        )  # fmt: skip
    figure.update_layout(
        barmode="stack", height=150, margin={"l": 8, "r": 8, "t": 8, "b": 40},
        legend={"orientation": "h", "y": -0.6},
    )  # fmt: skip
    figure.update_xaxes(title="ms")
    figure.update_yaxes(visible=False, fixedrange=True)
    return figure

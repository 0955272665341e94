"""A report as one HTML file that needs no network."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moirai_tf.bench.timeline import Span
from moirai_tf.cluster.units import megabytes, milliseconds
from moirai_tf.errors import MoiraiError
from moirai_tf.records import write_text
from moirai_tf.report.content import Content
from moirai_tf.report.critical import WAIT

if TYPE_CHECKING:
    import plotly.graph_objects as go

_HEAVIEST = 15
_WORTH_A_WORD = 0.01
"""Share of the latency from which a step on the critical path is named."""
_FEW = 25
"""Rows of the tables of heavy operators and of fusions that were missed."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --faint: #5f5f5f;
  --line: #dddddd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #181a1d; --faint: #a6a6a6; --line: #3a3d42; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.1rem; font-weight: 400; color: var(--faint); margin: 0; overflow-wrap: anywhere; }
p.verdict { color: var(--ink); font-size: 1.5rem; line-height: 1.3; margin: 0.25rem 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 0.25rem; }
p { margin: 0 0 0.5rem; color: var(--faint); overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.75rem 0.25rem 0; text-align: left; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { font-weight: 600; } td.number, th.number { text-align: right; white-space: nowrap; }
td:not(.number) { min-width: 8.5rem; }
"""

_SCRIPT = """
const scheme = matchMedia('(prefers-color-scheme: dark)');
function colours() {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ['--ink', '--line'].map(name => style.getPropertyValue(name).trim());
  return {ink, axis: {gridcolor: line, zerolinecolor: line}};
}
const draw = Plotly.newPlot;
let drawn = new Promise(done => addEventListener('load', done));
Plotly.newPlot = (plot, data, layout, config) => {
  const turn = () => new Promise(next => setTimeout(next));
  drawn = drawn.catch(console.error).then(turn).then(() => {
    const {ink, axis} = colours();
    const [font, xaxis, yaxis] = [{...layout.font, color: ink},
      {...layout.xaxis, ...axis}, {...layout.yaxis, ...axis}];
    return draw(plot, data, {...layout, font, xaxis, yaxis}, config);
  });
  return drawn;
};
scheme.addEventListener('change', () => {
  const {ink, axis} = colours();
  const changes = {'font.color': ink};
  for (const name of ['xaxis', 'yaxis'])
    for (const [key, colour] of Object.entries(axis)) changes[`${name}.${key}`] = colour;
  for (const plot of document.querySelectorAll('.js-plotly-plot')) Plotly.relayout(plot, changes);
});
"""
"""Large figures take a second: the page comes first, then each figure once, in its colours."""


def write_report(content: Content, path: str | Path) -> None:
    """Writes the page, whole or not at all; the timeline alone if the file's name ends in `.svg`.

    Raises:
      MoiraiError: plotly is not installed, or the file cannot be written.
    """
    _check_plotly()
    if Path(path).suffix == ".svg":
        from moirai_tf.report.svg import timeline_svg

        write_text(timeline_svg(content), Path(path))
    else:
        write_text(page_of(content), Path(path))


def page_of(content: Content) -> str:
    """The page as text.

    Raises:
      MoiraiError: plotly is not installed.
    """
    _check_plotly()
    from plotly.offline import get_plotlyjs

    body = "\n".join(_sections(content))
    title = html.escape(f"{content.model}: {content.signature}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n<script>{get_plotlyjs()}</script>\n"
        f"<script>{_SCRIPT}</script>\n</head><body>\n{body}\n</body></html>\n"
    )


def _check_plotly() -> None:
    try:
        import plotly.offline  # noqa: F401
    except ImportError as error:
        raise MoiraiError(
            "plotly is not installed",
            why="the pictures of a report are drawn with it",
            fix="pip install 'moirai_tf[report]'",
        ) from error


def _sections(content: Content) -> Iterator[str]:
    from moirai_tf.report import figures

    yield f"<h1>{html.escape(content.model)}, signature {html.escape(content.signature)}</h1>"
    yield f'<p class="verdict" id="verdict">{html.escape(content.verdict)}</p>'
    yield _table(("", "latency"), _latencies(content), "latencies")
    yield _section("Timeline", _timeline_text(content))
    yield _drawn(figures.timeline_figure(content), "timeline")
    yield _section("What the latency consists of", _path_text(content))
    yield _drawn(figures.path_figure(content), "path")
    yield _section(
        "Against other methods",
        "Operators and transfers of one inference, if published methods choose the devices, or if "
        "the best single device runs everything (single).",
    )
    yield _drawn(figures.latency_figure(content), "methods")
    yield _section(
        "The fused graph",
        f"{len(content.coarse)} fused operators from left to right, one lane for each device. "
        "Drag to move, scroll to zoom.",
    )
    yield _drawn(figures.graph_figure(content), "graph")
    yield _section("Memory", "Weights, and tensors while somebody still needs them.")
    yield _drawn(figures.memory_figure(content), "memory")
    yield _table(("device", "fused operators", "busy", "peak", "of"), _devices(content), "devices")
    yield _section("Heaviest operators", "")
    yield _table(("operator", "device", "time"), _heaviest(content), "operators")
    yield _section("Heaviest transfers", _transfer_text(content))
    if _moved(content):
        yield _table(("tensor of", "way", "bytes", "time"), _transfers(content), "transfers")
    yield _section("What was fused", "")
    yield _table(("rule", "fused operators", "operators in them"), _fused(content), "fused")
    if content.misses:
        yield _section("What was not fused", f"{len(content.misses)} patterns that nearly matched.")
        yield _table(("what and why",), ((miss,) for miss in content.misses[:_FEW]), "misses")


def _section(title: str, text: str) -> str:
    said = f"<p>{html.escape(text)}</p>" if text else ""
    return f"<h2>{html.escape(title)}</h2>{said}"


def _drawn(figure: go.Figure, name: str) -> str:
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    drawn: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={
            "responsive": True,
            "displaylogo": False,
            "displayModeBar": "hover" if name == "graph" else False,
            "scrollZoom": name == "graph",
        },
    )
    return drawn


def _table(head: Sequence[str], rows: Iterator[Sequence[str]], name: str) -> str:
    """A table; cells that begin with a digit are numbers and stand on the right."""
    lines = [tuple(row) for row in rows]
    numbers = [all(row[k][:1].isdigit() for row in lines) for k in range(len(head))]

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if number else ''}>{html.escape(cell)}</{tag}>"
            for cell, number in zip(row, numbers, strict=True)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in lines)
    return (
        f'<div class="wide"><table id="table-{name}"><tr>{cells("th", head)}</tr>\n{body}'
        "</table></div>"
    )


def _latencies(content: Content) -> Iterator[tuple[str, str]]:
    yield "predicted", milliseconds(content.predicted_ns)
    if content.measured_ns is not None:
        off = content.predicted_ns / max(1, content.measured_ns) - 1
        yield "measured", f"{milliseconds(content.measured_ns)} (predicted {off:+.1%})"
    if content.single_device_ns is not None:
        yield "best single device", milliseconds(content.single_device_ns)
    if content.planned.makespan_ns != content.predicted_ns:
        yield "operators and transfers alone", milliseconds(content.planned.makespan_ns)
    yield "no placement is faster than", milliseconds(content.lower_bound_ns)


def _timeline_text(content: Content) -> str:
    text = "One inference, device by device and link by link, as planned"
    if content.measured is None:
        return f"{text}."
    return f"{text}, and below it a step as it was traced; tracing makes it longer."


def _path_text(content: Content) -> str:
    if not content.path:
        return "No operator takes time."
    longest = max(content.path, key=lambda step: step.duration_ns)
    share = longest.duration_ns / max(1, content.planned.makespan_ns)
    if longest.kind == WAIT or share < _WORTH_A_WORD:
        return "The critical path, by what it does."
    name = content.names.get(longest.name, longest.name)
    return f"The critical path. Its longest part is {longest.kind} of {name}: {share:.0%}."


def _devices(content: Content) -> Iterator[tuple[str, ...]]:
    for device in content.devices:
        capacity = device.capacity_bytes
        yield (
            device.name, str(device.operators), milliseconds(device.busy_ns),
            megabytes(device.peak_bytes),
            "no limit" if capacity is None else megabytes(capacity),
        )  # fmt: skip


def _heaviest(content: Content) -> Iterator[tuple[str, ...]]:
    spans = sorted(content.planned.spans, key=lambda span: -span.duration_ns)
    for span in spans[:_HEAVIEST]:
        yield content.names.get(span.name, span.name), span.device, milliseconds(span.duration_ns)


def _moved(content: Content) -> list[tuple[Span, str]]:
    """What is on its way, and which way, the longest first."""
    moves = content.planned.moves
    found = [(m.span, f"{m.source} → {m.target}") for m in moves if m.span is not None]
    return sorted(found, key=lambda moved: -moved[0].duration_ns)


def _transfers(content: Content) -> Iterator[tuple[str, ...]]:
    for span, way in _moved(content)[:_HEAVIEST]:
        yield (
            content.names.get(span.name, span.name), way, f"{span.detail['bytes']:,}",
            milliseconds(span.duration_ns),
        )  # fmt: skip


def _transfer_text(content: Content) -> str:
    moved = _moved(content)
    if not moved:
        return "Nothing crosses devices."
    nbytes = sum(int(span.detail["bytes"]) for span, _ in moved)
    return f"{len(moved)} in all, {megabytes(nbytes)}."


def _fused(content: Content) -> Iterator[tuple[str, ...]]:
    groups: Counter[str] = Counter()
    members: Counter[str] = Counter()
    for fused in content.coarse.operators:
        rule = fused.rule or "single operators"
        groups[rule] += 1
        members[rule] += len(fused.members)
    for rule, count in groups.most_common():
        yield rule, str(count), str(members[rule])

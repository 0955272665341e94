"""The timeline of a report as a picture of its own, for documents."""

from __future__ import annotations

import html
from collections.abc import Iterator

from moirai_tf.report.content import Content
from moirai_tf.report.figures import joined, tracks

_LEFT, _WIDTH, _ROW, _BAR = 190, 760, 26, 18
"""Pixels: of the titles, of the time, of a row, of a bar."""
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}line{stroke:#8c8c8c}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


def timeline_svg(content: Content) -> str:
    """Every device and link over time: planned, and below it what was measured."""
    runs = [("planned", content.planned)]
    if content.measured is not None:
        runs.append(("measured", content.measured))
    rows = [
        (f"{title} {row}" if len(runs) > 1 else row, joined(spans, content.names), colour)
        for title, timeline in runs
        for row, spans, colour in tracks(content, timeline)
    ]
    end_ns = max(timeline.makespan_ns for _, timeline in runs)
    height = _ROW * len(rows) + 24
    drawn = [
        line
        for number, (row, bars, colour) in enumerate(rows)
        for line in _row(number, row, bars, colour, _WIDTH / end_ns)
    ]
    right = _LEFT + _WIDTH
    scale = (
        f'<line x1="{_LEFT}" x2="{right}" y1="{height - 22}" y2="{height - 22}"/>'
        f'<text x="{_LEFT}" y="{height - 6}">0 ms</text>'
        f'<text x="{right}" y="{height - 6}" text-anchor="end">{end_ns / 1e6:.2f} ms</text>'
    )
    title = f"<title>{html.escape(f'{content.model}: {content.verdict}')}</title>"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 10} {height}">',
        f"{title}<style>{_STYLE}</style>",
        *drawn,
        f"{scale}</svg>\n",
    ])  # fmt: skip


def _row(
    number: int, title: str, bars: list[tuple[int, int, str]], colour: str, pixels_per_ns: float
) -> Iterator[str]:
    top = number * _ROW
    yield f'<text x="{_LEFT - 8}" y="{top + 17}" text-anchor="end">{html.escape(title)}</text>'
    for start_ns, finish_ns, name in bars:
        x, width = _LEFT + start_ns * pixels_per_ns, (finish_ns - start_ns) * pixels_per_ns
        yield (
            f'<rect x="{x:.1f}" y="{top + 4}" width="{max(0.3, width):.1f}" height="{_BAR}" '
            f'fill="{colour}" stroke="#fff" stroke-width="0.3"><title>{html.escape(name)}: '
            f"{(finish_ns - start_ns) / 1e6:.3f} ms</title></rect>"
        )

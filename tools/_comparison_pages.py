"""A comparison as Markdown and as figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from moirai_tf.placement.schedule import relative_gap

from ._comparison import BASELINES, BLIND, FULL, OURS, UNFUSED, Row, by_case

Case = Mapping[str, Row]
_NEAR = 0.01
"""A gap that costs cannot resolve."""


def page(rows: Mapping[Any, Row]) -> str:
    """All tables."""
    answered = [case for case in by_case(rows) if OURS in case]
    cases = [case for case in answered if _solved(case)]
    full = [case for case in cases if case[OURS].variant == FULL]
    parts = [_summary(full), *_unsolved(answered), _ratios(full), _times(full), _details(full)]
    if any(f"without {what}" in case for case in full for what in BLIND):
        parts.append(_blind(full))
    unfused = [case for case in cases if case[OURS].variant == UNFUSED]
    if unfused:
        parts.append(_fusion(full, unfused))
    return "\n\n".join(parts) + "\n"


def _unsolved(cases: Sequence[Case]) -> Iterator[str]:
    """Problems that are in no table."""
    left = [case[OURS] for case in cases if not _solved(case)]
    if left:
        yield "Ours found no placement for " + "; ".join(
            " ".join(filter(None, (row.model, "on", row.cluster, row.variant))) for row in left
        )


def _solved(case: Case) -> bool:
    return OURS in case and bool(case[OURS].makespan_ns)


def ratio(case: Case, method: str) -> float | None:
    """A method's latency over ours."""
    theirs, ours = case.get(method), case[OURS].makespan_ns
    if theirs is None or not theirs.makespan_ns or not ours:
        return None
    return theirs.makespan_ns / ours


def gap(case: Case) -> float:
    """What is not proved of ours."""
    return relative_gap(case[OURS].makespan_ns or 0, case[OURS].bound_ns)


def _known_ratios(case: Case) -> dict[str, float]:
    """Method -> latency over ours, of those that found something."""
    return {method: r for method in BASELINES if (r := ratio(case, method)) is not None}


def _undecided(case: Case, found: float) -> bool:
    """Whether ours is better by no more than what is not proved of it."""
    return found - 1 <= gap(case)


def _ratios(cases: Sequence[Case]) -> str:
    """Latency over ours; `=` where that is within what is not proved of ours."""
    lines = [
        _head("model", "cluster", "operators", "ours ms", "bound ms", "gap", *BASELINES, "up to")
    ]
    for case in cases:
        ours, known = case[OURS], _known_ratios(case)
        told = {m: f"{r:.2f}{' =' if _undecided(case, r) else ''}" for m, r in known.items()}
        cells = [told.get(method, "-") for method in BASELINES]
        most = max(known, key=known.__getitem__, default="")
        lines.append(
            _line(
                ours.model, ours.cluster, ours.operators, _ms(ours.makespan_ns), _ms(ours.bound_ns),
                f"{100 * gap(case):.2f} %", *cells,
                f"{known[most]:.2f} ({most})" if most else "-",
            )
        )  # fmt: skip
    return "\n".join(lines)


def _summary(cases: Sequence[Case]) -> str:
    """What the table says in short."""
    known = [_known_ratios(case) for case in cases]
    above = sum(r < 1 for row in known for r in row.values())
    undecided = sum(
        any(_undecided(case, r) for r in row.values())
        for case, row in zip(cases, known, strict=True)
    )
    proved = sum(gap(case) <= _NEAR for case in cases)
    columns = {method: [row[method] for row in known if method in row] for method in BASELINES}
    columns["the best of them"] = [min(row.values()) for row in known if row]
    medians = ", ".join(f"{name} {median(found):.2f}" for name, found in columns.items() if found)
    return (
        f"{len(cases)} problems: ours is above a method's latency {above} times, and proved within "
        f"{100 * _NEAR:g} % on {proved}. On {undecided} some method is within "
        f"what is not proved of ours. Median latency over ours: {medians}."
    )


def _times(cases: Sequence[Case]) -> str:
    """Seconds to find it, on one line for each problem."""
    lines = [_head("model", "cluster", "ours, to 1 % of its answer", "with bound", *BASELINES)]
    for case in cases:
        ours = case[OURS]
        cells = [f"{case[m].time_s:.2f}" if ratio(case, m) else "-" for m in BASELINES]
        lines.append(
            _line(ours.model, ours.cluster, f"{ours.time_s:.2f}", f"{ours.whole_s:.1f}", *cells)
        )
    return "\n".join(lines)


def _details(cases: Sequence[Case]) -> str:
    lines = [_head("model", "cluster", "method", "latency ms", "over ours", "fullest device GB",
                   "transfers", "seconds to find it", "")]  # fmt: skip
    for case in cases:
        for method in (OURS, *BASELINES):
            row = case.get(method)
            if row is None:
                continue
            found = ratio(case, method)
            if found is None:
                lines.append(_line(row.model, row.cluster, method, *("-",) * 5, row.note))
                continue
            more = f"{row.whole_s:.1f} s with bound" if method == OURS else ""
            if row.curve:
                more = f"{len(row.curve)} episodes"
            lines.append(
                _line(row.model, row.cluster, method, _ms(row.makespan_ns), f"{found:.3f}",
                      f"{row.peak_bytes / 1e9:.3f}", row.transfers, f"{row.time_s:.2f}", more)
            )  # fmt: skip
    return "\n".join(lines)


def _blind(cases: Sequence[Case]) -> str:
    """Plans that were made without a part of the problem, played in full, over ours."""
    lines = [_head("model", "cluster", *(f"without {what}" for what in BLIND))]
    for case in cases:
        if not any(f"without {what}" in case for what in BLIND):
            continue
        cells = []
        for what in BLIND:
            row, found = case.get(f"without {what}"), ratio(case, f"without {what}")
            if row is not None and row.over_bytes:
                cells.append(f"does not fit, {row.over_bytes / 1e9:.3f} GB over")
            else:
                cells.append("-" if found is None else f"{found:.2f}")
        lines.append(_line(case[OURS].model, case[OURS].cluster, *cells))
    return "\n".join(lines)


def _fusion(full: Sequence[Case], unfused: Sequence[Case]) -> str:
    lines = [_head("model", "cluster", "operators", "unfused", "ours ms", "unfused ms", "ours s",
                   "unfused s", "best other ms", "unfused ms")]  # fmt: skip
    known = {(case[OURS].model, case[OURS].cluster): case for case in full}
    for fine in unfused:
        case = known.get((fine[OURS].model, fine[OURS].cluster))
        if case is None:
            continue
        one, other = case[OURS], fine[OURS]
        lines.append(
            _line(one.model, one.cluster, one.operators, other.operators, _ms(one.makespan_ns),
                  _ms(other.makespan_ns), f"{one.time_s:.1f}", f"{other.time_s:.1f}",
                  *(_best(case), _best(fine)))
        )  # fmt: skip
    return "\n".join(lines)


def _best(case: Case) -> str:
    found = {m: case[m].makespan_ns for m in BASELINES if m in case and case[m].makespan_ns}
    best = min(found, key=lambda method: found[method] or 0, default="")
    return f"{_ms(found[best])} ({best})" if best else "-"


def write_figures(rows: Mapping[Any, Row], path: Path) -> None:
    """Ratios by model, time against quality, and gaps as one page; needs plotly."""
    import plotly.graph_objects as go
    from plotly.io import to_html

    cases = [c for c in by_case(rows) if _solved(c) and c[OURS].variant == FULL]
    names = [f"{case[OURS].model}, {case[OURS].cluster}" for case in cases]
    ratios, times = go.Figure(), go.Figure()
    for method in BASELINES:
        found = [ratio(case, method) for case in cases]
        ratios.add_bar(x=names, y=found, name=method)
    for method in (OURS, *BASELINES):
        points = [(c[method].time_s, ratio(c, method)) for c in cases if method in c]
        times.add_scatter(
            x=[max(0.001, x) for x, _ in points], y=[y for _, y in points], text=names,
            mode="markers", name=method,
        )  # fmt: skip
    ratios.update_layout(title="Latency over ours", yaxis_type="log")
    times.update_layout(
        title="Latency over ours against seconds to find it", xaxis_type="log", yaxis_type="log"
    )
    gaps = go.Figure(go.Bar(x=names, y=[100 * gap(case) for case in cases]))
    gaps.update_layout(title="What is not proved of ours, %")
    pages = list(_html(to_html, (ratios, times, gaps)))
    path.write_text(f"<!doctype html><meta charset=utf-8><title>Comparison</title>{''.join(pages)}")


def _html(to_html: Any, figures: Sequence[Any]) -> Iterator[str]:
    for number, figure in enumerate(figures):
        yield to_html(figure, full_html=False, include_plotlyjs=number == 0)


def _head(*cells: str) -> str:
    return f"{_line(*cells)}\n|{'---|' * len(cells)}"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _ms(time_ns: int | None) -> str:
    return "-" if time_ns is None else f"{time_ns / 1e6:.3f}"

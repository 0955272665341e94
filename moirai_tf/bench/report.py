"""What a benchmark found: predicted and measured latencies as values and as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from moirai_tf.bench.latency import Latencies, ratio
from moirai_tf.bench.table import table
from moirai_tf.bench.trace import Trace

_HEAD = (
    "run", "predicted", "measured", "quartiles", "error",
    "predicted speed-up", "measured speed-up",
)  # fmt: skip


@dataclass(frozen=True)
class BenchRow:
    """One way to run the signature."""

    name: str
    predicted_ns: int | None
    """What the plan promises; None if it promises nothing."""
    measured: Latencies
    baseline: str | None = None
    """Name of the row of the best single device; None if there is none."""

    @property
    def error(self) -> float | None:
        """How far the prediction is above (positive) or below the measured median, as a share."""
        if self.predicted_ns is None or not self.measured.median_ns:
            return None
        return self.predicted_ns / self.measured.median_ns - 1


@dataclass(frozen=True)
class BenchReport:
    """Latencies of placed models, measured side by side."""

    cluster: str
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...] = field(default=())
    """What a reader must know to judge the numbers."""
    trace: Trace | None = None
    """Of the first placed model, if a trace was asked for."""

    def row(self, name: str) -> BenchRow:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def predicted_speedup(self, name: str) -> float | None:
        """Predicted latency of the best single device over that of a row."""
        row = self.row(name)
        single = None if row.baseline is None else self.row(row.baseline).predicted_ns
        if single is None or not row.predicted_ns:
            return None
        return single / row.predicted_ns

    def measured_speedup(self, name: str) -> float | None:
        """Measured latency of the best single device over that of a row, in pairs per round."""
        row = self.row(name)
        if row.baseline is None:
            return None
        return ratio(self.row(row.baseline).measured, row.measured)

    def __str__(self) -> str:
        lines = table([_HEAD, *(self._cells(row) for row in self.rows)])
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines if self.trace is None else [*lines, "", str(self.trace)])

    def _cells(self, row: BenchRow) -> tuple[str, ...]:
        low, high = row.measured.quartiles_ns
        return (
            row.name,
            "-" if row.predicted_ns is None else f"{row.predicted_ns / 1e6:.3f} ms",
            f"{row.measured.median_ns / 1e6:.3f} ms",
            f"{low / 1e6:.3f} .. {high / 1e6:.3f} ms",
            "-" if row.error is None else f"{100 * row.error:+.1f} %",
            _times(self.predicted_speedup(row.name)),
            _times(self.measured_speedup(row.name)),
        )


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f} x"

"""What a benchmark found: predicted and measured latencies as values and as a table.

Several ways to run one signature are measured in turns, so that drift hits all of them alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from moirai_tf.bench.trace import Trace, table
from moirai_tf.cluster.units import milliseconds
from moirai_tf.errors import MoiraiError
from moirai_tf.progress import stage
from moirai_tf.runtime.timing import elapsed_ns, warm_up

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

    @property
    def facts(self) -> dict[str, object]:
        """What the table says, for programs."""
        rows = []
        for row in self.rows:
            rows.append(
                {
                    "name": row.name,
                    "baseline": row.baseline,
                    "predicted_ns": row.predicted_ns,
                    "measured_ns": row.measured.median_ns,
                    "quartiles_ns": row.measured.quartiles_ns,
                    "error": row.error,
                    "predicted_speedup": self.predicted_speedup(row.name),
                    "measured_speedup": self.measured_speedup(row.name),
                }
            )
        return {"cluster": self.cluster, "rows": rows, "notes": self.notes}

    def __str__(self) -> str:
        lines = table([_HEAD, *(self._cells(row) for row in self.rows)])
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines if self.trace is None else [*lines, "", str(self.trace)])

    def _cells(self, row: BenchRow) -> tuple[str, ...]:
        low, high = row.measured.quartiles_ns
        return (
            row.name,
            "-" if row.predicted_ns is None else milliseconds(row.predicted_ns),
            milliseconds(row.measured.median_ns),
            f"{low / 1e6:.3f} .. {milliseconds(high)}",
            "-" if row.error is None else f"{100 * row.error:+.1f} %",
            _times(self.predicted_speedup(row.name)),
            _times(self.measured_speedup(row.name)),
        )


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f} x"


@dataclass(frozen=True)
class Latencies:
    """The latency of one run, once per round."""

    samples_ns: tuple[int, ...]

    @property
    def median_ns(self) -> int:
        """The middle of the samples."""
        return round(float(np.median(self.samples_ns)))

    @property
    def quartiles_ns(self) -> tuple[int, int]:
        """A quarter of the samples is below the first, a quarter above the second."""
        low, high = np.percentile(self.samples_ns, (25, 75))
        return round(float(low)), round(float(high))

    @property
    def spread(self) -> float:
        """Distance of the quartiles, relative to the median."""
        low, high = self.quartiles_ns
        return (high - low) / self.median_ns if self.median_ns else 0.0


def measure_latencies(
    runs: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int, seed: int = 0
) -> dict[str, Latencies]:
    """Calls every run once per round, in an order that changes from round to round.

    Args:
      runs: name -> a call that runs the signature once and returns when its results are here.
      repeats: rounds that count.
      warmup: calls of every run before them; more follow while it still gets faster.
      seed: of the orders.

    Returns:
      Name -> latencies in nanoseconds, one per round: those of equal position belong together.

    Raises:
      MoiraiError: there is nothing to repeat.
    """
    check_count("repeats", repeats, 1)
    check_count("warmup", warmup, 0)
    order = list(runs)
    generator = random.Random(seed)
    samples: dict[str, list[int]] = {name: [] for name in runs}
    with stage("warm up", len(runs)) as steps:
        for run in runs.values():
            warm_up(run, warmup)
            steps.advance()
    with stage("measure in turns", repeats) as steps:
        for _ in range(repeats):
            generator.shuffle(order)
            for name in order:
                samples[name].append(elapsed_ns(runs[name]))
            steps.advance()
    return {name: Latencies(tuple(values)) for name, values in samples.items()}


def check_count(name: str, value: int, least: int) -> None:
    """Refuses a number of runs that is too small.

    Raises:
      MoiraiError: naming the option.
    """
    if value < least:
        raise MoiraiError(
            f"{name} is {value}",
            why="what is shown is the median of several runs",
            fix=f"give {least} or more",
        )


def ratio(one: Latencies, other: Latencies) -> float:
    """How many times as long `one` takes as `other`: the median of the ratios of each round.

    What slows a machine down for a while slows both down, so it cancels within a round.
    """
    pairs = zip(one.samples_ns, other.samples_ns, strict=True)
    return float(np.median([first / max(second, 1) for first, second in pairs]))

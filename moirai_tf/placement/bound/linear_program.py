"""A linear program with integer data, free of any solver, and what can be proved with its duals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moirai_tf.placement.problem import BoolArray, IntArray

FloatArray = npt.NDArray[np.float64]
Terms = Iterable[tuple[int, int]]
"""(coefficient, column) pairs; a column may occur several times."""

_DUAL_DENOMINATOR = 2**40


@dataclass(frozen=True)
class LinearModel:
    """Minimise a cost subject to sparse rows; every column has finite bounds.

    Rows are stored one after another: row r has entries `starts[r]:starts[r + 1]`.
    """

    cost: IntArray
    """Coefficient of each column."""
    lower: IntArray
    upper: IntArray
    integer: BoolArray
    unit: IntArray
    """Size of a column's typical step; solvers see `x / unit`."""
    starts: IntArray
    index: IntArray
    value: IntArray
    row_lower: FloatArray
    """-inf where there is none; finite entries are whole numbers."""
    row_upper: FloatArray

    @property
    def cost_unit(self) -> int:
        """Size of a typical step of the cost; solvers see `cost / cost_unit`."""
        return int(np.abs(self.cost * self.unit).max(initial=0)) or 1

    @property
    def columns(self) -> int:
        """Number of columns."""
        return len(self.lower)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.row_lower)

    def scaled(self) -> ScaledModel:
        """The same program in columns `x / unit`, each row divided by its largest coefficient."""
        value = self.value.astype(np.float64) * self.unit[self.index]
        row_scale = np.ones(self.rows)
        if len(value):
            largest = np.maximum.reduceat(np.abs(value), self.starts[:-1])
            row_scale = 1.0 / np.where(largest > 0, largest, 1.0)
        lengths = np.diff(self.starts)
        return ScaledModel(
            cost=self.cost * self.unit / self.cost_unit,
            lower=self.lower / self.unit,
            upper=self.upper / self.unit,
            value=value * np.repeat(row_scale, lengths).astype(np.float64),
            row_lower=self.row_lower * row_scale,
            row_upper=self.row_upper * row_scale,
            row_scale=row_scale,
        )


@dataclass(frozen=True)
class ScaledModel:
    """The numbers of a `LinearModel` as a floating point solver should see them."""

    cost: FloatArray
    lower: FloatArray
    upper: FloatArray
    value: FloatArray
    row_lower: FloatArray
    row_upper: FloatArray
    row_scale: FloatArray


@dataclass
class ModelBuilder:
    """Collects columns and rows."""

    lower: list[int] = field(default_factory=list)
    upper: list[int] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    unit: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    index: list[int] = field(default_factory=list)
    value: list[int] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)

    def column(self, lower: int, upper: int, *, integer: bool = False, unit: int = 1) -> int:
        """A new column, as its index."""
        self.lower.append(lower)
        self.upper.append(upper)
        self.integer.append(integer)
        self.unit.append(unit)
        return len(self.lower) - 1

    def at_least(self, terms: Terms, lower: int) -> None:
        """Row `sum(terms) >= lower`."""
        self._row(terms, lower, math.inf)

    def at_most(self, terms: Terms, upper: int) -> None:
        """Row `sum(terms) <= upper`."""
        self._row(terms, -math.inf, upper)

    def equal(self, terms: Terms, value: int) -> None:
        """Row `sum(terms) == value`."""
        self._row(terms, value, value)

    def build(self, objective: int) -> LinearModel:
        """The model that minimises column `objective`."""
        return self.build_with({objective: 1})

    def build_with(self, cost: Mapping[int, int]) -> LinearModel:
        """The model that minimises a sum of columns, given their coefficients."""
        costs = np.zeros(len(self.lower), dtype=np.int64)
        costs[list(cost)] = list(cost.values())
        return LinearModel(
            cost=costs,
            lower=np.array(self.lower, dtype=np.int64),
            upper=np.array(self.upper, dtype=np.int64),
            integer=np.array(self.integer, dtype=np.bool_),
            unit=np.array(self.unit, dtype=np.int64),
            starts=np.array(self.starts, dtype=np.int64),
            index=np.array(self.index, dtype=np.int64),
            value=np.array(self.value, dtype=np.int64),
            row_lower=np.array(self.row_lower, dtype=np.float64),
            row_upper=np.array(self.row_upper, dtype=np.float64),
        )

    def _row(self, terms: Terms, lower: float, upper: float) -> None:
        merged: dict[int, int] = {}
        for coefficient, column in terms:
            merged[column] = merged.get(column, 0) + coefficient
        entries = [(column, value) for column, value in merged.items() if value]
        if not entries and lower <= 0 <= upper:
            return
        if not entries:  # a row that cannot hold must stay, or the model would lie
            entries = [(0, 0)]
        self.index.extend(column for column, _ in entries)
        self.value.extend(value for _, value in entries)
        self.starts.append(len(self.index))
        self.row_lower.append(lower)
        self.row_upper.append(upper)


def dual_bound(model: LinearModel, duals: FloatArray) -> int:
    """A lower bound on the linear program that holds whatever the duals are.

    With y >= 0 on `>=` rows and y <= 0 on `<=` rows, every feasible x has
    `c x >= y b + (c - y A) x`, and the last term is least at a bound of each column. The duals
    are rounded to multiples of 2**-40 and the sum is done in whole numbers, so it is exact
    (Neumaier and Shcherbina 2004, with integers for directed rounding).

    Args:
      model: the program.
      duals: one per row, for the unscaled model, as a solver gave them.
    """
    finite = np.where(np.isfinite(duals), duals, 0.0).tolist()
    weights = [round(dual * _DUAL_DENOMINATOR) for dual in finite]
    reduced = [cost * _DUAL_DENOMINATOR for cost in model.cost.tolist()]
    starts, index, value = model.starts.tolist(), model.index.tolist(), model.value.tolist()
    total = 0
    for row, weight in enumerate(weights):
        side = model.row_lower[row] if weight > 0 else model.row_upper[row]
        if weight == 0 or not math.isfinite(side):
            continue
        total += weight * int(side)
        for entry in range(starts[row], starts[row + 1]):
            reduced[index[entry]] -= weight * value[entry]
    for cost, low, high in zip(reduced, model.lower.tolist(), model.upper.tolist(), strict=True):
        total += cost * (low if cost > 0 else high)
    return -(-total // _DUAL_DENOMINATOR)


def start_vector(values: Mapping[int, int]) -> tuple[IntArray, FloatArray]:
    """Known values of some columns as two arrays, by increasing column."""
    columns = sorted(values)
    return (
        np.array(columns, dtype=np.int64),
        np.array([values[column] for column in columns], dtype=np.float64),
    )


def time_unit_ns(horizon_ns: int) -> int:
    """Unit in which solvers see times: the horizon is then about 1,000, far from tolerances."""
    return max(1, horizon_ns // 1000)


def largest(columns: Mapping[int, int], values: FloatArray) -> int:
    """The key whose column has the largest value, ties to the first."""
    return max(columns, key=lambda key: float(values[columns[key]]))

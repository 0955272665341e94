"""Gurobi as a backend, where it is installed and its licence allows the model."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray, LinearModel
from moirai_tf.placement.exact.milp.outcome import (
    NO_SOLUTION,
    SOLVED,
    STOPPED,
    BackendRefusalError,
    Limits,
    Outcome,
)


def solve(model: LinearModel, start: Mapping[int, int], limits: Limits) -> Outcome:
    """Solves an integer program.

    Raises:
      BackendRefusalError: when gurobipy is not installed, or its licence is missing or limited
        to smaller models (the one that comes with the package allows 2,000 columns and rows).
    """
    if limits.time_s <= 0:
        return Outcome(STOPPED, -math.inf)
    try:
        import gurobipy
    except ImportError as error:
        raise BackendRefusalError("gurobipy is not installed") from error
    try:
        with gurobipy.Env(params=_parameters(limits)) as env, gurobipy.Model(env=env) as gurobi:
            return _solve(gurobipy, gurobi, model, start)
    except gurobipy.GurobiError as error:
        raise BackendRefusalError(f"Gurobi error {error.errno}: {error}") from error


def _parameters(limits: Limits) -> dict[str, Any]:
    return {
        "OutputFlag": 0,
        "TimeLimit": limits.time_s,
        "MIPGap": limits.mip_gap,
        "MIPGapAbs": 0.0,
        "Threads": limits.threads,
        "Seed": limits.seed,
        "IntFeasTol": 1e-7,
    }


def _solve(gurobipy: Any, gurobi: Any, model: LinearModel, start: Mapping[int, int]) -> Outcome:
    columns = _fill(gurobipy, gurobi, model)
    for column, value in start.items():
        columns[column].Start = value
    began = time.monotonic()
    incumbents: list[tuple[float, FloatArray]] = []

    def improved(gurobi: Any, where: int) -> None:
        if where == gurobipy.GRB.Callback.MIPSOL:
            found = np.array(gurobi.cbGetSolution(columns), dtype=np.float64) * model.unit
            incumbents.append((time.monotonic() - began, found))

    gurobi.optimize(improved)
    interrupted = gurobi.Status == gurobipy.GRB.INTERRUPTED
    if gurobi.Status in (gurobipy.GRB.INFEASIBLE, gurobipy.GRB.INF_OR_UNBD):
        return Outcome(NO_SOLUTION, math.inf)
    state = SOLVED if gurobi.Status == gurobipy.GRB.OPTIMAL else STOPPED
    bound = gurobi.ObjBound * model.cost_unit
    return Outcome(state, bound, tuple(incumbents), interrupted=interrupted)


def _fill(gurobipy: Any, gurobi: Any, model: LinearModel) -> list[Any]:
    """Hands the scaled model over, row by row; its columns."""
    scaled = model.scaled()
    kinds = np.where(model.integer, gurobipy.GRB.INTEGER, gurobipy.GRB.CONTINUOUS)
    variables = gurobi.addVars(
        model.columns,
        lb=scaled.lower.tolist(),
        ub=scaled.upper.tolist(),
        obj=scaled.cost.tolist(),
        vtype=kinds.tolist(),
    )
    columns = [variables[column] for column in range(model.columns)]
    for row, (low, high) in enumerate(zip(scaled.row_lower, scaled.row_upper, strict=True)):
        entries = slice(model.starts[row], model.starts[row + 1])
        terms = [columns[column] for column in model.index[entries]]
        expression = gurobipy.LinExpr(scaled.value[entries].tolist(), terms)
        if low == high:
            gurobi.addLConstr(expression, gurobipy.GRB.EQUAL, low)
        elif math.isfinite(low):
            gurobi.addLConstr(expression, gurobipy.GRB.GREATER_EQUAL, low)
        else:
            gurobi.addLConstr(expression, gurobipy.GRB.LESS_EQUAL, high)
    return columns

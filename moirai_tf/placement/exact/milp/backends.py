"""Solvers of linear and integer programs, HiGHS and Gurobi, and what they report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import highspy
import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray, LinearModel, start_vector
from moirai_tf.placement.clock import Deadline, OutOfTimeError

SOLVED, STOPPED, NO_SOLUTION = "solved", "stopped", "no solution"


@dataclass(frozen=True)
class Outcome:
    """End of one solver run."""

    state: str
    """`solved`: to the gap asked for; `stopped`: a limit or Ctrl-C; `no solution`: infeasible."""
    bound: float
    """Lower bound on the objective in the model's own units; -inf if there is none."""
    incumbents: tuple[tuple[float, FloatArray], ...] = ()
    """(seconds since the start, column values) of every improvement, best last."""
    row_duals: FloatArray | None = None
    """Duals of the unscaled rows, for a linear program."""
    solution: FloatArray | None = None
    """Column values of a linear program."""
    interrupted: bool = False
    """Ctrl-C was pressed."""


@dataclass(frozen=True)
class Limits:
    """When a run stops and how it is seeded."""

    time_s: float
    mip_gap: float = 0.0
    threads: int = 1
    seed: int = 0
    cutoff: float | None = None
    """Only a smaller objective is of interest; the search may end once there is none."""
    proof: bool = False
    """Whether it is all about the bound."""
    vertex: bool = False
    """Whether a linear program's solution has to be a vertex."""


class BackendRefusalError(Exception):
    """A solver is missing, has no licence, or its licence is too small for the model."""


class Backend(Protocol):
    """An integer solver."""

    def __call__(self, model: LinearModel, start: Mapping[int, int], limits: Limits) -> Outcome:
        """Solves a model from the known values of some integer columns.

        Raises:
          BackendRefusalError: when it cannot solve this model here.
        """


_FIRST_POLL_S, _LAST_POLL_S = 0.0005, 0.05
_MINIMISE, _ROWWISE = 1, 2


class _QuietHighs(highspy.Highs):  # type: ignore[misc]  # HiGHS is seen as Any
    """HiGHS without its banner, which is printed as soon as callbacks are enabled."""

    def enableCallbacks(self) -> None:  # noqa: N802
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()


def solve_with_highs(model: LinearModel, start: Mapping[int, int], limits: Limits) -> Outcome:
    """Solves a model; columns without `integer` only make it a linear program.

    An interrupt (Ctrl-C) stops the run; what was found is in the outcome.
    """
    if limits.time_s <= 0:
        return Outcome(STOPPED, -math.inf)
    highs = _prepared(model, limits)
    if start:
        columns, values = start_vector(start)
        highs.setSolution(len(columns), columns.astype(np.int32), values)
    began = time.monotonic()
    incumbents: list[tuple[float, FloatArray]] = []

    def improved(event: highspy.HighsCallbackEvent) -> None:
        incumbents.append((time.monotonic() - began, np.array(event.data_out.mip_solution)))

    if model.integer.any():
        highs.cbMipImprovingSolution += improved
    interrupted = _run(highs)
    if model.integer.any():
        _add_last(highs, incumbents, time.monotonic() - began)
    return _outcome(model, highs, incumbents, interrupted)


def solved_vertex(model: LinearModel, deadline: Deadline) -> FloatArray:
    """Column values of an optimal vertex of a linear program.

    Raises:
      OutOfTimeError: there was no time for it; KeyboardInterrupt likewise.
    """
    outcome = solve_with_highs(model, {}, Limits(deadline.remaining_s(), vertex=True))
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.solution is None:
        raise OutOfTimeError
    return outcome.solution


def _add_last(
    highs: highspy.Highs, incumbents: list[tuple[float, FloatArray]], seconds: float
) -> None:
    """Adds the final solution, of which HiGHS does not always tell when it is found."""
    status, final = highs.getInfo().primal_solution_status, highs.getSolution().col_value
    if status == highspy.SolutionStatus.kSolutionStatusFeasible and len(final):
        cost = np.array(highs.getLp().col_cost_)
        if not incumbents or cost @ final < cost @ incumbents[-1][1]:
            incumbents.append((seconds, np.array(final)))


def _prepared(model: LinearModel, limits: Limits) -> highspy.Highs:
    # Without the reset a second run with other threads fails and reports an objective of 0.
    highspy.Highs.resetGlobalScheduler(True)
    highs = _QuietHighs()
    options: dict[str, float | str] = {
        "threads": limits.threads,
        "random_seed": limits.seed,
        "time_limit": limits.time_s,
        "mip_rel_gap": limits.mip_gap,
        "mip_feasibility_tolerance": 1e-7,
    }
    if limits.cutoff is not None:
        options["objective_bound"] = limits.cutoff / model.cost_unit
    if limits.proof:
        options["mip_heuristic_effort"] = 0.0
    if not model.integer.any():  # any duals prove a bound, so a vertex is not worth its time
        options |= {"solver": "ipm", "run_crossover": "on" if limits.vertex else "off"}
    for name, value in options.items():
        highs.setOptionValue(name, value)
    highs.HandleUserInterrupt = True
    scaled = model.scaled()
    status = highs.passModel(
        model.columns,
        model.rows,
        len(model.value),
        _ROWWISE,
        _MINIMISE,
        0.0,
        scaled.cost,
        scaled.lower,
        scaled.upper,
        scaled.row_lower,
        scaled.row_upper,
        model.starts[:-1].astype(np.int32),
        model.index.astype(np.int32),
        scaled.value,
        model.integer.astype(np.int32),
    )
    if status == highspy.HighsStatus.kError:
        raise RuntimeError("HiGHS refused a model; it was built wrongly")
    return highs


def _run(highs: highspy.Highs) -> bool:
    """Runs in a thread, since Ctrl-C reaches only the main one; whether it was pressed.

    Sleeping takes the place of `Thread.join`: an interrupted join takes a thread that still runs
    for stopped (bpo-45274), and a process that ends then takes HiGHS down with a crash.
    """
    thread = highs.startSolve()
    interrupted = False
    pause_s = _FIRST_POLL_S
    while thread.is_alive():
        try:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_POLL_S)
        except KeyboardInterrupt:
            interrupted = True
            highs.cancelSolve()
    return interrupted


def _outcome(
    model: LinearModel,
    highs: highspy.Highs,
    incumbents: list[tuple[float, FloatArray]],
    interrupted: bool,
) -> Outcome:
    status, info = highs.getModelStatus(), highs.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Outcome(NO_SOLUTION, math.inf, interrupted=interrupted)
    state = SOLVED if status == highspy.HighsModelStatus.kOptimal else STOPPED
    unit = float(model.cost_unit)
    values = tuple((seconds, found * model.unit) for seconds, found in incumbents)
    if model.integer.any():
        return Outcome(state, info.mip_dual_bound * unit, values, interrupted=interrupted)
    solution = highs.getSolution()
    duals = np.array(solution.row_dual)
    if len(duals) != model.rows:
        return Outcome(state, -math.inf, interrupted=interrupted)
    # The bound of a linear program is not HiGHS's objective but what its duals prove.
    unscaled = duals * model.scaled().row_scale * unit
    columns = np.array(solution.col_value, dtype=np.float64) * model.unit
    return Outcome(state, -math.inf, row_duals=unscaled, solution=columns, interrupted=interrupted)


def solve_with_gurobi(model: LinearModel, start: Mapping[int, int], limits: Limits) -> Outcome:
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
            return _run_gurobi(gurobipy, gurobi, model, start)
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


def _run_gurobi(
    gurobipy: Any, gurobi: Any, model: LinearModel, start: Mapping[int, int]
) -> Outcome:
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

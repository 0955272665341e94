"""HiGHS as a backend: linear programs with duals, integer programs with incumbents."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import highspy
import numpy as np

from moirai_tf.placement.bound.linear_program import FloatArray, LinearModel, start_vector
from moirai_tf.placement.exact.milp.outcome import NO_SOLUTION, SOLVED, STOPPED, Limits, Outcome

_FIRST_POLL_S, _LAST_POLL_S = 0.0005, 0.05
_MINIMISE, _ROWWISE = 1, 2


class _QuietHighs(highspy.Highs):  # type: ignore[misc]  # HiGHS is seen as Any
    """HiGHS without its banner, which is printed as soon as callbacks are enabled."""

    def enableCallbacks(self) -> None:  # noqa: N802
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()


def solve(model: LinearModel, start: Mapping[int, int], limits: Limits) -> Outcome:
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
    return _outcome(model, highs, incumbents, interrupted)


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
        options |= {"solver": "ipm", "run_crossover": "off"}
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

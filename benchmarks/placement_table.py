"""Placement of every instance file in a folder: heuristics, answer, bound, gap and time as a table.

python -m benchmarks.placement_table --instances=FOLDER --time_limit_s=60
"""

from __future__ import annotations

import time
from pathlib import Path

from absl import app, flags

from moirai_tf.placement import (
    CONGESTION_MODES,
    STRATEGIES,
    TRANSFER_MODES,
    SolveOptions,
    read_problem,
    solve,
)

_INSTANCES = flags.DEFINE_string("instances", None, "folder of instance files (JSON)")
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", 60.0, "seconds for each instance")
_SOLVER = flags.DEFINE_enum("solver", "auto", list(STRATEGIES), "strategy")
_TRANSFERS = flags.DEFINE_enum("transfers", "per_tensor", TRANSFER_MODES, "transfer mode")
_CONGESTION = flags.DEFINE_enum("congestion", "port", CONGESTION_MODES, "congestion mode")

_HEADER = (
    "| instance | ops | single | HEFT | ETF | makespan | bound | gap | status | seconds |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main(_: list[str]) -> None:
    print(_HEADER)
    for path in sorted(Path(_INSTANCES.value).glob("*.json")):
        print(row(path), flush=True)


def row(path: Path) -> str:
    """The table's line for one instance; times in ns, `-` where there is none."""
    problem = read_problem(path, transfers=_TRANSFERS.value, congestion=_CONGESTION.value)
    began = time.monotonic()
    result = solve(problem, SolveOptions(solver=_SOLVER.value, time_limit_s=_TIME_LIMIT_S.value))
    seconds = time.monotonic() - began
    baselines = dict(result.baselines)
    cells = (
        problem.name,
        len(problem.operators),
        *(baselines.get(name, "-") for name in ("single", "heft", "etf")),
        "-" if result.makespan_ns is None else result.makespan_ns,
        result.lower_bound_ns,
        "-" if result.gap is None else f"{100 * result.gap:.2f} %",
        result.status,
        f"{seconds:.1f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    flags.mark_flag_as_required("instances")
    app.run(main)

"""Makespan, proved bound, gap, time, memory and early incumbents of many instances: a table.

python -m benchmarks.solver_table
python -m benchmarks.solver_table --rows=gpt-500-4,swin-500-4 --time_limit_s=60
python -m benchmarks.solver_table --instances=FOLDER --transfers=per_edge --congestion=link
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from benchmarks.instances import FAMILIES, generate
from moirai_tf.placement import (
    CONGESTION_MODES,
    STRATEGIES,
    TRANSFER_MODES,
    Incumbent,
    Problem,
    SolveOptions,
    read_problem,
    solve,
)

_INSTANCES = flags.DEFINE_string("instances", None, "folder of instance files (JSON), as rows")
_ROWS = flags.DEFINE_list(
    "rows", None, "names of files, or FAMILY-OPERATORS-DEVICES to generate; default: all"
)
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", None, "seconds for each row, for all the same")
_SOLVER = flags.DEFINE_enum("solver", "auto", list(STRATEGIES), "strategy")
_TRANSFERS = flags.DEFINE_enum("transfers", "per_tensor", TRANSFER_MODES, "transfers of files")
_CONGESTION = flags.DEFINE_enum("congestion", "port", CONGESTION_MODES, "congestion of files")

_GENERATED = {
    **{f"{family}-{size}-4": 60.0 for family in FAMILIES for size in (500, 3000)},
    **{f"gpt-{operators}-4": 30.0 for operators in (20, 60, 90, 500, 3000, 10000)},
    **{f"gpt-{operators}-8": 60.0 for operators in (500, 3000)},
    "gpt-100000-4": 120.0,
}
"""Rows with their time limits; of equal names the last holds."""
_MOMENTS_S = (1, 10, 60)
_HEADER = (
    "| instance | operators | best heuristic | makespan | bound | gap | limit s | seconds | MB "
    "| after 1 s | 10 s | 60 s |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def main(_: list[str]) -> None:
    folder = _INSTANCES.value
    files = {path.stem: path for path in sorted(Path(folder).glob("*.json"))} if folder else {}
    print(_HEADER)
    for name in _ROWS.value or files or _GENERATED:
        limit_s = _TIME_LIMIT_S.value or _GENERATED.get(name, 60.0)
        options = SolveOptions(solver=_SOLVER.value, time_limit_s=limit_s)
        modes = _TRANSFERS.value, _CONGESTION.value
        with multiprocessing.get_context("spawn").Pool(1) as alone:  # for its peak of memory
            print(alone.apply(row, (name, files.get(name), modes, options)), flush=True)


def problem_of(name: str, file: Path | None, modes: tuple[str, str]) -> Problem:
    """The instance of a row."""
    if file:
        return read_problem(file, transfers=modes[0], congestion=modes[1])
    family, operators, devices = name.rsplit("-", 2)
    return generate(family, int(operators), int(devices))


def row(name: str, file: Path | None, modes: tuple[str, str], options: SolveOptions) -> str:
    """The table's line for one instance; times in ns, `-` where there is none."""
    problem = problem_of(name, file, modes)
    began = time.monotonic()
    result = solve(problem, options)
    seconds = time.monotonic() - began
    cells = (
        problem.name,
        len(problem.operators),
        min((makespan for _, makespan in result.baselines), default="-"),
        "-" if result.makespan_ns is None else result.makespan_ns,
        result.lower_bound_ns,
        "-" if result.gap is None else f"{100 * result.gap:.3f} %",
        f"{options.time_limit_s:g}",
        f"{seconds:.1f}",
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        *(best_by(result.history, moment) for moment in _MOMENTS_S),
    )
    return f"| {' | '.join(map(str, cells))} |"


def best_by(history: Sequence[Incumbent], moment_s: float) -> str:
    """The best makespan known at a moment."""
    known = [incumbent.makespan_ns for incumbent in history if incumbent.time_s <= moment_s]
    return str(known[-1]) if known else "-"


if __name__ == "__main__":
    app.run(main)

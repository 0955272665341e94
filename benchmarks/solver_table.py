"""Makespan, proved bound, gap, time and early incumbents of generated and given instances: a table.

python -m benchmarks.solver_table --rows=gpt-500-4,swin-500-4 --time_limit_s=60
python -m benchmarks.solver_table --instances=FOLDER --transfers=per_edge --congestion=link
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
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

_INSTANCES = flags.DEFINE_string("instances", None, "folder of instance files (JSON) to add")
_ROWS = flags.DEFINE_list(
    "rows", None, "names of files, or FAMILY-OPERATORS-DEVICES to generate; default: all"
)
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", 60.0, "seconds for each instance")
_SOLVER = flags.DEFINE_enum("solver", "auto", list(STRATEGIES), "strategy")
_TRANSFERS = flags.DEFINE_enum("transfers", "per_tensor", TRANSFER_MODES, "transfers of files")
_CONGESTION = flags.DEFINE_enum("congestion", "port", CONGESTION_MODES, "congestion of files")

_GENERATED = (
    *(f"gpt-{operators}-4" for operators in (20, 60, 90, 500, 3000, 10000, 100000)),
    *(f"gpt-{operators}-8" for operators in (500, 3000)),
    *(f"{family}-{size}-4" for family in FAMILIES if family != "gpt" for size in (500, 3000)),
)
_MOMENTS_S = (1, 10, 60)
_HEADER = (
    "| instance | operators | best heuristic | makespan | bound | gap | seconds "
    "| after 1 s | 10 s | 60 s |\n|---|---|---|---|---|---|---|---|---|---|"
)


def main(_: list[str]) -> None:
    print(_HEADER)
    for problem in problems():
        print(row(problem), flush=True)


def problems() -> Iterator[Problem]:
    """The instances asked for, files first."""
    folder = _INSTANCES.value
    names = {path.stem: path for path in sorted(Path(folder).glob("*.json"))} if folder else {}
    for name in _ROWS.value or (*names, *_GENERATED):
        if name in names:
            yield read_problem(
                names[name], transfers=_TRANSFERS.value, congestion=_CONGESTION.value
            )
        else:
            family, operators, devices = name.rsplit("-", 2)
            yield generate(family, int(operators), int(devices))


def row(problem: Problem) -> str:
    """The table's line for one instance; times in ns, `-` where there is none."""
    began = time.monotonic()
    result = solve(problem, SolveOptions(solver=_SOLVER.value, time_limit_s=_TIME_LIMIT_S.value))
    seconds = time.monotonic() - began
    cells = (
        problem.name,
        len(problem.operators),
        min((makespan for _, makespan in result.baselines), default="-"),
        "-" if result.makespan_ns is None else result.makespan_ns,
        result.lower_bound_ns,
        "-" if result.gap is None else f"{100 * result.gap:.2f} %",
        f"{seconds:.1f}",
        *(best_by(result.history, moment) for moment in _MOMENTS_S),
    )
    return f"| {' | '.join(map(str, cells))} |"


def best_by(history: Sequence[Incumbent], moment_s: float) -> str:
    """The best makespan known at a moment."""
    known = [incumbent.makespan_ns for incumbent in history if incumbent.time_s <= moment_s]
    return str(known[-1]) if known else "-"


if __name__ == "__main__":
    app.run(main)

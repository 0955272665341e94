"""What methods make of placement problems, as rows that are kept and not computed twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from moirai_tf.placement import (
    Problem,
    Result,
    Schedule,
    SolveOptions,
    Tensor,
    check,
    simulate,
    solve,
)
from moirai_tf.placement.bound.packing import InfeasibleError
from moirai_tf.placement.clock import OutOfTimeError
from moirai_tf.placement.evaluate.events import order_by_start
from moirai_tf.placement.problem import NONE
from moirai_tf.placement.solve import make
from moirai_tf.records import write_text

OURS = "moirai"
BASELINES = ("single", "m-topo", "etf", "heft", "m-etf", "m-sct", "getf", "placeto")
FULL, UNFUSED = "", "unfused"
BLIND = ("congestion", "memory", "unequal devices")
"""What a plan is made without, before it is played with it."""


@dataclass(frozen=True)
class Row:
    """What one method made of one problem."""

    model: str
    cluster: str
    variant: str
    method: str
    operators: int
    devices: int
    makespan_ns: int | None = None
    """None where the method found nothing; `note` says why."""
    bound_ns: int = 0
    """Proved; of ours only."""
    peak_bytes: int = 0
    """Of the fullest device."""
    over_bytes: int = 0
    """Above capacities; only plans that were made without memory have any."""
    transfers: int = 0
    time_s: float = 0.0
    """To find it: of ours, to within 1 % of its final answer."""
    whole_s: float = 0.0
    """Of ours, bounds included."""
    note: str = ""
    curve: list[tuple[float, int, int]] = field(default_factory=list)
    """Of a method that learns: seconds, last and best makespan of each episode."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What no other row has."""
        return self.model, self.cluster, self.variant, self.method


@dataclass
class Rows:
    """A file of rows, whole after every one that is added."""

    path: Path
    known: dict[tuple[str, str, str, str], Row] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Rows:
        """What an earlier, perhaps interrupted, run has left."""
        rows = cls(path)
        if path.is_file():
            for values in json.loads(path.read_text()):
                row = Row(**values)
                rows.known[row.key] = row
        return rows

    def add(self, row: Row) -> None:
        """Keeps a row."""
        self.known[row.key] = row
        rows = [asdict(known) for known in self.known.values()]
        write_text(json.dumps(rows, indent=1) + "\n", self.path)


@dataclass(frozen=True)
class Case:
    """A problem to compare methods on."""

    model: str
    cluster: str
    variant: str
    read: Callable[[], Problem]
    """Makes the problem, which may take its time."""


def compare(
    case: Case,
    rows: Rows,
    methods: Sequence[str],
    blind: Sequence[str],
    ours: SolveOptions,
    theirs: SolveOptions,
    say: Callable[[str], None] = print,
) -> None:
    """Adds the rows of a problem that are missing.

    Args:
      case: the problem.
      rows: what is known.
      methods: to run, ours among them.
      blind: what ours is planned without, too, and then played with.
      ours: how our answer is found.
      theirs: budget of each other method.
      say: told of every row.
    """
    wanted = [*methods, *(f"without {what}" for what in blind)]
    missing = [m for m in wanted if (case.model, case.cluster, case.variant, m) not in rows.known]
    if not missing:
        return
    problem, last_note = case.read(), ""
    for method in missing:
        row = Row(
            case.model,
            case.cluster,
            case.variant,
            method,
            len(problem.operators),
            len(problem.devices),
        )
        began = time.monotonic()
        if method in BASELINES:
            row = _theirs(row, problem, replace(theirs, solver=method))
        else:
            row = _ours(row, problem, method.removeprefix("without "), ours)
        rows.add(row)
        took = time.monotonic() - began
        if row.makespan_ns is None:
            found = "the same" if row.note == last_note else row.note
        else:
            found = f"{row.makespan_ns / 1e6:.3f} ms"
        last_note = row.note
        label = " ".join(filter(None, (case.model, case.cluster, case.variant, method)))
        say(f"{label}: {found}, {took:.1f} s")


def _theirs(row: Row, problem: Problem, options: SolveOptions) -> Row:
    try:
        found = make(problem, options)
    except OutOfTimeError:
        return replace(row, note=f"not done after {options.time_limit_s:g} s")
    except InfeasibleError as error:
        return replace(row, note=str(error))
    if found is None:
        return replace(row, note="nothing that fits")
    made, curve = found
    episodes = [(round(e.time_s, 2), e.makespan_ns, e.best_ns) for e in curve]
    return replace(
        _played(row, problem, made.schedule), time_s=round(made.time_s, 3), curve=episodes
    )


def _ours(row: Row, problem: Problem, without: str, options: SolveOptions) -> Row:
    began = time.monotonic()
    result = solve(_blinded(problem, without), options)
    whole_s = time.monotonic() - began
    if result.schedule is None:
        return replace(row, note="; ".join(result.messages))
    schedule, bound_ns = result.schedule, result.lower_bound_ns
    if without in BLIND:
        order = order_by_start(problem, schedule)
        schedule, bound_ns = simulate(problem, schedule.assignment, order), 0
    row = _played(row, problem, schedule)
    return replace(
        row, bound_ns=bound_ns, time_s=round(_within_s(result), 2), whole_s=round(whole_s, 1)
    )


def _within_s(result: Result, share: float = 0.01) -> float:
    """When the answer was within a hundredth of what it ended with."""
    last_ns = result.makespan_ns or 0
    return next((i.time_s for i in result.history if i.makespan_ns <= (1 + share) * last_ns), 0.0)


def _blinded(problem: Problem, without: str) -> Problem:
    """The problem as it looks without a part of it."""
    if without == "congestion":
        return replace(problem, congestion=NONE)
    if without == "memory":
        devices = tuple(replace(device, memory_bytes=None) for device in problem.devices)
        return replace(problem, devices=devices)
    return _equal(problem) if without == "unequal devices" else problem


def _equal(problem: Problem) -> Problem:
    """Every device takes the mean time of those that are able, every pair that of all pairs."""
    operators = []
    for operator in problem.operators:
        times = [time for time in operator.compute_ns if time is not None]
        mean = round(sum(times) / len(times))
        row = tuple(None if time is None else mean for time in operator.compute_ns)
        operators.append(replace(operator, compute_ns=row))
    known: dict[int, tuple[tuple[int, ...], ...]] = {}
    count = len(problem.devices)
    for tensor in problem.tensors:
        mean = round(sum(map(sum, tensor.time_ns)) / max(1, count * (count - 1)))
        known.setdefault(
            id(tensor.time_ns),
            tuple(tuple(mean * (k != m) for m in range(count)) for k in range(count)),
        )
    tensors = (Tensor(t.producer, t.consumers, known[id(t.time_ns)]) for t in problem.tensors)
    return replace(problem, operators=tuple(operators), tensors=tuple(tensors))


def _played(row: Row, problem: Problem, schedule: Schedule) -> Row:
    """A row with what a schedule of the full problem costs."""
    used = problem.used_bytes(schedule.assignment)
    over = problem.excess_bytes(used)
    if not over and check(problem, schedule):
        raise AssertionError(f"{row.key}: {check(problem, schedule)[0]}")
    return replace(
        row,
        makespan_ns=schedule.makespan_ns,
        peak_bytes=max(used),
        over_bytes=over,
        transfers=len(schedule.transfers),
    )


def by_case(rows: Mapping[tuple[str, str, str, str], Row]) -> Iterator[dict[str, Row]]:
    """The rows of each problem, by method."""
    cases: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows.values():
        cases.setdefault((row.model, row.cluster, row.variant), {})[row.method] = row
    yield from cases.values()

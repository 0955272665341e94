"""The comparison command: rows by hand, what is taken up again, what the tables say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moirai_tf.placement import Problem, SolveOptions, write_problem
from tests.placement_cases import problem_of
from tests.test_commands import run
from tools._comparison import BLIND, OURS, Case, Row, Rows, compare
from tools._comparison_pages import page, write_figures

OURS_OPTIONS = SolveOptions(time_limit_s=5)
THEIRS = SolveOptions(time_limit_s=5, episodes=3)


def _two() -> Problem:
    """a and b side by side: ours 2 + 2 = 4 on d0; m-ETF starts b at 0 on d1, until 9."""
    return problem_of({"a": (2, 9), "b": (2, 9)}, [], memory={"a": 1, "b": 1})


def test_rows_are_what_was_played_and_not_done_twice(tmp_path: Path) -> None:
    made: list[str] = []

    def read() -> Problem:
        made.append("made")
        return _two()

    case, said = Case("two", "pair", "", read), []
    for _ in range(2):
        rows = Rows.read(tmp_path / "rows.json")
        compare(case, rows, ("m-etf", "placeto", OURS), (), OURS_OPTIONS, THEIRS, said.append)
    assert made == ["made"]
    assert len(said) == 3
    ours, theirs = (rows.known["two", "pair", "", name] for name in (OURS, "m-etf"))
    assert (ours.makespan_ns, ours.bound_ns, ours.peak_bytes, ours.transfers) == (4, 4, 2, 0)
    assert (theirs.makespan_ns, theirs.peak_bytes, theirs.bound_ns) == (9, 1, 0)
    assert len(rows.known["two", "pair", "", "placeto"].curve) == 3
    text = page(rows.known)
    assert "| two | pair | 2 | 0.000 | 0.000 | 0.00 % | - | - | - | - | 2.25 |" in text


def test_what_a_method_cannot_do_is_said(tmp_path: Path) -> None:
    apart = problem_of({"a": (2, None), "b": (None, 9)}, [])
    rows = Rows.read(tmp_path / "rows.json")
    case = Case("apart", "pair", "", lambda: apart)
    compare(case, rows, ("single", OURS), (), OURS_OPTIONS, THEIRS, str)
    assert rows.known["apart", "pair", "", "single"].note == "nothing that fits"
    assert "nothing that fits" in page(rows.known)


def test_what_no_method_can_do_is_said_once(tmp_path: Path) -> None:
    """Two bytes, and no device has room for more than one."""
    small = tuple(replace(device, memory_bytes=0) for device in _two().devices)
    case, said = Case("two", "small", "", lambda: replace(_two(), devices=small)), []
    rows = Rows.read(tmp_path / "rows.json")
    compare(case, rows, ("heft", "etf", OURS), (), OURS_OPTIONS, THEIRS, said.append)
    assert "bytes" in said[0]
    assert all(": the same, " in line for line in said[1:])
    assert all("bytes" in row.note for row in rows.known.values())
    assert "Ours found no placement for two on small\n" in page(rows.known)


def test_plans_made_blind_are_played_in_full(tmp_path: Path) -> None:
    """Without memory both go to d0, 1 byte over. Devices taken as equal (5.5 each): one each, 9."""
    tight = replace(_two(), devices=(replace(_two().devices[0], memory_bytes=1), _two().devices[1]))
    rows = Rows.read(tmp_path / "rows.json")
    case = Case("two", "tight", "", lambda: tight)
    compare(case, rows, (OURS,), BLIND, OURS_OPTIONS, THEIRS, str)
    found = {key[3]: row for key, row in rows.known.items()}
    assert found[OURS].makespan_ns == 9
    assert (found["without memory"].makespan_ns, found["without memory"].over_bytes) == (4, 1)
    assert found["without congestion"].makespan_ns == 9
    assert found["without unequal devices"].makespan_ns == 9
    assert "does not fit" in page(rows.known)


@pytest.mark.parametrize(
    ("bound", "theirs", "mark", "counts", "middle"),
    [
        (100, 105, "1.05 |", "0 times, and proved within 1 % on 1. On 0", "heft 1.05"),
        (90, 105, "1.05 = |", "0 times, and proved within 1 % on 0. On 1", "heft 1.05"),
        (90, 95, "0.95 = |", "1 times, and proved within 1 % on 0. On 1", "heft 0.95"),
    ],
)
def test_no_better_than_the_gap_is_marked_and_counted(
    bound: int, theirs: int, mark: str, counts: str, middle: str
) -> None:
    """105 over 100 with a proof of 100, and of 90: a gap of 10 %. Then 95 over 100."""
    row = Row("m", "c", "", OURS, 1, 2, makespan_ns=100, bound_ns=bound)
    other = replace(row, method="heft", makespan_ns=theirs)
    text = page({known.key: known for known in (row, other)})
    assert mark in text
    assert f"1 problems: ours is above a method's latency {counts} some method" in text
    assert f"Median latency over ours: {middle}, the best of them" in text


def test_command(tmp_path: Path) -> None:
    """Started again it adds a method; with other options it refuses."""
    write_problem(_two(), tmp_path / "two.json")
    output = tmp_path / "out"
    flags = [f"--instance={tmp_path / 'two.json'}", f"--output_dir={output}", "--time_limit_s=5"]
    assert run("compare", *flags, "--methods=heft").returncode == 0
    again = run("compare", *flags, "--methods=heft,getf")
    # The process that tests fork commands from has TensorFlow, which may have something to say.
    told = [line for line in again.stderr.splitlines() if line.startswith("two ")]
    assert told[0].startswith("two its own, port getf: 0.000 ms")
    assert "| two | its own, port |" in again.stdout
    rows = json.loads((output / "rows.json").read_text())
    assert [row["method"] for row in rows] == ["heft", OURS, "getf"]
    assert "Latency over ours" in (output / "figures.html").read_text()
    assert "| two | its own, port |" in (output / "comparison.md").read_text()
    other = run("compare", *flags, "--seed=1")
    assert other.returncode == 1
    assert "other options" in other.stderr


def test_models_on_clusters(tmp_path: Path, zoo_dir: Callable[[str], Path]) -> None:
    """One model on clusters of three and five devices, also unfused, also planned blind."""
    clusters = ("cpu_two_gpus", "four_gpus_one_server")
    done = run(
        "compare", f"--saved_model_dir={zoo_dir('ensemble')}", f"--output_dir={tmp_path / 'out'}",
        *(f"--cluster=configs/{name}.yaml" for name in clusters), "--batch_size=8", "--unfused",
        "--blind", "--methods=single,heft,m-sct,placeto", "--episodes=3", "--time_limit_s=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [Row(**row) for row in json.loads((tmp_path / "out" / "rows.json").read_text())]
    found = {(row.cluster, row.variant, row.method): row for row in rows}
    assert len(found) == len(clusters) * (5 + len(BLIND) + 5)
    for cluster, devices in zip(clusters, (3, 5), strict=True):
        ours, fine = found[cluster, "", OURS], found[cluster, "unfused", OURS]
        assert (ours.devices, fine.devices) == (devices, devices)
        assert ours.operators < fine.operators
        assert all((cluster, "", f"without {what}") in found for what in BLIND)
        theirs = [found[cluster, "", name].makespan_ns for name in ("single", "heft", "m-sct")]
        assert ours.bound_ns <= ours.makespan_ns <= min(theirs)
    assert "2 problems: ours is above a method's latency 0 times" in done.stdout


def test_figures(tmp_path: Path) -> None:
    row = Row("m", "c", "", OURS, 1, 2, makespan_ns=100, bound_ns=100)
    other = replace(row, method="heft", makespan_ns=150)
    write_figures({known.key: known for known in (row, other)}, tmp_path / "figures.html")
    assert "1.5" in (tmp_path / "figures.html").read_text()

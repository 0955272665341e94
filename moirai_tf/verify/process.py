"""Starts verification in a child process and adds what can be told without running anything."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moirai_tf.errors import MoiraiError
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.rewrite.diff import misplaced, unplanned_changes
from moirai_tf.rewrite.directory import unplaced
from moirai_tf.rewrite.plan_file import read_plan
from moirai_tf.verify.options import VerifyOptions, check_verify_options
from moirai_tf.verify.report import (
    MODEL,
    PLACEMENT,
    Finding,
    VerifyReport,
    check_report,
    report_from_json,
)


def verify(
    original: str | Path, placed: str | Path, options: VerifyOptions | None = None
) -> VerifyReport:
    """Proves that a placed model computes the same as the original, where its plan says.

    Works from any process: the models are run in a child process, which has the logical devices
    that the plan needs.

    Args:
      original: directory of the original SavedModel; only read.
      placed: directory of the placed SavedModel, which holds its plan; only read.
      options: how the models are run.

    Returns:
      What was compared and proved.

    Raises:
      MoiraiError: an output differs, an operator or a transfer is not where the plan says, weights
        move, or the models cannot be run here; it names the operators and outputs.
    """
    report = inspect_placed(original, placed, options)
    check_report(report)
    return report


def inspect_placed(
    original: str | Path, placed: str | Path, options: VerifyOptions | None = None
) -> VerifyReport:
    """The same, but findings are returned in the report.

    Raises:
      MoiraiError: the models cannot be read, run or compared here.
    """
    options = options or VerifyOptions()
    check_verify_options(options)
    static = _static_findings(Path(original), Path(placed))
    with tempfile.TemporaryDirectory(prefix="moirai_verify_") as work:
        report = _in_child(Path(original).resolve(), Path(placed).resolve(), options, Path(work))
    return replace(report, findings=(*static, *report.findings))


def _static_findings(original: Path, placed: Path) -> list[Finding]:
    """What the two protobufs tell: changes beyond devices, and nodes on other devices."""
    plan = read_plan(placed)
    before = unplaced(read_saved_model(original)).meta_graph(plan.tags)
    after = read_saved_model(placed).meta_graph(plan.tags)
    changes = [Finding(MODEL, text) for text in unplanned_changes(before, after, plan)]
    return changes + [Finding(PLACEMENT, text) for text in misplaced(after, plan)]


def _in_child(original: Path, placed: Path, options: VerifyOptions, work: Path) -> VerifyReport:
    answer = work / "answer.json"
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(VerifyOptions)}
    if options.inputs:
        fields["inputs"] = str(Path(options.inputs).resolve())
    job = {
        "original": str(original),
        "placed": str(placed),
        "options": fields,
        "work": str(work),
        "answer": str(answer),
    }
    job_file = work / "job.json"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    _run_child(job_file, options.verify_timeout_s)
    values = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in values:
        raise MoiraiError(values["error"]["rule"], **_why_and_fix(values["error"]))
    return report_from_json(values["report"])


def _why_and_fix(error: Mapping[str, str]) -> dict[str, str]:
    return {key: error[key] for key in ("why", "fix")}


def _run_child(job_file: Path, timeout_s: float) -> None:
    command = [sys.executable, "-m", "moirai_tf.verify", str(job_file)]
    try:
        done = subprocess.run(
            command, env=_environment(), capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MoiraiError(
            f"verification took longer than {timeout_s:g} s",
            why="without it nothing proves where operators run",
            fix="allow more time (--verify_timeout_s), or smaller inputs (--inputs)",
        ) from error
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise MoiraiError(
            f"the process that runs the models died with code {done.returncode}: "
            f"{' | '.join(last) or 'it said nothing'}",
            why="a negative code is a signal: -11 a crash in TensorFlow, -9 too little memory",
            fix="free memory or use smaller inputs; report a model that crashes TensorFlow",
        )


def _environment() -> dict[str, Any]:
    """The child finds the same package, takes GPU memory as needed, and is quiet."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
    }

"""TensorFlow's own view of signatures: what its runtime executes, with Grappler switched off.

A program of its own, `python -m tests.inliner_oracle JOBS.json`, since the switches belong to the
process. Prints, as JSON, the nodes of the graph that ran for every job.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SWITCHES = {"TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
LOADERS = ("tf2", "session")

Node = dict[str, Any]
"""`{"name", "op", "inputs", "argument"}`; the number of an `_Arg`, else None."""


@dataclass(frozen=True)
class Job:
    """A signature to run in one loader."""

    path: str
    tags: tuple[str, ...]
    signature: str
    loader: str


def executed(jobs: Sequence[tuple[Job, Mapping[str, Any]]]) -> list[list[Node]]:
    """Runs the program on jobs and their inputs."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number, (job, inputs) in enumerate(jobs):
            file = f"{folder}/{number}.npz"
            np.savez(file, **{k: _plain(v) for k, v in inputs.items()})
            rows.append([asdict(job), file])
        Path(folder, "jobs.json").write_text(json.dumps(rows))
        done = subprocess.run(
            [sys.executable, "-m", "tests.inliner_oracle", f"{folder}/jobs.json"],
            cwd=ROOT,
            env={**os.environ, **SWITCHES},
            stdout=subprocess.PIPE,
            check=True,
        )
    nodes: list[list[Node]] = json.loads(done.stdout)
    return nodes


def nodes_of(job: Job, inputs: Mapping[str, Any]) -> list[Node]:
    """The nodes of the graph that runs, in this process."""
    from moirai_tf.verify.run import SessionModel, Tf2Model

    where = (Path(job.path), job.tags, job.signature)
    model = Tf2Model(*where) if job.loader == "tf2" else SessionModel(*where, ["/device:CPU:0"])
    return list(_read(model.run(inputs, grappler=False).partitions[-1]))


def _read(graphs: Iterable[Any]) -> Iterable[Node]:
    for graph in graphs:
        for node in graph.node:
            argument = node.attr["index"].i if node.op == "_Arg" else None
            yield {
                "name": node.name, "op": node.op, "inputs": list(node.input), "argument": argument
            }  # fmt: skip


def _plain(value: Any) -> Any:
    return value.astype(str) if value.dtype == object else value


def _main(file: str) -> None:
    found = []
    for job, inputs in json.loads(Path(file).read_text()):
        with np.load(inputs) as arrays:
            found.append(nodes_of(Job(**job), dict(arrays)))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _main(sys.argv[1])

"""Builds models of the corpus, deals their operators out to two devices at random, verifies them.

With Grappler off operators are dealt out one by one. With Grappler on what it merges must not be
torn apart, so it is fused operators; then those that still bear their names, all transfers and all
weights must be where they were planned.

A program of its own, `python -m tests.corpus CASES.json`, since TensorFlow fixes its devices when
it starts. Prints a JSON list with a `Row` for every `[function, flavour]`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moirai_tf.graph.graph import Graph
from moirai_tf.graph.prune import prune
from moirai_tf.model.load import configure_logical_cpus
from moirai_tf.model.validate import function_attrs
from moirai_tf.verify.examine import examined as run_models
from moirai_tf.verify.options import VerifyOptions
from moirai_tf.verify.report import proved
from tests.corpus import ENTRIES
from tests.examiner import dealt
from tests.import_differences import Executed, differences, main_call
from tests.inliner_oracle import LOADERS, ROOT, SWITCHES, Job, nodes_of
from tests.placements import CPUS, place
from tests.saved_models import graph_of, proto_of

Case = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """What came of one model."""

    name: str
    flavour: str
    ops: tuple[str, ...]
    """Types of its operators, and of those in their functions."""
    proofs: tuple[str, ...]
    """Runs whose placement was proved."""
    devices: int
    """How many devices had operators."""
    faults: tuple[str, ...]
    """Findings, values that are not equal to the bit, notes, differences of the import."""


def examined(cases: Sequence[Case], grappler: str = "off") -> list[Row]:
    """Runs the program; `grappler` is the option of verification."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "cases.json")
        file.write_text(json.dumps([grappler, *cases]))
        done = subprocess.run(
            [sys.executable, "-m", "tests.corpus", str(file)],
            cwd=ROOT,
            env={**os.environ, **SWITCHES},
            stdout=subprocess.PIPE,
            check=True,
        )
    rows = json.loads(done.stdout)
    return [Row(**{k: tuple(v) if isinstance(v, list) else v for k, v in r.items()}) for r in rows]


def _row(name: str, flavour: str, grappler: str, folder: Path) -> Row:
    entry = ENTRIES[name]
    entry.build(folder / "model", flavour)
    arrays = entry.arrays()
    np.savez(folder / "inputs.npz", **arrays)
    options = {
        "input_shapes": tuple(f"{k}={','.join(map(str, a.shape))}" for k, a in arrays.items())
    }
    graph = graph_of(folder / "model", **options)
    lots = None if grappler == "off" else dealt(prune(graph), seed=len(name))
    plan = place(
        folder / "model", folder / "placed", seed=len(name), placement=lots, **options
    )  # fmt: skip
    (folder / "work").mkdir()
    wanted = VerifyOptions(grappler=grappler, inputs=str(folder / "inputs.npz"))
    here = dict(zip(CPUS, CPUS, strict=True))
    found = run_models(folder / "model", folder / "placed", here, wanted, folder / "work")
    report = proved(wanted, [found])
    faults = [f.text for f in report.findings]
    if flavour.startswith("tf2"):
        faults += report.notes
    if grappler == "off":
        faults += [
            f"{p.run}: {p.output} differs by {p.error}" for p in report.outputs if not p.bit_equal
        ]
        faults += _differences(graph, folder / "model", flavour, arrays)
    return Row(
        name, flavour, tuple(sorted(set(_ops(graph)))), tuple(p.run for p in report.proofs),
        len(set(plan.placement.values())), tuple(faults),
    )  # fmt: skip


def _differences(graph: Graph, path: Path, flavour: str, arrays: Any) -> Iterator[str]:
    """Between the import and the graphs that both loaders run."""
    for loader in LOADERS if flavour.startswith("tf2") else LOADERS[1:]:
        job = Job(str(path), graph.tags, graph.signature, loader)
        nodes = {node["name"]: node for node in nodes_of(job, arrays)}
        if loader == "session":
            ran = Executed(prune(graph), nodes)
        else:
            ran = Executed(graph, nodes, *main_call(proto_of(path).meta_graphs[0], graph))
        yield from (f"{loader}: {text}" for text in differences(ran))


def _ops(graph: Graph) -> Iterator[str]:
    """Types of all operators, and of those in the functions that they hold."""
    pending = [operator.node for operator in graph.operators]
    seen: set[str] = set()
    for node in pending:
        yield node.op
        for name in (node.op, *(function.name for _, _, function in function_attrs(node))):
            if name in graph.functions and name not in seen:
                seen.add(name)
                pending.extend(graph.functions[name].node_def)


def _rows(grappler: str, cases: Iterable[Case]) -> Iterator[Row]:
    for name, flavour in cases:
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield _row(name, flavour, grappler, Path(folder))
            except Exception:  # the rest is still of interest
                yield Row(name, flavour, (), (), 0, (traceback.format_exc(),))


def _main(file: str) -> None:
    grappler, *cases = json.loads(Path(file).read_text())
    configure_logical_cpus(len(CPUS))
    gc.freeze()  # verification collects garbage often: not from TensorFlow's own objects
    json.dump([asdict(row) for row in _rows(grappler, cases)], sys.stdout)


if __name__ == "__main__":
    _main(sys.argv[1])

"""Damaged and hostile files of every kind that is read, and what may become of them.

    python -m tests.hostile --count=2000

tries so many files of each kind and prints how many gave a result and how many a clear error.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import yaml
from tensorflow.core.framework import types_pb2

from moirai_tf.cluster.files import cluster_from_yaml, cluster_to_yaml, read_cluster
from moirai_tf.cost.coarse_problem import build_problem
from moirai_tf.cost.profile import ProfileOptions, profile
from moirai_tf.cost.table_files import read_table, write_table
from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarsen import FuseOptions, coarsen
from moirai_tf.model.input_files import read_inputs, save_inputs
from moirai_tf.model.saved_model import read_saved_model
from moirai_tf.placement import (
    Problem,
    SolveOptions,
    check,
    problem_to_json,
    read_problem,
    read_schedule,
    schedule_text,
    schedule_to_json,
    solve,
)
from moirai_tf.rewrite.directory import remap, strip
from moirai_tf.rewrite.plan_file import (
    PLAN_FILE,
    SCHEDULE_FILE,
    plan_to_json,
    read_plan,
    read_planned_schedule,
)
from moirai_tf.verify.process import _static_findings
from tests.cost_cases import tanh_sin_cos
from tests.mutations import damage_bytes, damage_json
from tests.placement_brute_force import bottleneck, optimum
from tests.placement_cases import problem_of
from tests.placements import CPUS, place
from tests.refusals import siamese, written

MOST_S = 300
MOST_BYTES = 2 << 30
"""More address space than a process has when it starts on a file."""
OBJECTIVES = ("latency", "throughput", "weighted")

CLUSTER: dict[str, Any] = {
    "name": "pair",
    "client": CPUS[0],
    "devices": [
        {
            "name": name, "type": "CPU", "memory": "4 GiB", "speed": 0.5, "frequency_mhz": 2000,
            "num_cores": 4, "memory_bandwidth": "12.5 GB/s", "launch_overhead": "2 us",
        }
        for name in CPUS
    ],
    "links": [{"from": CPUS[0], "to": CPUS[1], "latency": "20 us", "bandwidth": "12 GB/s"}],
    "default_link": {"latency": "1 ms", "bandwidth": "1 Gbit/s"},
}  # fmt: skip
_SMALL = problem_of(
    {"a": (3, 4), "b": (5, 2), "c": (None, 6), "d": (2, 2)},
    [("a", "b c", 3), ("b", "d", 1), ("c", "d", 2)],
    memory={"a": 5, "b": 4, "d": 1},
    capacity=(9, None),
    colocation=((0, 1),),
)
_TYPES = {"x": types_pb2.DT_FLOAT, "words": types_pb2.DT_STRING, "half": types_pb2.DT_BFLOAT16}
_Damage = Callable[[int], str | bytes]


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what takes more than `MOST_S` seconds, or `MOST_BYTES` more memory."""

    def late(*_: object) -> None:
        raise AssertionError(f"takes more than {MOST_S} s")

    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, limits[1]))
    signal.alarm(MOST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


@dataclass
class Hostile:
    """Sound files of every kind in a folder, and what is done with damaged ones."""

    folder: Path
    kinds: dict[str, tuple[Callable[[int], str | bytes], Callable[[Path], None]]] = field(
        init=False
    )
    """Kind -> what a seed makes of the sound file; what reads it, and checks what it accepts."""

    def __post_init__(self) -> None:
        self.graph = tanh_sin_cos(self.folder / "chain")
        self.coarse = coarsen(self.graph, FuseOptions(coarsen=False), ["CPU"])[0]
        self.cluster = cluster_from_yaml(json.dumps(CLUSTER))
        self.table = profile(
            read_saved_model(self.folder / "chain"), self.coarse, self.cluster,
            ProfileOptions(source="analytical", links="cluster"),
        )  # fmt: skip
        self.source = written(self.folder / "siamese", siamese())
        self.placed = self.folder / "placed"
        plan = place(self.source, self.placed)
        write_table(self.table, self.folder / "table.json")
        save_inputs(
            self.folder / "inputs.npz",
            {"x": np.ones([2, 3], np.float32), "words": np.array([b"a\0", b""], object)}
            | {"half": np.ones([4], tf.bfloat16.as_numpy_dtype)},
        )
        npz = (self.folder / "inputs.npz").read_bytes()
        self.schedules = {name: _scheduled(name) for name in OBJECTIVES}
        self.kinds = {
            "cluster": (lambda s: damage_json(CLUSTER, s), self._cluster),
            "cluster, bytes": (self._damaged(yaml.safe_dump(CLUSTER)), self._cluster),
            "cost table": (self._json(self.folder / "table.json"), self._table),
            "instance": (lambda s: damage_json(problem_to_json(_SMALL), s), self._instance),
            "schedule": (
                lambda s: damage_json(self.schedules[OBJECTIVES[s % 3]], s), self._schedule
            ),
            "plan": (lambda s: damage_json(json.loads(plan_to_json(plan)), s), self._plan),
            "planned schedule": (
                lambda s: damage_json(self.schedules["latency"], s), self._planned_schedule
            ),
            "inputs": (lambda s: damage_bytes(npz, s), self._inputs),
            "inputs, arrays": (lambda s: _damaged_arrays(npz, s), self._inputs),
        }  # fmt: skip

    def outcome(self, kind: str, path: Path) -> MoiraiError | None:
        """The error that refuses a file, None if it was used; anything else is a failed test."""
        refusal = None
        try:
            with bounded():
                self.kinds[kind][1](path)
        except MoiraiError as error:
            refusal = error
        if refusal is not None:
            assert all((refusal.rule, refusal.why, refusal.fix))
            assert len(refusal.rule) < 20_000
        return refusal

    def refused(self, kind: str, seeds: range) -> int:
        """How many damaged files are refused; the others were used."""
        refused = 0
        for seed in seeds:
            path = self.folder / "damaged"
            damaged = self.kinds[kind][0](seed)
            path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
            try:
                refused += self.outcome(kind, path) is not None
            except BaseException as error:
                error.add_note(f"kind {kind!r}, seed {seed}: {path}")
                raise
        return refused

    @staticmethod
    def _json(path: Path) -> Callable[[int], str]:
        data = json.loads(path.read_text())
        return lambda seed: damage_json(data, seed)

    @staticmethod
    def _damaged(text: str) -> Callable[[int], bytes]:
        """Damage that stays ASCII, or all of it would be refused for that alone."""
        return lambda seed: bytes(byte & 127 for byte in damage_bytes(text.encode(), seed))

    def _solved(self, problem: Problem) -> None:
        result = solve(problem, SolveOptions(solver="heft"))
        if result.schedule is not None:
            assert check(problem, result.schedule) == []

    def _cluster(self, path: Path) -> None:
        cluster = read_cluster(path)
        assert cluster_from_yaml(cluster_to_yaml(cluster)) == cluster
        assert cluster.remote in (True, False)
        options = ProfileOptions(source="analytical", links="cluster")
        table = profile(read_saved_model(self.folder / "chain"), self.coarse, cluster, options)
        self._solved(build_problem(self.coarse, cluster, table))

    def _table(self, path: Path) -> None:
        table = read_table(path)
        write_table(table, path)
        assert read_table(path) == table
        self._solved(build_problem(self.coarse, self.cluster, table))

    def _instance(self, path: Path) -> None:
        self._solved(read_problem(path))

    def _schedule(self, path: Path) -> None:
        """What the checker accepts is no better than the best that there is."""
        schedule = read_schedule(_SMALL, path)
        assert schedule_text(_SMALL, schedule)
        if check(_SMALL, schedule) == []:
            assert schedule.makespan_ns >= (optimum(_SMALL) or 0)
            assert schedule.objective_ns >= schedule.objective_bound_ns
        else:
            raise MoiraiError("it breaks a rule", why="it was damaged", fix="none is needed")

    def _plan(self, path: Path) -> None:
        """What is taken out or renamed leaves a model that is sound, and that its plan explains."""
        self._in_placed(PLAN_FILE, path)
        plan = read_plan(self.placed)
        assert _static_findings(self.source, self.placed) is not None
        strip(self.placed, self._output("stripped"))
        read_saved_model(self.folder / "stripped")
        names = {plan.devices[-1].name: "/job:worker/replica:0/task:0/device:CPU:3"}
        remap(self.placed, self._output("remapped"), names)
        assert _static_findings(self.folder / "stripped", self.folder / "remapped") == []

    def _planned_schedule(self, path: Path) -> None:
        self._in_placed(SCHEDULE_FILE, path)
        read_planned_schedule(self.placed)
        remap(self.placed, self._output("remapped"), {})

    def _in_placed(self, place: Path, path: Path) -> None:
        """The damaged file in the place of a placed model's own; the other is the sound one."""
        if not (self.folder / "sound").exists():
            shutil.copytree(self.placed, self.folder / "sound")
        shutil.rmtree(self.placed)
        shutil.copytree(self.folder / "sound", self.placed)
        (self.placed / place).unlink(missing_ok=True)
        path.rename(self.placed / place)

    def _output(self, name: str) -> Path:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name

    def _inputs(self, path: Path) -> None:
        arrays = read_inputs(path, _TYPES)
        assert arrays.keys() == _TYPES.keys()


def _scheduled(objective: str) -> dict[str, Any]:
    """A sound schedule of `_SMALL` as the content of its file."""
    schedule = solve(_SMALL, SolveOptions(solver="heft")).schedule
    assert schedule is not None
    largest = bottleneck(_SMALL, schedule.assignment)
    claims = {
        "latency": {},
        "throughput": {"bottleneck": largest, "objective_lower_bound": "1"},
        "weighted": {
            "bottleneck": largest, "objective_lower_bound": "3/2", "latency_weight": 0.5,
        },
    }  # fmt: skip
    return schedule_to_json(_SMALL, schedule) | {"objective": objective} | claims[objective]


def _damaged_arrays(npz: bytes, seed: int) -> bytes:
    """An archive whose checksums are right, and one of whose arrays is damaged."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(npz)) as old, zipfile.ZipFile(written, "w") as new:
        for i, name in enumerate(old.namelist()):
            content = old.read(name)
            new.writestr(name, damage_bytes(content, seed) if i == seed % 3 else content)
    return written.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder:
        hostile = Hostile(Path(folder))
        for kind in hostile.kinds:
            refused = hostile.refused(kind, range(count))
            print(f"{kind:<20} {count} files: {count - refused} used, {refused} clear errors")


if __name__ == "__main__":
    main()

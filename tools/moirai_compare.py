"""Compares placement methods on models and clusters: tables, figures and rows as JSON.

A run that was interrupted goes on where it was when it is started again with the same output
directory; models, clusters and methods may be added then. Costs are computed from the clusters'
properties.

Example:
  moirai_compare --saved_model_dir=gpt --saved_model_dir=swin --cluster=four_gpus.yaml \\
    --cluster=two_servers.yaml --output_dir=comparison
  moirai_compare --instance=problem.json --output_dir=comparison --unfused=false
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path

from absl import flags

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.options import ImportOptions
from moirai_tf.pipeline import MoiraiItem, Pipeline, need
from moirai_tf.placement import (
    CONGESTION_MODES,
    TRANSFER_MODES,
    Problem,
    SolveOptions,
    read_problem,
    write_problem,
)
from moirai_tf.records import write_text

from . import _flags
from ._comparison import BASELINES, BLIND, FULL, OURS, UNFUSED, Case, Rows, compare
from ._comparison_pages import page, write_figures

_MODELS = flags.DEFINE_multi_string("saved_model_dir", [], "model to compare on (repeatable)")
_CLUSTERS = flags.DEFINE_multi_string("cluster", [], "YAML file of devices (repeatable)")
_INSTANCES = flags.DEFINE_multi_string("instance", [], "instance file (JSON; repeatable)")
_METHODS = flags.DEFINE_list("methods", [*BASELINES], "methods to compare with")
_OUTPUT = flags.DEFINE_string("output_dir", None, "directory of rows, tables and figures")
_TIME = flags.DEFINE_float("time_limit_s", 60.0, "seconds for our answer")
_THEIR_TIME = flags.DEFINE_float("method_time_limit_s", 120.0, "seconds for each other method")
_EPISODES = flags.DEFINE_integer("episodes", 1000, "most episodes of placeto")
_UNFUSED = flags.DEFINE_bool("unfused", False, "compare on the graphs without fusion, too")
_BLIND = flags.DEFINE_bool("blind", False, "plan without congestion, memory, unequal devices, too")
_TRANSFERS = flags.DEFINE_enum("transfers", "per_tensor", TRANSFER_MODES, "how tensors cross")
_CONGESTION = flags.DEFINE_list(
    "congestion", ["port"], f"modes of instances, of {', '.join(CONGESTION_MODES)}"
)
_SEED = flags.DEFINE_integer("seed", 0, "seed of ours and of placeto")
flags.mark_flag_as_required("output_dir")
_flags.define(ImportOptions)


def main() -> None:
    """Runs what is missing, then writes tables and figures."""
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    unknown = sorted(set(_METHODS.value) - set(BASELINES))
    if unknown or not (_INSTANCES.value or (_MODELS.value and _CLUSTERS.value)):
        raise MoiraiError(
            f"there is no method {unknown[0]!r}" if unknown else "there is nothing to compare on",
            why="methods are compared on instances, or on models and clusters",
            fix=f"use methods of {', '.join(BASELINES)}; give --instance, or --saved_model_dir "
            "and --cluster",
        )
    _same_settings(output / "settings.json")
    rows = Rows.read(output / "rows.json")
    ours = SolveOptions(time_limit_s=_TIME.value, seed=_SEED.value)
    theirs = SolveOptions(
        time_limit_s=_THEIR_TIME.value, seed=_SEED.value, episodes=_EPISODES.value
    )
    for case in _cases(output):
        blind = BLIND if _BLIND.value and case.variant == FULL else ()
        compare(case, rows, (*_METHODS.value, OURS), blind, ours, theirs, _say)
        _write(rows, output)
    facts = {"rows": list(rows.known.values()), "output": str(output)}
    _flags.tell(page(rows.known) + f"\nrows, tables and figures: {output}", facts)


def _say(line: str) -> None:
    """Progress: every row as it is found."""
    if not _flags.QUIET.value:
        print(line, file=sys.stderr, flush=True)


def _same_settings(path: Path) -> None:
    """Refuses to add rows to those that other options made."""
    chosen = (_TIME, _THEIR_TIME, _EPISODES, _TRANSFERS, _SEED)
    settings = {holder.name: holder.value for holder in chosen}
    settings |= {k: str(v) for k, v in asdict(_flags.build(ImportOptions)).items()}
    text = json.dumps(settings, indent=1) + "\n"
    if path.is_file() and path.read_text() != text:
        raise MoiraiError(
            f"the rows in {path.parent} were made with other options",
            why="what is compared in one table must have had equal chances",
            fix=f"use the options in {path}, or another output_dir",
        )
    write_text(text, path)


def _write(rows: Rows, output: Path) -> None:
    text = page(rows.known)
    write_text(text, output / "comparison.md")
    try:
        write_figures(rows.known, output / "figures.html")
    except ImportError:
        _say("no figures: they need plotly (extra `report`)")


def _cases(output: Path) -> Iterator[Case]:
    for instance in _INSTANCES.value:
        for mode in _CONGESTION.value:
            read = partial(read_problem, instance, transfers=_TRANSFERS.value, congestion=mode)
            yield Case(Path(instance).stem, f"its own, {mode}", FULL, read)
    for model in _MODELS.value:
        for cluster in _CLUSTERS.value:
            for variant in (FULL, UNFUSED) if _UNFUSED.value else (FULL,):
                name = f"{Path(model).name}@{Path(cluster).stem}{'-' * bool(variant)}{variant}.json"
                made = partial(_problem, Path(model), cluster, variant, output / name)
                yield Case(Path(model).name, Path(cluster).stem, variant, made)


def _problem(model: Path, cluster: str, variant: str, kept: Path) -> Problem:
    """A model's placement problem, which is kept beside the rows."""
    if not kept.is_file():
        from moirai_tf.cluster import read_cluster  # Instances are compared without TensorFlow.
        from moirai_tf.cost.coarse_problem import build_problem
        from moirai_tf.passes import Fuse, Profile

        passes = (Fuse(coarsen=variant != UNFUSED), Profile(source="analytical"))
        item = Pipeline(passes).run(replace(_graph(model), cluster=read_cluster(cluster)))
        problem = build_problem(
            need(item.coarse), item.cluster, need(item.costs), transfers=_TRANSFERS.value
        )
        write_problem(problem, kept)
    return read_problem(kept, transfers=_TRANSFERS.value)


@lru_cache(maxsize=1)
def _graph(model: Path) -> MoiraiItem:
    """A model's graph, which is the same for all clusters."""
    from moirai_tf.cluster import read_cluster
    from moirai_tf.passes import Import, Prune

    item = MoiraiItem(model, read_cluster(_CLUSTERS.value[0]))
    return Pipeline((_flags.build(Import), Prune())).run(item)


def entry() -> None:
    """The command `moirai_compare`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

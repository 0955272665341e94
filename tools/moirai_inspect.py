"""Shows the operators of a SavedModel: shapes, bytes, devices that can run them, what is fused.

Example:
  moirai_inspect --saved_model_dir=model
  moirai_inspect --saved_model_dir=model --fused
  moirai_inspect --saved_model_dir=model --explain=conv2d_1
"""

from __future__ import annotations

import re
from pathlib import Path

from absl import flags

from moirai_tf.errors import MoiraiError
from moirai_tf.fusion.coarse import dump_coarse
from moirai_tf.graph.graph import dump_graph
from moirai_tf.inspection import coarse_facts, explain, graph_facts
from moirai_tf.machine import this_machine
from moirai_tf.passes import Fuse, Import, Prune
from moirai_tf.pipeline import MoiraiItem, Pipeline, need

from . import _flags

_SAVED_MODEL_DIR = flags.DEFINE_string("saved_model_dir", None, "the model; only read")
_FUSED = flags.DEFINE_bool("fused", False, "show the graph after fusion instead of before")
_EXPLAIN = flags.DEFINE_string(
    "explain", None, "regular expression: say of each operator where it can run and how it is fused"
)
flags.mark_flag_as_required("saved_model_dir")
_flags.define(Import, Fuse)


def main() -> None:
    """Prints the dump or the explanations."""
    fuse = _flags.build(Fuse)
    item = MoiraiItem(Path(_SAVED_MODEL_DIR.value), this_machine())
    item = Pipeline((_flags.build(Import), Prune())).run(item)
    graph = need(item.graph)
    if _EXPLAIN.value is not None:
        found = explain(graph, fuse, _pattern(_EXPLAIN.value))
        _flags.tell("\n".join(line for lines in found.values() for line in lines), {
            "signature": graph.signature, "explained": found,
        })  # fmt: skip
    elif _FUSED.value:
        coarse = need(fuse(item).coarse)
        _flags.tell(dump_coarse(coarse).rstrip("\n"), coarse_facts(coarse))
    else:
        _flags.tell(dump_graph(graph).rstrip("\n"), graph_facts(graph))


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise MoiraiError(
            f"--explain={text!r} is not a regular expression: {error}",
            why="it chooses the operators that are explained",
            fix="quote special characters with a backslash",
        ) from error


def entry() -> None:
    """The command `moirai_inspect`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

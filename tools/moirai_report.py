"""Writes one HTML page about a placed model: verdict, timeline, graph, memory, what was fused.

Example:
  moirai_report --placed_dir=placed --output=report.html
  moirai_bench --saved_model_dir=model --placed_dir=placed --trace=trace.json
  moirai_report --placed_dir=placed --bench=trace.json --output=report.html
"""

from __future__ import annotations

from absl import flags

from moirai_tf.model.options import OpLibraryOptions
from moirai_tf.report import content_of, write_report

from . import _flags

_PLACED_DIR = flags.DEFINE_string("placed_dir", None, "the placed model; only read, never run")
_BENCH = flags.DEFINE_string(
    "bench", None, "trace file of moirai_bench: what was measured, shown below what was planned"
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "HTML file to write; if it ends in .svg, a picture of the timeline alone"
)
_MODEL_EXPLORER = flags.DEFINE_string(
    "model_explorer", None, "also write node data (JSON) that Model Explorer lays over the model"
)
flags.mark_flags_as_required(["placed_dir", "output"])
_flags.define(OpLibraryOptions)


def main() -> None:
    """Reads the plan, writes the page."""
    content = content_of(_PLACED_DIR.value, _BENCH.value)
    write_report(content, _OUTPUT.value)
    if _MODEL_EXPLORER.value:
        from moirai_tf.report.model_explorer import write_node_data  # with plotly's colours

        write_node_data(content, _PLACED_DIR.value, _MODEL_EXPLORER.value)
    _flags.tell(
        f"{content.verdict}\nreport: {_OUTPUT.value}",
        {
            "verdict": content.verdict,
            "output": _OUTPUT.value,
            "model_explorer": _MODEL_EXPLORER.value,
        },
    )


def entry() -> None:
    """The command `moirai_report`."""
    _flags.run(main)


if __name__ == "__main__":
    entry()

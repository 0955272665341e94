"""TensorFlow's own view of signatures: what its runtime executes, with Grappler switched off.

A program of its own, `python -m tests.inliner_oracle NAME=DIRECTORY ...`, since the switches belong
to the process. Prints, as JSON, model -> nodes of the graph that ran, each as
`{"name", "op", "inputs", "argument"}`; TF2 models run through the loader, TF1 models in a Session.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_SWITCHES = {"TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}


def executed(models: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Runs the program; keys are names in the zoo."""
    arguments = [f"{name}={path}" for name, path in models.items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.inliner_oracle", *arguments],
        cwd=ROOT,
        env={**os.environ, **_SWITCHES},
        stdout=subprocess.PIPE,
        check=True,
    )
    nodes: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return nodes


def _main() -> None:
    import tensorflow as tf

    from tests.zoo import ZOO

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    found = {}
    for argument in sys.argv[1:]:
        name, path = argument.split("=", 1)
        entry = ZOO[name]
        run = _in_session if name.startswith("tf1") else _as_function
        found[name] = [
            {
                "name": node.name,
                "op": node.op,
                "inputs": list(node.input),
                "argument": node.attr["index"].i if node.op == "_Arg" else None,
            }
            for graph in run(path, entry)
            for node in graph.node
        ]
    json.dump(found, sys.stdout)


def _as_function(path: str, entry: Any) -> Any:
    import tensorflow as tf
    from tensorflow.python.eager import context

    signature = tf.saved_model.load(path, tags=list(entry.tags)).signatures[entry.signature]
    context.enable_run_metadata()
    signature(**{key: tf.constant(value) for key, value in entry.inputs().items()})
    metadata = context.export_run_metadata()
    context.disable_run_metadata()
    return metadata.function_graphs[-1].partition_graphs


def _in_session(path: str, entry: Any) -> Any:
    import tensorflow as tf

    tf1 = tf.compat.v1
    config = tf1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = tf1.OptimizerOptions.L0
    options = tf1.RunOptions(output_partition_graphs=True)
    metadata = tf1.RunMetadata()
    with tf.Graph().as_default(), tf1.Session(config=config) as session:
        loaded = tf1.saved_model.load(session, list(entry.tags), path)
        signature = loaded.signature_def[entry.signature]
        feeds = {signature.inputs[k].name: value for k, value in entry.inputs().items()}
        fetches = {k: v.name for k, v in signature.outputs.items()}
        session.run(fetches, feeds, options=options, run_metadata=metadata)
    return metadata.partition_graphs


if __name__ == "__main__":
    _main()

"""`optimize`: the whole pipeline in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moirai_tf.cluster import Cluster, read_cluster
from moirai_tf.errors import MoiraiError
from moirai_tf.machine import this_machine
from moirai_tf.model.output import discard
from moirai_tf.passes import PASSES
from moirai_tf.pipeline import Hook, MoiraiItem, Pass, Pipeline, configured
from moirai_tf.progress import Stopwatch, observed, stage
from moirai_tf.summary import Summary, summarise


def default_pipeline(*, verify: bool = True, **options: Any) -> Pipeline:
    """The passes of `optimize`, with options by name.

    Args:
      verify: whether the placed model is run and proved at the end.
      **options: options of any pass, such as `batch_size=8` or `solver="heft"`.

    Raises:
      MoiraiError: an option that no pass has.
    """
    passes: tuple[Pass, ...] = configured(PASSES, options)
    pipeline = Pipeline(passes)
    return pipeline if verify else pipeline.without("verify")


def optimize(
    saved_model_dir: str | Path,
    output_dir: str | Path | None = None,
    cluster: Cluster | str | Path | None = None,
    *,
    verify: bool = True,
    pipeline: Pipeline | None = None,
    hook: Hook | None = None,
    **options: Any,
) -> Summary:
    """Places the operators of a SavedModel on devices and writes the placed SavedModel.

    Args:
      saved_model_dir: the model; it is never modified.
      output_dir: the directory to write; by default the input's name with `_moirai`.
      cluster: devices and links, or the YAML file that describes them; by default the devices of
        this machine.
      verify: whether the placed model is run and proved before it is called done.
      pipeline: passes to run instead of `default_pipeline(verify=verify, **options)`, perhaps only
        some of them; their options are their own, so no others may be given.
      hook: called after every pass with the pass and the item; may return another item.
      **options: options of any pass, such as `signature`, `batch_size`, `time_limit_s` or `pin`.

    Returns:
      What was decided, predicted and proved; `print` shows it.

    Raises:
      MoiraiError: bad input, no feasible placement, or a placement that did not happen.
    """
    if output_dir is not None:
        options["output_dir"] = str(output_dir)
    if pipeline is None:
        pipeline = default_pipeline(verify=verify, **options)
    elif options:
        raise MoiraiError(
            f"both a pipeline and the option {min(options)!r} are given",
            why="the passes of a pipeline have their options already",
            fix="make the pipeline with default_pipeline(**options), or leave it out",
        )
    stopwatch = Stopwatch()
    with observed(stopwatch):
        item = pipeline.run(MoiraiItem(Path(saved_model_dir), _found(cluster)), hook)
    if item.staged is not None:
        discard(item.staged)
    return summarise(item, stopwatch.times)


def _found(cluster: Cluster | str | Path | None) -> Cluster:
    if isinstance(cluster, Cluster):
        return cluster
    if cluster is not None:
        return read_cluster(cluster)
    with stage("look at this machine"):
        return this_machine()

"""Runs a SavedModel once and keeps what TensorFlow tells of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context

from moirai_tf.model.load import (
    fetched,
    load_in_session,
    load_with_devices,
    session_config,
    tensors,
)
from moirai_tf.runtime.failures import loading
from moirai_tf.runtime.gpu_records import is_record
from moirai_tf.verify.parity import Array

_REWRITER = rewriter_config_pb2.RewriterConfig
_INLINER = "function_optimization"
"""In a Session this optimizer inlines the signature's call; without it nothing can be placed."""


@dataclass(frozen=True)
class Run:
    """One inference."""

    outputs: Mapping[str, Array]
    partitions: tuple[tuple[Any, ...], ...]
    """For every graph that was partitioned, one `GraphDef` per device."""
    executed: Mapping[str, frozenset[str]]
    """Node -> devices that ran it; empty where the loader has no step statistics."""


def run_session(
    directory: Path,
    tags: Iterable[str],
    signature: str,
    inputs: Mapping[str, Array],
    devices: Iterable[str],
    *,
    grappler: bool,
    on_cpu: bool = False,
    soft_placement: bool = False,
) -> Run:
    """Runs a signature in a TF1 Session, as TensorFlow Serving does.

    Args:
      directory: the SavedModel.
      tags: which of its MetaGraphs.
      signature: which of its signatures.
      inputs: one array per input.
      devices: the devices that the Session must have.
      grappler: whether Grappler may change the graph.
      on_cpu: whether GPUs that are here must not take part: an original asks for no device, and
        may fit on none of them.
      soft_placement: whether an operator may run elsewhere than on its device; of a placed model
        none may.
    """
    config = session_config(devices)
    config.allow_soft_placement = soft_placement
    if on_cpu:
        config.device_count["GPU"] = 0
    if not grappler:
        switch_off(config)
    options = config_pb2.RunOptions(
        trace_level=config_pb2.RunOptions.FULL_TRACE, output_partition_graphs=True
    )
    metadata = config_pb2.RunMetadata()
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        with loading():
            definition = load_in_session(directory, session, tags)[signature]
        feeds, fetches = feeds_and_fetches(definition, inputs)
        outputs = session.run(fetches, feeds, options=options, run_metadata=metadata)
    return run_of(outputs, metadata)


def feeds_and_fetches(
    definition: Any, inputs: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, str]]:
    """What to feed and what to fetch of a `SignatureDef`."""
    feeds = {tensor: inputs[key] for key, tensor in tensors(definition.inputs).items()}
    return feeds, tensors(definition.outputs)


def run_of(outputs: Mapping[str, Any], metadata: Any) -> Run:
    """What a step of a Session returned, with step statistics and partition graphs."""
    executed: dict[str, set[str]] = {}
    for device in metadata.step_stats.dev_stats:
        if is_record(device.device):
            continue
        for node in device.node_stats:
            executed.setdefault(node.node_name, set()).add(device.device)
    return Run(
        {name: fetched(value) for name, value in outputs.items()},
        (tuple(metadata.partition_graphs),),
        {name: frozenset(found) for name, found in executed.items()},
    )


def run_tf2(
    directory: Path,
    tags: Iterable[str],
    signature: str,
    inputs: Mapping[str, Array],
    *,
    grappler: bool,
    on_cpu: bool = False,
) -> Run:
    """Runs a signature the way `moirai_tf.load` does; arguments as in `run_session`."""
    with _grappler(grappler), tf.device("/device:CPU:0") if on_cpu else nullcontext():
        with loading():
            function = load_with_devices(directory, tags).signatures[signature]
        with tf.device("/device:CPU:0"):
            constants = {name: tf.constant(value) for name, value in inputs.items()}
        context.enable_run_metadata()
        try:
            results = function(**constants)
            metadata = context.export_run_metadata()
        finally:
            context.disable_run_metadata()
    outputs = {name: fetched(tensor.numpy()) for name, tensor in _parts(results)}
    graphs = (tuple(graph.partition_graphs) for graph in metadata.function_graphs)
    return Run(outputs, tuple(graph for graph in graphs if graph), {})


def _parts(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The same numbering for what a function returned."""
    for key in sorted(results):
        parts = tf.nest.flatten(results[key], expand_composites=True)
        for i, part in enumerate(parts):
            yield (key if len(parts) == 1 else f"{key}/{i}"), part


def switch_off(config: Any) -> None:
    """Turns off every optimizer of a Session but the inliner."""
    rewriter = config.graph_options.rewrite_options
    for field in rewriter.DESCRIPTOR.fields:
        toggles = field.enum_type is not None and field.enum_type.name == "Toggle"
        if toggles and field.name != _INLINER:
            setattr(rewriter, field.name, _REWRITER.OFF)
    rewriter.memory_optimization = _REWRITER.NO_MEM_OPT
    rewriter.disable_model_pruning = True
    rewriter.min_graph_nodes = -1
    config.graph_options.optimizer_options.opt_level = config_pb2.OptimizerOptions.L0


@contextmanager
def _grappler(on: bool) -> Iterator[None]:
    """Grappler on or off for the functions that the TF2 runtime instantiates meanwhile."""
    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not on})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})

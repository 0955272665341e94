"""Loads a SavedModel once, runs it, and keeps what TensorFlow tells of every run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context

from moirai_tf.model.load import (
    SessionGraph,
    fetched,
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


class SessionModel:
    """A SavedModel in TF1 Sessions, as TensorFlow Serving has it.

    It is read once; every run has a Session of its own, since Grappler is an option of that.
    """

    def __init__(
        self,
        directory: Path,
        tags: Iterable[str],
        signature: str,
        devices: Iterable[str],
        *,
        on_cpu: bool = False,
        soft_placement: bool = False,
    ) -> None:
        """Reads nothing yet.

        Args:
          directory: the SavedModel.
          tags: which of its MetaGraphs.
          signature: which of its signatures.
          devices: the devices that a Session must have.
          on_cpu: whether GPUs that are here must not take part: an original asks for no device,
            and may fit on none of them.
          soft_placement: whether an operator may run elsewhere than on its device; of a placed
            model none may.
        """
        self._graph = SessionGraph(directory, tags)
        self._signature = signature
        self._config = session_config(devices)
        self._config.allow_soft_placement = soft_placement
        if on_cpu:
            self._config.device_count["GPU"] = 0

    def run(self, inputs: Mapping[str, Array], *, grappler: bool, traced: bool = True) -> Run:
        """One inference.

        Args:
          inputs: one array per input.
          grappler: whether Grappler may change the graph.
          traced: whether to keep what TensorFlow tells of it.

        Raises:
          LoadingError: the model cannot be loaded.
        """
        config = config_pb2.ConfigProto()
        config.CopyFrom(self._config)
        if not grappler:
            switch_off(config)
        options = config_pb2.RunOptions()
        if traced:
            options.trace_level = config_pb2.RunOptions.FULL_TRACE
            options.output_partition_graphs = True
        metadata = config_pb2.RunMetadata()
        with loading():
            graph = self._graph.graph
        with graph.as_default(), tf.compat.v1.Session(config=config) as session:
            with loading():
                definition = self._graph.restore(session)[self._signature]
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


class Tf2Model:
    """A SavedModel as `moirai_tf.load` has it, loaded once; other arguments as `SessionModel`'s."""

    def __init__(
        self, directory: Path, tags: Iterable[str], signature: str, *, on_cpu: bool = False
    ) -> None:
        self._directory = directory
        self._tags = tags
        self._signature = signature
        self._device = "/device:CPU:0" if on_cpu else None

    @cached_property
    def _loaded(self) -> Any:
        with loading():
            return load_with_devices(self._directory, self._tags)

    @property
    def variables(self) -> list[Any]:
        """Those that the signature reads."""
        return list(self._loaded.signatures[self._signature].variables)

    def run(self, inputs: Mapping[str, Array], *, grappler: bool, traced: bool = True) -> Run:
        """One inference; as `SessionModel.run`, but there are no step statistics.

        TensorFlow tells of a function when it makes one, in the first run with Grappler or without.
        """
        with _grappler(grappler), tf.device(self._device):
            function = self._loaded.signatures[self._signature]
            with tf.device("/device:CPU:0"):
                constants = {name: tf.constant(value) for name, value in inputs.items()}
            with _told_of(traced=traced) as graphs:
                results = function(**constants)
        outputs = {name: fetched(tensor.numpy()) for name, tensor in _parts(results)}
        return Run(outputs, tuple(graph for graph in graphs if graph), {})


@contextmanager
def _told_of(*, traced: bool) -> Iterator[list[tuple[Any, ...]]]:
    """Fills a list with the partitions of every function that is instantiated meanwhile."""
    graphs: list[tuple[Any, ...]] = []
    if not traced:
        yield graphs
        return
    context.enable_run_metadata()
    try:
        context.export_run_metadata()  # Once enabled, it also keeps what runs while it is disabled.
        yield graphs
        metadata = context.export_run_metadata()
        graphs.extend(tuple(graph.partition_graphs) for graph in metadata.function_graphs)
    finally:
        context.disable_run_metadata()


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

"""Runs a SavedModel on the servers of a cluster and keeps what they tell of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import config_pb2

from moirai_tf.cluster import Cluster
from moirai_tf.runtime.connect import load_on_servers
from moirai_tf.runtime.identity import check_identity
from moirai_tf.runtime.session import open_session
from moirai_tf.verify.parity import Array
from moirai_tf.verify.run import Run, feeds_and_fetches, run_of, switch_off


class ClusterModel:
    """A SavedModel on the servers of a cluster; every run loads it anew."""

    def __init__(
        self,
        directory: Path,
        tags: Iterable[str],
        signature: str,
        cluster: Cluster,
        *,
        timeout_s: float,
    ) -> None:
        """Loads nothing yet.

        Args:
          directory: the SavedModel, at a path that the servers can read.
          tags: which of its MetaGraphs.
          signature: which of its signatures.
          cluster: devices with addresses.
          timeout_s: the longest that one step may take.
        """
        self._directory = directory
        self._tags = tags
        self._signature = signature
        self._cluster = cluster
        self._timeout_s = timeout_s

    def run(self, inputs: Mapping[str, Array], *, grappler: bool) -> Run:
        """One inference through the server of the cluster's client device.

        Args:
          inputs: one array per input.
          grappler: whether Grappler may change the graph.

        Raises:
          MoiraiError: a worker is missing, is another one than the cluster says, dies, does not
            answer in time, or cannot read the model.
          tf.errors.OpError: the model cannot be run.
        """
        config = config_pb2.ConfigProto()
        if not grappler:
            switch_off(config)
        with open_session(self._cluster, config=config, timeout_s=self._timeout_s) as opened:
            check_identity(opened)
            definition = load_on_servers(self._directory, self._tags, opened)[self._signature]
            feeds, fetches = feeds_and_fetches(definition, inputs)
            outputs, metadata = opened.run(fetches, feeds, trace=True)
        for graph in metadata.partition_graphs:
            for node in graph.node:
                _as_in_one_process(node)
        return run_of(outputs, metadata)


def _as_in_one_process(node: Any) -> None:
    """Makes the ends of a graph what they are without servers: arguments and results."""
    if not node.attr["client_terminated"].b:
        return
    if node.op == "_Recv":
        node.op = "_Arg"
        node.attr["T"].type = node.attr["tensor_type"].type
    else:
        node.op = "_Retval"

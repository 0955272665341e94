"""Tensors that cross between a GPU's memory and the host's although they stay on one device.

A kernel on a GPU has some arguments in host memory: shapes, axes, and most of what is int32. If
their producer on the same GPU leaves them in the GPU's memory, TensorFlow sends the tensor from the
device to itself, which takes as long as a copy to the CPU of its server. The other way round too.
From a CPU such an argument costs nothing, as it is where it is wanted.

The placement problem knows no cost of a tensor within one device. So a reader that would wait on a
GPU is charged for it there wherever its producer is, and the transfer within the server is not.
That is too much only where a CPU makes what a GPU would not have made in host memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from moirai_tf.cluster import Cluster, Link
from moirai_tf.graph.graph import CLIENT_OPS, Graph, TensorRef
from moirai_tf.graph.kernels import HostMemory, host_memory

GPU = "GPU"
Links = Mapping[tuple[str, str], Link]


class HostMemories:
    """Where the kernels of a graph's operators would have their tensors on a GPU."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @cached_property
    def _known(self) -> list[HostMemory]:
        graph = self._graph
        return [
            host_memory(
                operator.node,
                GPU,
                (
                    [graph.spec(ref).dtype for ref in operator.inputs],
                    [spec.dtype for spec in operator.outputs],
                ),
            )
            for operator in graph.operators
        ]

    def made_on_host(self, ref: TensorRef) -> bool:
        """Whether a tensor's producer on a GPU leaves it in host memory."""
        return ref.port in self._known[ref.producer].outputs

    def wanted_on_host(self, consumer: int, ref: TensorRef) -> bool:
        """Whether an operator on a GPU reads a tensor from host memory only."""
        hosted = self._known[consumer].inputs
        ports = [i for i, read in enumerate(self._graph.operators[consumer].inputs) if read == ref]
        return bool(ports) and hosted.issuperset(ports)

    def stays_on_host(self, ref: TensorRef, to_gpu: bool) -> bool:
        """Whether a tensor between a GPU and a CPU of its server never leaves host memory.

        A control dependency, which nobody reads, is no tensor and does not stay.
        """
        if not to_gpu:
            return self.made_on_host(ref)
        readers = self._graph.consumers[ref.producer]
        mine = [i for i in readers if ref in self._graph.operators[i].inputs]
        return bool(mine) and all(self.wanted_on_host(reader, ref) for reader in mine)

    def copied_for(self, consumer: int, ref: TensorRef) -> bool:
        """Whether a tensor changes memory between its producer and a reader on the same GPU."""
        producer = self._graph.operators[ref.producer]
        return (
            producer.op not in CLIENT_OPS
            and GPU in producer.device_types
            and self.wanted_on_host(consumer, ref) != self.made_on_host(ref)
        )

    def copies_ns(self, consumer: int, device: str, host: str, links: Links) -> int:
        """What an operator on a GPU waits for tensors of the same GPU that change memory.

        Args:
          consumer: the operator.
          device: the GPU.
          host: the CPU of its server.
          links: (source, target) -> link.
        """
        graph, total_ns = self._graph, 0
        for ref in dict.fromkeys(graph.operators[consumer].inputs):
            if self.copied_for(consumer, ref):
                wanted = self.wanted_on_host(consumer, ref)
                pair = (device, host) if wanted else (host, device)
                total_ns += links[pair].transfer_ns(graph.spec(ref).nbytes)
        return total_ns


def host_of(cluster: Cluster, device: str) -> str:
    """The first CPU of a device's server; the client's device if it has none."""
    task = cluster.device(device).task
    return next(
        (d.name for d in cluster.devices if d.type == "CPU" and d.task == task), cluster.client
    )

"""What is asked of ONNX graphs, and how models are written: weights in a file of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moirai_tf.errors import MoiraiError

WEIGHTS_FROM_BYTES = 1024
"""Smaller constants stay in the model's file."""


def onnx_module() -> Any:
    """The package `onnx`, once all that an export needs is there.

    Raises:
      MoiraiError: a package of the extra `onnx` is not installed.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise MoiraiError(
            f"{error.name} is not installed",
            why="models become ONNX by tf2onnx, and are tried in ONNX Runtime",
            fix="pip install 'moirai_tf[onnx]'",
        ) from error
    return onnx


def bodies(graph: Any) -> Iterator[Any]:
    """A graph, and those of its loops and branches at any depth."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from bodies(inner)


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs that a loop or branch holds itself."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: Any) -> list[str]:
    """Tensors that a node takes, those included that the bodies of loops and branches capture."""
    found = dict.fromkeys(name for name in node.input if name)
    for inner in subgraphs(node):
        found.update(dict.fromkeys(captured(inner)))
    return list(found)


class Flow:
    """Which node of a graph makes which tensor, and who reads it; nodes by position."""

    def __init__(self, graph: Any) -> None:
        self.maker = {tensor: i for i, node in enumerate(graph.node) for tensor in node.output}
        self.reads = [reads(node) for node in graph.node]
        self.producers = [
            sorted({self.maker[t] for t in tensors if t in self.maker}) for tensors in self.reads
        ]
        self.consumers: list[list[int]] = [[] for _ in self.producers]
        for i, found in enumerate(self.producers):
            for producer in found:
                self.consumers[producer].append(i)

    def __len__(self) -> int:
        return len(self.producers)


def captured(graph: Any) -> list[str]:
    """Tensors that a body takes from outside."""
    own = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        found.update(dict.fromkeys(name for name in reads(node) if name not in own))
        own.update(node.output)
    found.update(dict.fromkeys(v.name for v in graph.output if v.name not in own))
    return list(found)


def save_model(model: Any, file: Path) -> None:
    """Writes a model, and its weights as `<stem>.weights` beside it; the model keeps neither.

    Raises:
      OSError: it cannot be written.
    """
    onnx_module().save_model(
        model, str(file), save_as_external_data=True, all_tensors_to_one_file=True,
        location=weights_of(file).name, size_threshold=WEIGHTS_FROM_BYTES, convert_attribute=False,
    )  # fmt: skip


def weights_of(file: Path) -> Path:
    """The file of a model's weights; there is none if it has no large ones."""
    return file.with_suffix(".weights")

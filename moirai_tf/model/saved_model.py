"""Reads a SavedModel's protobuf; nothing of the model is executed."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from google.protobuf import message, text_format
from tensorflow.core.protobuf import saved_model_pb2

from moirai_tf.errors import MoiraiError, file_errors
from moirai_tf.model.op_libraries import advice
from moirai_tf.model.op_types import definition
from moirai_tf.model.validate import input_node, tensor_names, unknown_ops, violations

DEFAULT_SIGNATURE = "serving_default"
"""What TensorFlow Serving runs if a request names no signature."""

_LOGGER = logging.getLogger(__name__)

_MOST_BYTES = (1 << 31) - 1
_VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
_ASSIGNMENTS = frozenset({"AssignVariableOp", "Assign"})
PB, PBTXT, CPB = "saved_model.pb", "saved_model.pbtxt", "saved_model.cpb"


@dataclass(frozen=True)
class SavedModel:
    """A SavedModel directory and its parsed protobuf, which is never changed."""

    path: Path
    proto: Any
    edited: bool = False
    """Whether the protobuf is another one than that of the directory."""

    @cached_property
    def weightless(self) -> bool:
        """Whether its variables have values nowhere, so that it can be planned but not run."""
        if (self.path / "variables" / "variables.index").is_file():
            return False
        ops = {
            node.op
            for meta_graph in self.proto.meta_graphs
            for part in (meta_graph.graph_def, *meta_graph.graph_def.library.function)
            for node in (part.node_def if hasattr(part, "node_def") else part.node)
        }
        return bool(ops & _VARIABLES) and not ops & _ASSIGNMENTS

    def copied(self) -> SavedModel:
        """The same with a protobuf of its own, to be edited."""
        proto = type(self.proto)()
        proto.CopyFrom(self.proto)
        return SavedModel(self.path, proto, edited=True)

    def meta_graph(self, tags: Sequence[str] = ()) -> Any:
        """The `MetaGraphDef` with exactly these tags, or the only one if no tags are given.

        Raises:
          MoiraiError: no MetaGraph has the tags, or there are several to choose from.
        """
        available = [tuple(sorted(m.meta_info_def.tags)) for m in self.proto.meta_graphs]
        if not tags:
            if len(available) == 1:
                return self.proto.meta_graphs[0]
            tags = ("serve",)
        if tuple(sorted(tags)) not in available:
            listed = "; ".join(",".join(t) or "(no tags)" for t in available)
            raise MoiraiError(
                f"{self.path} has no MetaGraph with the tags {','.join(tags)!r}",
                why="the tags choose which of a SavedModel's graphs is optimised",
                fix=f"choose one of these tag sets: {listed}",
            )
        return self.proto.meta_graphs[available.index(tuple(sorted(tags)))]


def chosen_signature(meta_graph: Any, name: str = "") -> str:
    """The name of the signature to optimise: the given one, the default, or the only one.

    Raises:
      MoiraiError: none is given and there are none or several to choose from.
    """
    if name or DEFAULT_SIGNATURE in meta_graph.signature_def:
        return name or DEFAULT_SIGNATURE
    usable = _usable_signatures(meta_graph)
    if len(usable) != 1:
        raise MoiraiError(
            f"the model has no signature {DEFAULT_SIGNATURE!r}, which is the default",
            why="a signature names the inputs and outputs of the graph that is optimised",
            fix=_choose(usable),
        )
    _LOGGER.warning("the only signature that computes something is taken: %r", usable[0])
    return usable[0]


def signature_def(meta_graph: Any, name: str) -> Any:
    """The `SignatureDef` of that name.

    Raises:
      MoiraiError: there is none, or it has no outputs that are tensors.
    """
    known = sorted(meta_graph.signature_def)
    usable = _usable_signatures(meta_graph)
    if name not in known:
        raise MoiraiError(
            f"the model has no signature {name!r}",
            why="a signature names the inputs and outputs of the graph that is optimised",
            fix=_choose(usable),
        )
    if name not in usable:
        outputs = len(meta_graph.signature_def[name].outputs)
        raise MoiraiError(
            f"signature {name!r} has no outputs{' that are tensors' if outputs else ''}",
            why="operators are placed because an output needs them",
            fix=_choose(usable),
        )
    return meta_graph.signature_def[name]


def _choose(usable: Sequence[str]) -> str:
    if usable:
        return f"choose one of (--signature): {', '.join(usable)}"
    return (
        "export the model with a signature that has outputs, as in tf.saved_model.save(model, "
        "path, signatures=function)"
    )


def _usable_signatures(meta_graph: Any) -> list[str]:
    """The signatures that compute something, sorted: all their outputs are tensors.

    The outputs of `__saved_model_init_op` and its like are operations that give nothing.
    """
    functions = {f.signature.name: f for f in meta_graph.graph_def.library.function}
    nodes = {node.name: node for node in meta_graph.graph_def.node}

    def gives(tensor: str) -> bool:
        op_def = definition(nodes[input_node(tensor)], functions)
        return op_def is not None and bool(op_def.output_arg)

    return [
        name
        for name, signature in sorted(meta_graph.signature_def.items())
        if signature.outputs
        and all(gives(t) for info in signature.outputs.values() for t in tensor_names(info))
    ]


@file_errors("the model cannot be read")
def read_saved_model(path: str | Path) -> SavedModel:
    """Reads and validates `saved_model.pb` (or `.pbtxt`).

    Raises:
      MoiraiError: the directory or file is missing, chunked (`.cpb`), truncated, or breaks one of
        the rules of `moirai_tf.model.validate`.
    """
    directory = Path(path)
    proto = _parse(directory)
    for meta_graph in proto.meta_graphs:
        _check_ops(directory, unknown_ops(meta_graph))
        broken = violations(meta_graph)
        if broken:
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            raise MoiraiError(
                f"{directory} is not a valid SavedModel: {broken[0]}{more}",
                why="TensorFlow would fail or silently run another graph",
                fix="export the model again",
            )
    _check_variables(directory, proto)
    return SavedModel(directory, proto)


def _check_ops(directory: Path, unknown: Sequence[str]) -> None:
    if unknown:
        raise MoiraiError(
            f"{directory} uses ops that this TensorFlow does not know: {', '.join(unknown)}",
            why="what an unknown op takes, gives and needs cannot be told",
            fix=advice(unknown),
        )


def _parse(directory: Path) -> Any:
    if not directory.is_dir():
        raise MoiraiError(
            f"{directory} is not a directory",
            why="a SavedModel is a directory that holds saved_model.pb",
            fix="give the directory that tf.saved_model.save or Keras' export wrote",
        )
    if (directory / PB).is_file():
        return _parse_binary(directory / PB)
    if (directory / PBTXT).is_file():
        return _parse_text(directory / PBTXT)
    if (directory / CPB).is_file():
        raise MoiraiError(
            f"{directory / CPB} is a chunked SavedModel",
            why="TensorFlow's Python package can write the chunked format but not read it back",
            fix="save the model without experimental_image_format, as one saved_model.pb",
        )
    raise MoiraiError(
        f"{directory} holds no {PB}",
        why="the file carries the graph, the functions and the signatures",
        fix="give the directory that tf.saved_model.save or Keras' export wrote",
    )


def _parse_binary(file: Path) -> Any:
    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString(_content(file))
    except (message.DecodeError, OSError) as error:
        raise _unreadable(file, error) from error
    return _not_empty(file, proto)


def _parse_text(file: Path) -> Any:
    proto = saved_model_pb2.SavedModel()
    try:
        text_format.Parse(_content(file).decode(), proto)
    except (text_format.ParseError, ValueError, RecursionError, OSError) as error:
        raise _unreadable(file, error) from error
    return _not_empty(file, proto)


def _content(file: Path) -> bytes:
    if file.stat().st_size > _MOST_BYTES:
        raise OSError(errno.EFBIG, "a protobuf has less than 2 GiB", str(file))
    return file.read_bytes()


def _unreadable(file: Path, error: Exception) -> MoiraiError:
    return MoiraiError(
        f"{file} cannot be parsed: {error}",
        why="a truncated or altered file would give another model",
        fix="copy or export the model again",
    )


def _not_empty(file: Path, proto: Any) -> Any:
    if proto.meta_graphs:
        return proto
    raise MoiraiError(
        f"{file} holds no MetaGraph",
        why="there is no graph to optimise",
        fix="export the model again",
    )


def _check_variables(directory: Path, proto: Any) -> None:
    """Variables need a checkpoint: TensorFlow fails late and obscurely without one."""
    saved = [
        n.variable.name
        for m in proto.meta_graphs
        for n in m.object_graph_def.nodes
        if n.HasField("variable")
    ]
    restores = any(m.saver_def.restore_op_name for m in proto.meta_graphs)
    index = directory / "variables" / "variables.index"
    if not saved or not restores or index.is_file():
        return
    raise MoiraiError(
        f"{index} is missing, but the model has {len(saved)} variables such as {saved[0]!r}",
        why="the placed model takes its weights from the same files",
        fix="copy the whole SavedModel directory, variables/ included",
    )

"""Small SavedModels made on the spot, and questions to ask of SavedModel directories."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model import signature_def_utils

from moirai_tf.graph.graph import Graph
from moirai_tf.graph.importer import import_graph
from moirai_tf.graph.options import ImportOptions
from moirai_tf.model.saved_model import read_saved_model
from tests.zoo import ZOO

Edit = Callable[[Any], None]


def save_function(path: Path, function: Any, **objects: Any) -> Path:
    """A TF2 SavedModel with one signature; it holds the objects that the function uses."""
    module = tf.Module()
    module.serve = function
    for name, value in objects.items():
        setattr(module, name, value)
    tf.saved_model.save(module, str(path), {"serving_default": function})
    return path


def save_graph(
    path: Path,
    graph: tf.Graph,
    inputs: Mapping[str, tf.Tensor],
    outputs: Mapping[str, tf.Tensor],
) -> Path:
    """A TF1 SavedModel of a graph, without values of variables."""
    model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta_graph = model.meta_graphs.add()
    meta_graph.meta_info_def.tags.append("serve")
    meta_graph.graph_def.CopyFrom(graph.as_graph_def())
    signature = signature_def_utils.predict_signature_def(inputs, outputs)
    meta_graph.signature_def["serving_default"].CopyFrom(signature)
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(model.SerializeToString(deterministic=True))
    return path


def proto_of(path: Path) -> Any:
    """The `SavedModel` protobuf of a directory."""
    return saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())


def edited(source: Path, target: Path, edit: Edit) -> Path:
    """A copy of a model whose only MetaGraph was changed by `edit`."""
    shutil.copytree(source, target)
    proto = proto_of(source)
    edit(proto.meta_graphs[0])
    (target / "saved_model.pb").write_bytes(proto.SerializeToString(deterministic=True))
    return target


def function_of(meta_graph: Any, name: str) -> Any:
    """The only function of the library that was traced from a Python function of that name."""
    traced = re.compile(rf"__(inference|forward)_{name}_\d+")
    library = meta_graph.graph_def.library.function
    (found,) = (f for f in library if traced.fullmatch(f.signature.name))
    return found


def node_of(body: Any, name: str) -> Any:
    """A node of a function or of a main graph."""
    (found,) = (n for n in getattr(body, "node_def", None) or body.node if n.name == name)
    return found


def graph_of(path: Path, **options: Any) -> Graph:
    """The flat graph of a model."""
    return import_graph(read_saved_model(path), ImportOptions(**options))


def zoo_options(name: str) -> dict[str, Any]:
    """What it takes to import an entry of the zoo: signature, tags, full shapes."""
    entry = ZOO[name]
    shapes = {key: value.shape for key, value in entry.inputs().items()}
    return {
        "signature": entry.signature,
        "tags": entry.tags,
        "input_shapes": tuple(f"{k}={','.join(map(str, s))}" for k, s in shapes.items()),
    }


def digest(path: Path) -> dict[str, str]:
    """Every file below a directory -> hash of its content."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def ops_of(graph: Graph) -> list[str]:
    """The op of every operator, in order."""
    return [operator.op for operator in graph.operators]


def scope_names(graph: Graph, suffix: str) -> Sequence[str]:
    """Names of operators whose node in its body is called so, sorted."""
    return sorted(o.name for o in graph.operators if o.node.name == suffix)

"""The flat graph as a TensorFlow `GraphDef`, for Grappler and for shape inference."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import dtypes

from moirai_tf.graph.graph import MERGE_OPS, Graph, Operator, TensorRef
from moirai_tf.model.validate import function_attrs

_STALE = ("_class", "_output_shapes")
"""Attributes that do not hold under other names and for other input shapes."""


_EFFECTS = frozenset({
    "CacheDataset", "CacheDatasetV2", "DatasetToSingleElement", "DebugIdentity", "DebugIdentityV2",
    "DebugIdentityV3", "DebugNanCount", "DebugNumericSummary", "DebugNumericSummaryV2",
    "EagerPyFunc", "GenerateVocabRemapping", "ImmutableConst", "PyFunc", "PyFuncStateless",
    "ReadFile", "RegisterDataset", "RegisterDatasetV2", "SnapshotChunkDataset", "SnapshotDataset",
    "SnapshotDatasetReader", "SnapshotDatasetV2",
})  # fmt: skip
"""Ops that reach for files, other machines or Python. TensorFlow holds most of them for functions
of their inputs and would run them, if these are constants, while it infers shapes."""


def keep_from_running(graph_def: Any) -> None:
    """Asks for kernels that do not exist, in place, where running would be more than computing."""
    library = graph_def.library.function
    for node in itertools.chain(graph_def.node, *(f.node_def for f in library)):
        if node.op in _EFFECTS:
            node.attr["_kernel"].s = b"moirai_tf_runs_nothing"


def to_graph_def(
    graph: Graph,
    devices: Mapping[str, str] | None = None,
    *,
    known_feeds: bool = False,
    only: Container[int] | None = None,
) -> Any:
    """A `GraphDef` whose nodes are the operators, under their own names, with what they call.

    The `_Retval` operators, which stand for the client, are left out; `fetches` names what they
    read. Loops' back edges are missing, as they are in the graph.

    Args:
      graph: the flat graph.
      devices: operator -> device, or None to leave every device empty.
      known_feeds: replace placeholders by sources of the same static shape. Grappler forgets the
        shape of whatever it takes for a feed.
      only: indices of the operators to take, with all that they depend on; None for all.
    """
    names = [o.name for o in graph.operators]
    graph_def = graph_pb2.GraphDef()
    for i, operator in enumerate(graph.operators):
        if operator.op == "_Retval" or (only is not None and i not in only):
            continue
        node = flat_node(
            graph_def, operator.node, operator.name, names, operator.inputs, operator.controls
        )
        node.device = devices.get(operator.name, "") if devices is not None else ""
        _stand_in(graph_def, node, operator)
        if operator.op == "Placeholder" and operator.outputs[0].shape is not None:
            set_shape(node, operator.outputs[0].shape)
            if known_feeds:
                make_known(node)
    if graph.library is not None:
        graph_def.library.function.extend(called_functions(graph_def.node, graph.library))
    keep_from_running(graph_def)
    return graph_def


def _stand_in(graph_def: Any, node: Any, operator: Operator) -> None:
    """Feeds the inputs that pruning dropped: TensorFlow wants all that the attributes promise."""
    for unread in operator.unread:
        name = f"{operator.name}/unread_{unread.position}"
        source = graph_def.node.add(name=name, device=node.device)
        source.attr["dtype"].type = dtypes.as_dtype(unread.spec.dtype).as_datatype_enum
        set_shape(source, unread.spec.shape or ())
        make_known(source)
        node.input.insert(unread.position, name)


def flat_node(
    graph_def: Any,
    source: Any,
    name: str,
    names: Sequence[str],
    inputs: Iterable[TensorRef],
    controls: Iterable[int],
) -> Any:
    """Appends a copy of a `NodeDef` with a flat name and flat inputs.

    A `Merge` at the head of a loop merges one tensor less: its back edge is not in the flat graph,
    and Grappler crashes at a node that has fewer inputs than its attributes promise.
    """
    node = graph_def.node.add()
    node.CopyFrom(source)
    node.name = name
    for attribute in _STALE:
        node.attr.pop(attribute, None)
    del node.input[:]
    node.input.extend(
        names[ref.producer] if ref.port == 0 else f"{names[ref.producer]}:{ref.port}"
        for ref in inputs
    )
    if node.op in MERGE_OPS:
        node.attr["N"].i = len(node.input)
    node.input.extend(f"^{names[control]}" for control in controls)
    return node


def set_shape(node: Any, shape: Sequence[int]) -> None:
    """Gives a `Placeholder` a static shape (-1: unknown dimension)."""
    node.attr["shape"].shape.Clear()
    for size in shape:
        node.attr["shape"].shape.dim.add().size = size


def make_known(node: Any) -> None:
    """Turns a `Placeholder` into a source whose static shape Grappler believes."""
    node.op = "ImmutableConst"
    node.attr["memory_region_name"].s = b"feed"


def fetches(graph: Graph) -> list[str]:
    """The tensors that the signature's outputs read, as `node:port`."""
    refs = [graph.operators[i].inputs[0] for i in graph.outputs.values()]
    return list(dict.fromkeys(f"{graph.operators[r.producer].name}:{r.port}" for r in refs))


def meta_graph(graph_def: Any, fetched: Iterable[str]) -> Any:
    """A `MetaGraphDef` as Grappler wants it: the graph, and what to fetch from it."""
    meta = meta_graph_pb2.MetaGraphDef()
    meta.graph_def.CopyFrom(graph_def)
    meta.collection_def["train_op"].node_list.value.extend(fetched)
    return meta


def called_functions(nodes: Iterable[Any], library: Any) -> list[Any]:
    """The functions that nodes need, directly or inside others."""
    functions = {f.signature.name: f for f in library.function}
    found: dict[str, Any] = {}
    pending = list(nodes)
    while pending:
        node = pending.pop()
        for name in (node.op, *(f.name for _, _, f in function_attrs(node))):
            if name in functions and name not in found:
                found[name] = functions[name]
                pending.extend(functions[name].node_def)
    return [found[name] for name in sorted(found)]

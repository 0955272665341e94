"""From a SavedModel's signature to its flat operator graph; executes nothing of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensorflow.core.framework import node_def_pb2

from moirai_tf.errors import MoiraiError
from moirai_tf.graph import shapes
from moirai_tf.graph.colocation import colocation_groups
from moirai_tf.graph.flatten import FlatNode, Flattener
from moirai_tf.graph.graph import Graph, Operator, Scope, TensorRef, TensorSpec
from moirai_tf.graph.input_shapes import declared_shapes, fixed_shapes, given_shapes
from moirai_tf.graph.kernels import device_types
from moirai_tf.graph.memory import resident_bytes, weight_bytes
from moirai_tf.graph.options import ImportOptions
from moirai_tf.model.input_files import read_inputs
from moirai_tf.model.load import tensors
from moirai_tf.model.saved_model import SavedModel, chosen_signature, signature_def
from moirai_tf.model.validate import input_node


def import_graph(model: SavedModel, options: ImportOptions | None = None) -> Graph:
    """Reads one signature of a SavedModel as a flat operator graph.

    Raises:
      MoiraiError: an unknown signature, tag or input, a shape that stays unknown or does not fit,
        or a graph that TensorFlow's shape inference refuses.
    """
    options = options or ImportOptions()
    meta_graph = model.meta_graph(options.tags)
    name = chosen_signature(meta_graph, options.signature)
    signature = signature_def(meta_graph, name)
    flattener, fed, fetched, results = _flatten(meta_graph, signature)
    nodes = flattener.nodes
    inputs = {name: ref.producer for name, ref in zip(fed, results, strict=False)}
    _check_fed(nodes, frozenset(inputs.values()))
    graph_def = meta_graph.graph_def
    producer = graph_def.versions.producer
    main = {node.name: node for node in graph_def.node}
    feeds = {name: main[input_node(tensor)] for name, tensor in fed.items()}
    declared = declared_shapes(signature, feeds, producer)
    given = _shapes_in_file(options, nodes, inputs)
    given |= given_shapes(options.input_shapes, declared)
    fixed = {inputs[n]: s for n, s in fixed_shapes(declared, given, options.batch_size).items()}
    specs = shapes.infer(nodes, fixed, graph_def.library, producer)
    functions = flattener.functions
    operators = [operator_of(n, spec, functions) for n, spec in zip(nodes, specs, strict=True)]
    outputs: dict[str, int] = {}
    for key, ref in zip(fetched, results[len(fed) :], strict=True):
        outputs[key] = len(operators)
        operators.append(_retval(key, ref, specs))
    return Graph(
        signature=name,
        operators=tuple(operators),
        inputs=inputs,
        outputs=outputs,
        colocation=colocation_groups(operators, [n.near for n in nodes], functions),
        tags=tuple(sorted(meta_graph.meta_info_def.tags)),
        library=meta_graph.graph_def.library,
    )


def shape_options(graph: Graph) -> list[str]:
    """The shapes of a graph's inputs, as `ImportOptions.input_shapes` takes them."""
    shapes = {name: graph.operators[index].outputs[0].shape for name, index in graph.inputs.items()}
    return [f"{name}={','.join(map(str, shape or ()))}" for name, shape in shapes.items()]


def flat_nodes(meta_graph: Any, signature: str) -> list[FlatNode]:
    """Every node of a signature's flat graph, without shapes: as `import_graph` names them."""
    return _flatten(meta_graph, signature_def(meta_graph, signature))[0].nodes


def _flatten(
    meta_graph: Any, signature: Any
) -> tuple[Flattener, dict[str, str], dict[str, str], list[TensorRef]]:
    """The flat nodes, the tensors that are fed and fetched, and where these are."""
    fed, fetched = tensors(signature.inputs), tensors(signature.outputs)
    flattener = Flattener(meta_graph.graph_def.library)
    results = flattener.flatten(
        meta_graph.graph_def.node,
        frozenset(input_node(tensor) for tensor in fed.values()),
        [*fed.values(), *fetched.values()],
    )
    return flattener, fed, fetched, results


def _shapes_in_file(
    options: ImportOptions, nodes: Sequence[FlatNode], inputs: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    if not options.inputs:
        return {}
    types = {name: nodes[index].types[0] for name, index in inputs.items()}
    return {name: array.shape for name, array in read_inputs(options.inputs, types).items()}


def _check_fed(nodes: Sequence[FlatNode], fed: frozenset[int]) -> None:
    for i, flat in enumerate(nodes):
        if flat.node.op == "Placeholder" and flat.scope.parent is None and i not in fed:
            raise MoiraiError(
                f"the signature needs the placeholder {flat.name!r}, but has no input for it",
                why="TensorFlow cannot compute the outputs without it, nor is its size known",
                fix="choose a signature that feeds it, or export the model with one",
            )


def operator_of(
    flat: FlatNode, outputs: tuple[TensorSpec, ...], functions: Mapping[str, Any]
) -> Operator:
    """A flat node whose outputs are known, with its devices and its memory."""
    weight = weight_bytes(flat.node, outputs)
    return Operator(
        name=flat.name,
        op=flat.node.op,
        node=flat.node,
        scope=flat.scope,
        inputs=tuple(flat.inputs),
        controls=tuple(flat.controls),
        outputs=outputs,
        device_types=device_types(flat.node, functions),
        weight_bytes=weight,
        resident_bytes=resident_bytes(flat.node.op, weight, outputs),
        loose_inputs=flat.loose_inputs,
        awaited=flat.awaited,
    )


def _retval(name: str, ref: TensorRef, specs: Sequence[tuple[TensorSpec, ...]]) -> Operator:
    spec = specs[ref.producer][ref.port]
    node = node_def_pb2.NodeDef(name=f"_retval_{name}", op="_Retval")
    return Operator(
        node.name, "_Retval", node, Scope("", ""), (ref,), (), (), ("CPU", "GPU"), 0, spec.nbytes
    )

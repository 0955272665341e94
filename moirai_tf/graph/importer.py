"""From a SavedModel's signature to its flat operator graph; executes nothing of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensorflow.core.framework import node_def_pb2

from moirai_tf.errors import MoiraiError
from moirai_tf.graph import shapes
from moirai_tf.graph.colocation import colocation_groups
from moirai_tf.graph.flatten import FlatNode, Flattener
from moirai_tf.graph.graph import Graph, Operator, Scope, TensorRef, TensorSpec
from moirai_tf.graph.kernels import device_types
from moirai_tf.graph.memory import resident_bytes, weight_bytes
from moirai_tf.model.saved_model import SavedModel, signature_def
from moirai_tf.model.validate import input_node, tensor_names
from moirai_tf.options import option

_LARGEST = 2**31 - 1
"""Size of a dimension that TensorFlow's kernels can still index."""


@dataclass(frozen=True)
class ImportOptions:
    """What to read from a SavedModel, and for which input shapes."""

    signature: str = option("serving_default", "signature to optimise")
    tags: tuple[str, ...] = option((), "tags of the MetaGraph, if the model has several")
    batch_size: int = option(1, "size of the first dimension of every input where it is unknown")
    input_shapes: tuple[str, ...] = option(
        (), "full shape of an input, as name=8,224,224,3; wins over batch_size"
    )


def import_graph(model: SavedModel, options: ImportOptions | None = None) -> Graph:
    """Reads one signature of a SavedModel as a flat operator graph.

    Raises:
      MoiraiError: an unknown signature, tag or input, a shape that stays unknown or does not fit,
        or a graph that TensorFlow's shape inference refuses.
    """
    options = options or ImportOptions()
    meta_graph = model.meta_graph(options.tags)
    signature = signature_def(meta_graph, options.signature)
    flattener, fed, fetched, results = _flatten(meta_graph, signature)
    nodes = flattener.nodes
    inputs = {name: ref.producer for name, ref in zip(fed, results, strict=False)}
    _check_fed(nodes, frozenset(inputs.values()))
    fixed = _fixed_shapes(options, signature, fed, inputs)
    graph_def = meta_graph.graph_def
    specs = shapes.infer(nodes, fixed, graph_def.library, graph_def.versions.producer)
    functions = flattener.functions
    operators = [operator_of(n, spec, functions) for n, spec in zip(nodes, specs, strict=True)]
    outputs: dict[str, int] = {}
    for name, ref in zip(fetched, results[len(fed) :], strict=True):
        outputs[name] = len(operators)
        operators.append(_retval(name, ref, specs))
    return Graph(
        signature=options.signature,
        operators=tuple(operators),
        inputs=inputs,
        outputs=outputs,
        colocation=colocation_groups(operators),
        tags=tuple(sorted(meta_graph.meta_info_def.tags)),
        library=meta_graph.graph_def.library,
    )


def flat_nodes(meta_graph: Any, signature: str) -> list[FlatNode]:
    """Every node of a signature's flat graph, without shapes: as `import_graph` names them."""
    return _flatten(meta_graph, signature_def(meta_graph, signature))[0].nodes


def _flatten(
    meta_graph: Any, signature: Any
) -> tuple[Flattener, dict[str, str], dict[str, str], list[TensorRef]]:
    """The flat nodes, the tensors that are fed and fetched, and where these are."""
    fed, fetched = _tensors(signature.inputs), _tensors(signature.outputs)
    flattener = Flattener(meta_graph.graph_def.library)
    results = flattener.flatten(
        meta_graph.graph_def.node,
        frozenset(input_node(tensor) for tensor in fed.values()),
        [*fed.values(), *fetched.values()],
    )
    return flattener, fed, fetched, results


def _check_fed(nodes: Sequence[FlatNode], fed: frozenset[int]) -> None:
    for i, flat in enumerate(nodes):
        if flat.node.op == "Placeholder" and flat.scope.parent is None and i not in fed:
            raise MoiraiError(
                f"the signature needs the placeholder {flat.name!r}, but has no input for it",
                why="TensorFlow cannot compute the outputs without it, nor is its size known",
                fix="choose a signature that feeds it, or export the model with one",
            )


def _tensors(infos: Mapping[str, Any]) -> dict[str, str]:
    """Signature key -> tensor; the parts of a composite are numbered `key/0`, `key/1`."""
    found: dict[str, str] = {}
    for key in sorted(infos):
        names = tensor_names(infos[key])
        if len(names) == 1:
            found[key] = names[0]
        else:
            found.update({f"{key}/{i}": name for i, name in enumerate(names)})
    return found


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
    )


def _retval(name: str, ref: TensorRef, specs: Sequence[tuple[TensorSpec, ...]]) -> Operator:
    spec = specs[ref.producer][ref.port]
    node = node_def_pb2.NodeDef(name=f"_retval_{name}", op="_Retval")
    return Operator(
        node.name, "_Retval", node, Scope("", ""), (ref,), (), (), ("CPU", "GPU"), 0, spec.nbytes
    )


def _fixed_shapes(
    options: ImportOptions,
    signature: Any,
    fed: Mapping[str, str],
    inputs: Mapping[str, int],
) -> dict[int, tuple[int, ...]]:
    """The shape of every placeholder, by index."""
    given = _given_shapes(options, fed)
    by_tensor = {t: info for info in signature.inputs.values() for t in tensor_names(info)}
    return {
        inputs[name]: _shape_of(name, by_tensor[tensor], given.get(name), options.batch_size)
        for name, tensor in fed.items()
    }


def _shape_of(
    name: str, info: Any, given: tuple[int, ...] | None, batch_size: int
) -> tuple[int, ...]:
    declared = [d.size for d in info.tensor_shape.dim]
    unknown_rank = info.tensor_shape.unknown_rank or info.WhichOneof("encoding") != "name"
    if given is not None:
        _check_given(name, declared, given, unknown_rank)
        return given
    if unknown_rank:
        raise _unknown(name, "rank")
    if not 1 <= batch_size <= _LARGEST:
        raise MoiraiError(
            f"batch_size is {batch_size}",
            why="costs are those of one inference of at least one example",
            fix=f"give a batch size of 1 to {_LARGEST}",
        )
    shape = [batch_size, *declared[1:]] if declared and declared[0] < 0 else declared
    if any(size < 0 for size in shape):
        raise _unknown(name, f"shape {declared}")
    return tuple(shape)


def _unknown(name: str, what: str) -> MoiraiError:
    return MoiraiError(
        f"input {name!r} has the unknown {what}",
        why="sizes of tensors decide compute, transfers and memory",
        fix=f"give its shape: input_shapes=('{name}=1,128',) or --input_shapes={name}=1,128",
    )


def _given_shapes(options: ImportOptions, fed: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    given: dict[str, tuple[int, ...]] = {}
    for text in options.input_shapes:
        name, _, sizes = text.rpartition("=")
        try:
            given[name] = tuple(int(size) for size in sizes.split(",") if size)
        except ValueError:
            name = ""
        if name not in fed or any(not 0 <= size <= _LARGEST for size in given[name]):
            raise MoiraiError(
                f"input_shapes holds {text!r}",
                why=f"it must be an input of the signature, '=' and sizes of 0 to {_LARGEST}",
                fix=f"write name=8,128 with one of the inputs {', '.join(fed)}",
            )
    return given


def _check_given(
    name: str, declared: Sequence[int], given: tuple[int, ...], unknown_rank: bool
) -> None:
    fits = unknown_rank or (
        len(declared) == len(given)
        and all(d < 0 or d == g for d, g in zip(declared, given, strict=True))
    )
    if not fits:
        raise MoiraiError(
            f"input {name!r} is given the shape {list(given)}, but the signature has "
            f"{list(declared)} (-1: any)",
            why="the model cannot be run with that shape",
            fix="give a shape that fits the signature",
        )

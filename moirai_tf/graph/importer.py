"""From a SavedModel's signature to its flat operator graph; executes nothing of the model.

The shapes of inputs are those that the model declares, and what the user adds.
"""

from __future__ import annotations

import shlex
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
from moirai_tf.graph.options import ImportOptions
from moirai_tf.graph.shapes import resident_bytes, weight_bytes
from moirai_tf.model.input_files import read_inputs
from moirai_tf.model.load import tensors
from moirai_tf.model.op_types import attr_of
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


_LARGEST = 2**31 - 1
"""Size of a dimension that TensorFlow's kernels can still index."""

_EXAMPLE, _PART_EXAMPLE = 128, 2
"""Size of an unknown dimension in the example of an error; that of a part of a composite."""

_SCALARS_ARE_KNOWN = 24
"""Producer of a `GraphDef` from which a placeholder's shape [] means a scalar."""

_Sizes = tuple[int, ...] | None
"""-1 for an unknown size; None if the rank is unknown."""


@dataclass(frozen=True, slots=True)
class DeclaredShape:
    """What the model says of an input's shape."""

    sizes: _Sizes
    part: bool
    """It belongs to a composite (sparse, ragged), whose first dimension is not the batch."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an array of that shape can be fed."""
        return self.sizes is None or (
            len(self.sizes) == len(shape)
            and all(d < 0 or d == g for d, g in zip(self.sizes, shape, strict=True))
        )

    def batched(self, batch_size: int) -> _Sizes:
        """With the size of the batch where it is the first, unknown dimension."""
        if self.part or not self.sizes or self.sizes[0] >= 0:
            return self.sizes
        return (batch_size, *self.sizes[1:])

    def example(self, batch_size: int) -> str:
        """A shape that fits, as it is written in an option."""
        sizes = (-1, -1) if self.sizes is None else self.sizes
        first, other = (_PART_EXAMPLE,) * 2 if self.part else (batch_size, _EXAMPLE)
        filled = [(other if i else first) if size < 0 else size for i, size in enumerate(sizes)]
        return ",".join(map(str, filled))


def declared_shapes(
    signature: Any, placeholders: Mapping[str, Any], producer: int
) -> dict[str, DeclaredShape]:
    """What the signature says of every input's shape, or its placeholder if that says nothing.

    Args:
      signature: the `SignatureDef`.
      placeholders: input (`key/0`, `key/1` for the parts of a composite) -> the fed `NodeDef`.
      producer: version of the `GraphDef`.
    """
    found: dict[str, DeclaredShape] = {}
    for key in sorted(signature.inputs):
        parts = _part_shapes(signature.inputs[key])
        for i, sizes in enumerate(parts):
            name = key if len(parts) == 1 else f"{key}/{i}"
            if sizes is None:
                sizes = _placeholder_shape(placeholders[name], producer)
            found[name] = DeclaredShape(sizes, part=len(parts) > 1)
    return found


def given_shapes(
    texts: Sequence[str], declared: Mapping[str, DeclaredShape]
) -> dict[str, tuple[int, ...]]:
    """The shapes that a user wrote as `name=8,128`.

    Raises:
      MoiraiError: a text is not of that form, or names no input.
    """
    given: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            given[name] = tuple(int(size) for size in sizes.split(",") if size)
        except ValueError:
            name = ""
        if name not in declared or any(not 0 <= size <= _LARGEST for size in given[name]):
            examples = [f"{name}={shape.example(1)}" for name, shape in declared.items()]
            raise MoiraiError(
                f"input_shapes holds {text!r}",
                why=f"it must be an input of the signature, '=' and sizes of 0 to {_LARGEST}",
                fix=f"write, for this signature, {' or '.join(examples)}"
                if examples
                else "leave it out: the signature has no inputs",
            )
    return given


def fixed_shapes(
    declared: Mapping[str, DeclaredShape], given: Mapping[str, tuple[int, ...]], batch_size: int
) -> dict[str, tuple[int, ...]]:
    """The shape of every input: the given one, or the declared one with the batch size.

    Raises:
      MoiraiError: a given shape does not fit, or shapes stay unknown; it lists them all.
    """
    if not 1 <= batch_size <= _LARGEST:
        raise MoiraiError(
            f"batch_size is {batch_size}",
            why="costs are those of one inference of at least one example",
            fix=f"give a batch size of 1 to {_LARGEST}",
        )
    for name, shape in given.items():
        if not declared[name].fits(shape):
            raise _unfit(name, declared[name], shape)
    wanted = {n: given.get(n, shape.batched(batch_size)) for n, shape in declared.items()}
    known = {n: s for n, s in wanted.items() if s is not None and min(s, default=0) >= 0}
    if len(known) < len(wanted):
        raise _unknown({n: d for n, d in declared.items() if n not in known}, batch_size)
    return known


def _part_shapes(info: Any) -> list[_Sizes]:
    """The shapes of the tensors behind a `TensorInfo`, in the order of `tensor_names`."""
    kind = info.WhichOneof("encoding")
    shape = info.tensor_shape
    known = info.HasField("tensor_shape") and not shape.unknown_rank
    if kind == "coo_sparse":
        rank = len(shape.dim) if known else -1
        return [(-1, rank), (-1,), (rank,)]
    if kind == "composite_tensor":
        return [s for part in info.composite_tensor.components for s in _part_shapes(part)]
    return [tuple(dim.size for dim in shape.dim) if known else None]


def _placeholder_shape(node: Any, producer: int) -> _Sizes:
    shape = attr_of(node, "shape").shape
    if "shape" not in node.attr or shape.unknown_rank:
        return None
    if not shape.dim and producer < _SCALARS_ARE_KNOWN:
        return None
    return tuple(dim.size for dim in shape.dim)


def _unfit(name: str, declared: DeclaredShape, shape: Sequence[int]) -> MoiraiError:
    return MoiraiError(
        f"input {name!r} is given the shape {list(shape)}, but the signature has "
        f"{list(declared.sizes or ())} (-1: any)",
        why="the model cannot be run with that shape",
        fix="give a shape, or inputs, that fits the signature, such as "
        f"input_shapes={(f'{name}={declared.example(1)}',)!r}",
    )


def _unknown(declared: Mapping[str, DeclaredShape], batch_size: int) -> MoiraiError:
    listed = ", ".join(
        f"{name!r} {'of unknown rank' if shape.sizes is None else list(shape.sizes)}"
        for name, shape in declared.items()
    )
    examples = tuple(f"{name}={shape.example(batch_size)}" for name, shape in declared.items())
    flags = " ".join(f"--input_shapes={shlex.quote(text)}" for text in examples)
    return MoiraiError(
        f"the shapes of these inputs are unknown: {listed}",
        why="sizes of tensors decide compute, transfers and memory",
        fix=f"give them, for example input_shapes={examples!r} or {flags}; or give inputs to run "
        "on (--inputs), whose shapes are then taken",
    )

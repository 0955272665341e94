"""The structural rules of a MetaGraph, beyond what parsing its bytes can tell."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tensorflow.core.framework import types_pb2

from moirai_tf.model.op_types import (
    REFERENCE,
    Outputs,
    argument_types,
    attr_faults,
    attr_of,
    definition,
    function_attributes,
    input_types,
    outputs_of,
    type_name,
)

BACK_EDGE_SOURCES = frozenset({"NextIteration", "RefNextIteration"})
_Known = dict[str, Outputs | None]
"""Node or argument -> its outputs, None where a fault leaves them unknown."""
_CALLS = {
    **{(op, "f"): ("Tin", "Tout") for op in ("PartitionedCall", "StatefulPartitionedCall")},
    **{(op, "then_branch"): ("Tin", "Tout") for op in ("If", "StatelessIf")},
    **{(op, "else_branch"): ("Tin", "Tout") for op in ("If", "StatelessIf")},
    **{(op, "branches"): ("Tin", "Tout") for op in ("Case", "StatelessCase")},
    **{(op, "body"): ("T", "T") for op in ("While", "StatelessWhile")},
    **{(op, "cond"): ("T", "") for op in ("While", "StatelessWhile")},
}
"""(op, attribute that names a function) -> attributes with the types it takes and gives."""


def violations(meta_graph: Any, most: int = 20) -> list[str]:
    """Every broken rule as a sentence (at most `most`); empty for a sound MetaGraph.

    Rules: names of nodes and functions are unique; ops and called functions are known; attributes,
    inputs and results are there and have the types that the definitions of ops and functions ask
    for; no cycle except through `NextIteration`; signatures name tensors of the graph.
    """
    found: list[str] = []
    for sentence in _all(meta_graph):
        found.append(sentence)
        if len(found) >= most:
            break
    return found


def unknown_ops(meta_graph: Any) -> list[str]:
    """Ops that neither TensorFlow nor a loaded library defines, sorted."""
    graph_def = meta_graph.graph_def
    functions = {f.signature.name: f for f in graph_def.library.function}
    nodes = itertools.chain(graph_def.node, *(f.node_def for f in functions.values()))
    return sorted({node.op for node in nodes if definition(node, functions) is None})


def function_attrs(node: Any) -> Iterator[tuple[str, int, Any]]:
    """Every function that a node's attributes name: (attribute, index in a list or -1, value)."""
    for name in function_attributes(node.op):
        value = attr_of(node, name)
        if value.HasField("func"):
            yield name, -1, value.func
        for i, function in enumerate(value.list.func):
            yield name, i, function


def _all(meta_graph: Any) -> Iterator[str]:
    library = meta_graph.graph_def.library
    functions = {f.signature.name: f for f in library.function}
    names = [f.signature.name for f in library.function]
    yield from (f"function {n!r} is defined twice" for n in _repeated(names))
    if "" in functions:
        yield "a function has no name"
    main: _Known = {}
    yield from _body("the main graph", meta_graph.graph_def.node, main, functions)
    for function in library.function:
        where = f"function {function.signature.name!r}"
        known = _arguments(function)
        yield from _body(where, function.node_def, known, functions)
        yield from _results(where, function, known)
    yield from _signatures(meta_graph, main)
    yield from _objects(meta_graph)


def _arguments(function: Any) -> _Known:
    signature = function.signature
    return {
        arg.name: Outputs(tuple(argument_types(function, arg, signature)), {})
        for arg in signature.input_arg
    }


def _body(
    where: str, nodes: Sequence[Any], known: _Known, functions: Mapping[str, Any]
) -> Iterator[str]:
    """Broken rules of one body; adds what its nodes give to what is known."""
    names = [n.name for n in nodes]
    yield from (f"{where} has two nodes called {n!r}" for n in _repeated([*names, *known]))
    if "" in names:
        yield f"{where} has a node without a name"
    defined = [definition(node, functions) for node in nodes]
    for node, op_def in zip(nodes, defined, strict=True):
        faults = list(_node(node, op_def, functions))
        yield from (f"{where}: node {node.name!r} {fault}" for fault in faults)
        known[node.name] = None if faults else outputs_of(node, op_def)
    for node, op_def in zip(nodes, defined, strict=True):
        expected = None if known[node.name] is None else input_types(node, op_def)
        for fault in _inputs(node, known, expected):
            yield f"{where}: node {node.name!r} {fault}"
    yield from _cycle(where, nodes)


def _node(node: Any, op_def: Any | None, functions: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a node alone, each as the end of a sentence about it."""
    if op_def is None:
        yield f"has the unknown op {node.op!r}"
        return
    yield from attr_faults(node, op_def)
    if node.op == "Const" and attr_of(node, "value").tensor.dtype != attr_of(node, "dtype").type:
        yield "holds a value of another type than its attribute 'dtype'"
    for attribute, _, function in function_attrs(node):
        required = bool(function.name) or (node.op, attribute) in _CALLS
        if required and function.name not in functions:
            yield (
                f"names in its attribute {attribute!r} the function {function.name!r}, "
                "which is not in the library"
            )
        elif required:
            yield from _call(node, attribute, functions[function.name])


def _call(node: Any, attribute: str, function: Any) -> Iterator[str]:
    """A function takes and gives what the node that calls it says."""
    given, wanted = _CALLS.get((node.op, attribute), ("", ""))
    signature = function.signature
    sides = ((given, "takes", signature.input_arg), (wanted, "gives", signature.output_arg))
    for types, verb, arguments in sides:
        here = list(attr_of(node, types).list.type)
        there = [t for arg in arguments for t in argument_types(function, arg, signature)]
        if types and not _fit(here, there):
            yield (
                f"has {_shown(here)} in {types}, but its function {signature.name!r} "
                f"{verb} {_shown(there)}"
            )


def _inputs(node: Any, known: _Known, expected: Sequence[int] | None) -> Iterator[str]:
    """What is wrong with what a node reads; `expected` is None if its op does not tell."""
    found: list[int] = []
    for text in node.input:
        if text.startswith("^"):
            if input_node(text) not in known:
                yield f"waits for {text!r}, which does not exist"
            continue
        fault = _reference(text, known)
        if fault:
            yield fault
            expected = None
        else:
            found.append(_type_of(text, known))
    if expected is not None and not _fit(found, expected):
        yield f"reads {_shown(found)}, but {node.op} takes {_shown(expected)}"


def _reference(text: str, known: _Known) -> str:
    """What is wrong with the name of a tensor; empty if nothing is."""
    source = text.partition(":")[0]
    if source not in known:
        return f"reads {text!r}, which does not exist"
    outputs = known[source]
    try:
        _type_of(text, known)
    except LookupError:
        return f"reads {text!r}, but {source!r} has {len(outputs.types) if outputs else 0} outputs"
    return ""


def _type_of(text: str, known: _Known) -> int:
    outputs = known[text.partition(":")[0]]
    return types_pb2.DT_INVALID if outputs is None else outputs.types[outputs.port(text)]


def _fit(found: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether types agree; a reference does for its value, and an unknown type for any."""
    return len(found) == len(expected) and all(
        one == two or one - REFERENCE == two or types_pb2.DT_INVALID in (one, two)
        for one, two in zip(found, expected, strict=True)
    )


def _shown(types: Sequence[int]) -> str:
    return f"({', '.join(map(type_name, types))})"


def _results(where: str, function: Any, known: _Known) -> Iterator[str]:
    signature = function.signature
    for output in signature.output_arg:
        text = function.ret.get(output.name)
        fault = "is never set" if text is None else _reference(text, known)
        declared = argument_types(function, output, signature)
        if text is not None and not fault and not _fit([_type_of(text, known)], declared):
            fault = f"reads {text!r}, which is not {_shown(declared)}"
        if fault:
            yield f"{where}: its output {output.name!r} {fault}"
    nodes = {node.name for node in function.node_def}
    for name, text in sorted(function.control_ret.items()):
        if text not in nodes:
            yield f"{where}: its control output {name!r} is {text!r}, which does not exist"


def _signatures(meta_graph: Any, known: _Known) -> Iterator[str]:
    """Signatures name tensors, or an operation without outputs that initialises the model."""
    operations = {name for name, outputs in known.items() if outputs and not outputs.types}
    for key in sorted(meta_graph.signature_def):
        signature = meta_graph.signature_def[key]
        for side in (signature.inputs, signature.outputs):
            for name in sorted(side):
                tensors = tensor_names(side[name])
                faults = [_reference(t, known) for t in tensors if t not in operations]
                faults.extend([] if tensors else ["names no tensor"])
                yield from (f"signature {key!r}: {name!r} {fault}" for fault in faults if fault)


def _objects(meta_graph: Any) -> Iterator[str]:
    """Captured variables of a function are objects, and its calls hand over one handle of each."""
    objects = meta_graph.object_graph_def
    for name in sorted(objects.concrete_functions):
        bound = objects.concrete_functions[name].bound_inputs
        if any(not 0 <= node_id < len(objects.nodes) for node_id in bound):
            yield f"function {name!r} captures an object that does not exist"
    for node in meta_graph.graph_def.node:
        name = attr_of(node, "f").func.name
        if name not in objects.concrete_functions:
            continue
        bound = objects.concrete_functions[name].bound_inputs
        if len(bound) > sum(not text.startswith("^") for text in node.input):
            yield f"node {node.name!r} gives function {name!r} fewer handles than it captures"


def tensor_names(info: Any) -> list[str]:
    """The tensors behind a `TensorInfo`: one, or the parts of a composite."""
    kind = info.WhichOneof("encoding")
    if kind == "coo_sparse":
        sparse = info.coo_sparse
        return [
            sparse.indices_tensor_name,
            sparse.values_tensor_name,
            sparse.dense_shape_tensor_name,
        ]
    if kind == "composite_tensor":
        return [n for part in info.composite_tensor.components for n in tensor_names(part)]
    return [info.name] if info.name else []


def input_node(text: str) -> str:
    """`^a` -> a, `a:1` -> a, `a:out:0` -> a."""
    return text.removeprefix("^").split(":", 1)[0]


def _repeated(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def _cycle(where: str, nodes: Sequence[Any]) -> Iterator[str]:
    """Peels off nodes whose inputs are all done; what is left lies on or behind a cycle."""
    ops = {n.name: n.op for n in nodes}
    waiting: dict[str, int] = {}
    readers: dict[str, list[str]] = {}
    for node in nodes:
        sources = {input_node(text) for text in node.input}
        sources = {s for s in sources if s in ops and ops[s] not in BACK_EDGE_SOURCES}
        waiting[node.name] = len(sources)
        for source in sources:
            readers.setdefault(source, []).append(node.name)
    done = [name for name, count in waiting.items() if count == 0]
    for name in done:
        for reader in readers.get(name, ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                done.append(reader)
    if len(done) < len(waiting):
        left = sorted(name for name, count in waiting.items() if count > 0)
        yield f"{where} has a cycle through or before {left[0]!r} ({len(left)} nodes)"

"""Makes a signature divide its batch, and takes that back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tensorflow.core.framework import function_pb2, op_def_pb2, types_pb2

from moirai_tf.errors import MoiraiError
from moirai_tf.graph.graph import CALL_OPS, TensorRef
from moirai_tf.model.load import tensors
from moirai_tf.model.op_types import attr_of
from moirai_tf.model.saved_model import SavedModel
from moirai_tf.model.validate import input_node
from moirai_tf.split.cut import Cut, function_of
from moirai_tf.split.function import Argument, Called, DividingBody, Rest, dividing_body
from moirai_tf.split.mirrors import (
    Mirror,
    add_nodes,
    add_objects,
    copies_of,
    init_node,
    remove_objects,
)
from moirai_tf.split.record import SplitEdit
from moirai_tf.split.separate import Separation

BODY_MARK = "__moirai_rows_0"
_HEAD, _REST = "__moirai_head", "__moirai_rest"


def obstacle_of(model: SavedModel, tags: Sequence[str], signature: str) -> str:
    """Why the signature of a model cannot be written as one that divides; empty if it can."""
    meta_graph = model.meta_graph(tags)
    call = _call_of(meta_graph, signature)
    if call is None:
        return "the signature is not one function, as those that tf.saved_model.save writes are"
    function = call.attr["f"].func.name
    callers = [n for n in meta_graph.graph_def.node if attr_of(n, "f").func.name == function]
    if len(callers) > 1:
        return "another signature calls the same function"
    if _handles(meta_graph, call) and not init_node(meta_graph):
        return "the model has no initialisation that could fill copies of its variables"
    return ""


def divide(
    model: SavedModel,
    tags: Sequence[str],
    signature: str,
    found: Separation,
    shares: Sequence[int],
) -> tuple[SavedModel, SplitEdit]:
    """A model whose signature divides its batched inputs, and joins the outputs.

    Args:
      model: the model, without a placement; it is not changed.
      tags: of the MetaGraph.
      signature: its name; `obstacle_of` finds none.
      found: which inputs and outputs have rows.
      shares: rows of each share of the planned batch.

    Returns:
      The model, whose directory is still that of the original, and what was changed.
    """
    divided = model.copied()
    return divided, _divide(divided.meta_graph(tags), signature, found, shares)


def join(meta_graph: Any, edit: SplitEdit | None) -> None:
    """Undoes `divide`, in place.

    Raises:
      MoiraiError: the MetaGraph is not what the edit left.
    """
    if edit is None:
        return
    functions = meta_graph.graph_def.library.function
    names = {f.signature.name: i for i, f in enumerate(functions)}
    main = {n.name: n for n in meta_graph.graph_def.node}
    missing = [n for n in (edit.function, edit.body, *edit.functions) if n not in names]
    missing += [n for n in (edit.call, *edit.nodes) if n not in main]
    if missing or edit.objects > len(meta_graph.object_graph_def.nodes):
        raise MoiraiError(
            f"the model has no {missing[0] if missing else 'copies of variables'!r}, "
            "which the plan says was added to it",
            why="the model was changed after it was placed, so the plan no longer fits it",
            fix="optimise the original model again",
        )
    restored = functions[names[edit.function]]
    restored.CopyFrom(functions[names[edit.body]])
    restored.signature.name = edit.function
    gone = {edit.body, *edit.functions}
    _remove(functions, lambda f: f.signature.name in gone)
    call, added = main[edit.call], set(edit.nodes)
    kept = [text for text in call.input if input_node(text) not in added]
    _set(call.input, kept)
    _set(call.attr["Tin"].list.type, [a.type for a in restored.signature.input_arg])
    if edit.init:
        _set(
            main[edit.init].input, [t for t in main[edit.init].input if input_node(t) not in added]
        )
    _remove(meta_graph.graph_def.node, lambda n: n.name in added)
    objects = meta_graph.object_graph_def
    copies = len(edit.mirrored) * (len(edit.shares) - 1)
    if copies:
        bound = objects.concrete_functions[edit.function].bound_inputs
        del bound[len(bound) - copies :]
    for name in edit.functions:
        if name in objects.concrete_functions:
            del objects.concrete_functions[name]
    remove_objects(meta_graph, edit.objects)


def _divide(meta_graph: Any, signature: str, found: Separation, shares: Sequence[int]) -> SplitEdit:
    call = _call_of(meta_graph, signature)
    function = _function(meta_graph, call)
    name = function.signature.name
    handles = _handles(meta_graph, call)
    if found.cut is not None:
        handles = {handle: i for handle, i in handles.items() if handle in found.cut.read}
    mirrors = [Mirror(h, i, o) for i in range(1, len(shares)) for h, o in handles.items()]
    inputs, outputs = (
        tuple(key for key, has_rows in sorted(keys.items()) if has_rows)
        for keys in (found.inputs, found.outputs)
    )
    edit = SplitEdit(
        tuple(shares), name, f"{name}{BODY_MARK}", call.name, inputs, outputs, tuple(handles),
        whole=found.obstacle,
    )  # fmt: skip
    before = len(meta_graph.object_graph_def.nodes)
    if mirrors:
        init = init_node(meta_graph)
        nodes = add_nodes(meta_graph, mirrors, init)
        objects, functions = add_objects(meta_graph, mirrors)
        bound = meta_graph.object_graph_def.concrete_functions[name].bound_inputs
        bound.extend(objects[mirror.node] for mirror in mirrors)
        edit = replace(
            edit, nodes=tuple(nodes), functions=tuple(functions), init=init,
            objects=len(meta_graph.object_graph_def.nodes) - before,
        )  # fmt: skip
    definition = meta_graph.signature_def[signature]
    arguments = _arguments(definition, call, function, found, mirrors)
    library = meta_graph.graph_def.library.function
    body = library.add()
    body.CopyFrom(function)
    body.signature.name = edit.body
    if found.cut is None:
        share = Called(edit.body, tuple(call.attr["Tout"].list.type))
        joined = _joined(definition, call, found)
        made = dividing_body(arguments, joined, call, share, edit.shares)
    else:
        head, last, rest = _parts(found.cut, definition, call, function)
        library.extend((head, last))
        edit = replace(edit, functions=(*edit.functions, head.signature.name, last.signature.name))
        share = Called(head.signature.name, _types(head))
        made = dividing_body(arguments, [True] * len(share.types), call, share, edit.shares, rest)
    _write_function(function, call, made, mirrors)
    return edit


def _parts(cut: Cut, definition: Any, call: Any, function: Any) -> tuple[Any, Any, Rest]:
    """The function of a share, that of the rest, and how they make up the whole function."""
    sources = [input_node(text) for text in call.input if not text.startswith("^")]
    given = {
        TensorRef(cut.graph.index[source], 0): argument.name
        for source, argument in zip(sources, function.signature.input_arg, strict=True)
        if source in cut.graph.index
    }
    name, arguments = function.signature.name, list(function.signature.input_arg)
    head = function_of(f"{name}{_HEAD}", cut.graph, cut.head, arguments, given, cut.joined)
    types = _types(head)
    fetched = tensors(definition.outputs)
    by_port = {int(text.partition(":")[2] or 0): cut.outputs[k] for k, text in fetched.items()}
    ports = [by_port.get(k) for k in range(len(call.attr["Tout"].list.type))]
    read = {ref for i in cut.rest for ref in cut.graph.operators[i].inputs}
    taken = tuple(k for k, ref in enumerate(cut.joined) if ref in read)
    for k in taken:
        arguments.append(op_def_pb2.OpDef.ArgDef(name=f"moirai_joined_{k}", type=types[k]))
    more = {cut.joined[k]: f"moirai_joined_{k}" for k in taken}
    results = list(dict.fromkeys(r for r in ports if r is not None and r not in cut.joined))
    last = function_of(f"{name}{_REST}", cut.graph, cut.rest, arguments, given | more, results)
    outputs = tuple(
        (ref in results, results.index(ref) if ref in results else cut.joined.index(ref))
        for ref in ports
        if ref is not None
    )
    return head, last, Rest(Called(last.signature.name, _types(last)), taken, outputs)


def _types(function: Any) -> tuple[int, ...]:
    return tuple(argument.type for argument in function.signature.output_arg)


def _write_function(
    function: Any, call: Any, body: DividingBody, mirrors: Sequence[Mirror]
) -> None:
    """Puts the body in the place of the function's, with the copies as further arguments."""
    made = function_pb2.FunctionDef()
    made.signature.CopyFrom(function.signature)
    made.attr.MergeFrom(_kept_attrs(function))
    for key, value in function.arg_attr.items():
        made.arg_attr[key].CopyFrom(value)
    for node, argument in _argument_names(mirrors).items():
        made.signature.input_arg.add(name=argument, type=types_pb2.DT_RESOURCE)
        call.input.append(node)
        call.attr["Tin"].list.type.append(types_pb2.DT_RESOURCE)
    made.node_def.extend(body.nodes)
    for output, tensor in zip(function.signature.output_arg, body.outputs, strict=True):
        made.ret[output.name] = tensor
    del made.signature.control_output[:]
    for name in body.calls:
        made.signature.control_output.append(name)
        made.control_ret[name] = name
    function.CopyFrom(made)


def _kept_attrs(function: Any) -> Any:
    """The function's attributes, but for shapes: it has more arguments now."""
    kept = function_pb2.FunctionDef()
    for key, value in function.attr.items():
        if key != "_input_shapes":
            kept.attr[key].CopyFrom(value)
    return kept.attr


def _arguments(
    definition: Any, call: Any, function: Any, found: Separation, mirrors: Sequence[Mirror]
) -> list[Argument]:
    inputs = {input_node(tensor): key for key, tensor in tensors(definition.inputs).items()}
    copies, names = copies_of(mirrors), _argument_names(mirrors)
    sources = [input_node(t) for t in call.input if not t.startswith("^")]
    return [
        Argument(
            argument.name,
            argument.type,
            divided=source in inputs and found.inputs[inputs[source]],
            mirrors=tuple(names[node] for node in copies.get(source, ())),
        )
        for argument, source in zip(function.signature.input_arg, sources, strict=True)
    ]


def _joined(definition: Any, call: Any, found: Separation) -> list[bool]:
    """For each output of the function, whether it has rows."""
    fetched = tensors(definition.outputs)
    by_port = {int(tensor.partition(":")[2] or 0): key for key, tensor in fetched.items()}
    return [found.outputs[by_port[k]] if k in by_port else False
            for k in range(len(call.attr["Tout"].list.type))]  # fmt: skip


def _argument_names(mirrors: Sequence[Mirror]) -> dict[str, str]:
    return {mirror.node: f"moirai_mirror_{k}" for k, mirror in enumerate(mirrors)}


def _handles(meta_graph: Any, call: Any) -> Mapping[str, int]:
    """The variables that a function is given: node of the main graph -> object."""
    main = {node.name: node for node in meta_graph.graph_def.node}
    name = call.attr["f"].func.name
    sources = [input_node(text) for text in call.input if not text.startswith("^")]
    bound = meta_graph.object_graph_def.concrete_functions[name].bound_inputs
    captured = zip(sources[len(sources) - len(bound) :], bound, strict=True)
    return {source: object_id for source, object_id in captured if main[source].op == "VarHandleOp"}


def _call_of(meta_graph: Any, signature: str) -> Any:
    """The node of the main graph whose function makes all outputs; None if none does."""
    fetched = tensors(meta_graph.signature_def[signature].outputs).values()
    roots = {input_node(tensor) for tensor in fetched}
    nodes = [n for n in meta_graph.graph_def.node if n.name in roots]
    if len(nodes) != 1 or nodes[0].op not in CALL_OPS:
        return None
    known = attr_of(nodes[0], "f").func.name in meta_graph.object_graph_def.concrete_functions
    return nodes[0] if known else None


def _function(meta_graph: Any, call: Any) -> Any:
    name = call.attr["f"].func.name
    return next(f for f in meta_graph.graph_def.library.function if f.signature.name == name)


def _remove(repeated: Any, unwanted: Any) -> None:
    for i in reversed(range(len(repeated))):
        if unwanted(repeated[i]):
            del repeated[i]


def _set(repeated: Any, values: Sequence[Any]) -> None:
    del repeated[:]
    repeated.extend(values)

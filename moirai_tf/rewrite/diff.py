"""Checks a placed MetaGraph against the original and the plan, field by field.

Shares with the rewrite only how a model's restore is read (`restored`): it replays the edits that
the plan lists on a copy of the original and looks for anything else, and it finds the plan's
operators in the placed model by their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message
from tensorflow.core.framework import types_pb2

from moirai_tf.rewrite.plan import (
    CallEdit,
    Edits,
    NodeEdit,
    ObjectEdit,
    OrderEdit,
    Plan,
    Precedence,
    RelayEdit,
    RestoreEdit,
)
from moirai_tf.rewrite.restored import ASSIGNMENTS, read_variables, restored

_RESULT = "_retval_"
"""Operators with this prefix stand for the client's fetches; no node of a model has such a name."""


def unplanned_changes(original: Any, placed: Any, plan: Plan) -> list[str]:
    """Every difference between two MetaGraphs that the plan's edits do not account for."""
    expected = type(original)()
    expected.CopyFrom(original)
    rest, faults = without_restore(original, placed, plan.edits.restore)
    replayed = list(_replay(expected, plan.edits))
    return [*faults, *replayed, *_differences(expected, rest, plan.edits.clones)]


def misplaced(placed: Any, plan: Plan) -> list[str]:
    """Operators of the plan whose node in the placed MetaGraph is missing or elsewhere.

    Finds each node by its name alone: an operator `a/b/c` is node `c` of the function that node
    `a/b` calls, or node `b/c` of the function that `a` calls, and so on. Functions that an operator
    holds, such as the bodies of a loop, must lie on its device with everything in them. Fetches
    have no node in the model.
    """
    bodies = _bodies(placed)
    seen: set[tuple[str, str]] = set()
    found = []
    for name, device in plan.placement.items():
        if name.startswith(_RESULT):
            continue
        nodes = list(_nodes_called(name, "", bodies))
        if not nodes:
            found.append(f"operator {name!r} of the plan is not in the model")
        elif all(node.device != device for node in nodes):
            found.append(f"operator {name!r} is on {nodes[0].device!r}, not on {device!r}")
        for node in nodes:
            found.extend(_misplaced_inside(node, device, bodies, seen))
    return found


def disordered(placed: Any, plan: Plan) -> list[str]:
    """Precedences of the plan that the placed MetaGraph does not enforce.

    The later operator must depend on the earlier one inside the function body that holds both,
    whatever lies between them, and both must be on one device: else the edge would be a transfer.
    """
    bodies = _bodies(placed)
    found = []
    for pair in plan.order:
        text = f"operator {pair.after!r} does not wait for {pair.before!r}"
        if not _waits(pair, bodies):
            found.append(f"{text}, as the plan's order says")
        elif plan.placement.get(pair.before) != plan.placement.get(pair.after):
            found.append(f"{text} on one device: the plan's order is one of each device")
    return found


def _waits(pair: Precedence, bodies: Mapping[str, Mapping[str, Any]]) -> bool:
    earlier = dict(_located(pair.before, "", bodies))
    return any(
        call in earlier and _reaches(bodies[call[-1]], earlier[call], name)
        for call, name in _located(pair.after, "", bodies)
    )


def _reaches(nodes: Mapping[str, Any], source: str, target: str) -> bool:
    """Whether a node of a body depends on another one."""
    pending, seen = [target], {target}
    for name in pending:
        sources = {text.removeprefix("^").partition(":")[0] for text in nodes[name].input}
        if source in sources:
            return True
        new = [s for s in sources if s in nodes and s not in seen]
        seen.update(new)
        pending.extend(new)
    return False


def _replay(meta_graph: Any, edits: Edits) -> Iterator[str]:
    """Makes the plan's edits; yields those that do not fit or change more than a placement may."""
    functions = {f.signature.name: f for f in meta_graph.graph_def.library.function}
    for name, base in edits.clones.items():
        if base not in functions or name in functions:
            yield f"function {name!r} cannot be a clone of {base!r}"
            continue
        clone = meta_graph.graph_def.library.function.add()
        clone.CopyFrom(functions[base])
        clone.signature.name = name
    for relay in edits.relays:
        yield from _replay_relay(meta_graph, relay)
    bodies = _bodies(meta_graph)
    for node_edit in edits.nodes:
        yield from _replay_node(bodies, node_edit)
    for order_edit in edits.order:
        yield from _replay_order(bodies.get(order_edit.function, {}), order_edit)
    for call_edit in edits.calls:
        yield from _replay_call(bodies, call_edit, edits.clones)
    for object_edit in edits.objects:
        yield from _replay_object(meta_graph.object_graph_def.nodes, object_edit)


def _replay_node(bodies: Mapping[str, Any], edit: NodeEdit) -> Iterator[str]:
    node = bodies.get(edit.function, {}).get(edit.node)
    if node is None or node.device != edit.before:
        yield f"the plan's edit of node {edit.node!r} does not fit {_where(edit.function)}"
        return
    node.device = edit.after


def _replay_relay(meta_graph: Any, edit: RelayEdit) -> Iterator[str]:
    library = meta_graph.graph_def.library.function
    lists = {f.signature.name: f.node_def for f in library}
    body = meta_graph.graph_def.node if not edit.function else lists.get(edit.function, ())
    dtype = types_pb2.DataType.DESCRIPTOR.values_by_name.get(f"DT_{edit.dtype.upper()}")
    names = {node.name for node in body}
    if edit.source.partition(":")[0] not in names or edit.node in names or dtype is None:
        yield f"the plan's relay {edit.node!r} does not fit {_where(edit.function)}"
        return
    node = body.add(name=edit.node, op="Identity", input=[edit.source])
    node.attr["T"].type = dtype.number


def _replay_order(nodes: Mapping[str, Any], edit: OrderEdit) -> Iterator[str]:
    one, two = nodes.get(edit.before), nodes.get(edit.node)
    text = f"the plan's edge from {edit.before!r} to {edit.node!r}"
    if one is None or two is None or f"^{edit.before}" in two.input:
        yield f"{text} does not fit {_where(edit.function)}"
        return
    if one.device != two.device:
        yield f"{text} leads from {one.device!r} to {two.device!r}: it would be a transfer"
    two.input.append(f"^{edit.before}")


def _replay_call(
    bodies: Mapping[str, Any], edit: CallEdit, clones: Mapping[str, str]
) -> Iterator[str]:
    node = bodies.get(edit.function, {}).get(edit.node)
    named = [] if node is None else _named(node, edit.attr)
    position = max(edit.index, 0)
    if position >= len(named) or named[position].name != edit.before:
        yield f"the plan's edit of the call {edit.node!r} does not fit {_where(edit.function)}"
        return
    if clones.get(edit.after) != clones.get(edit.before, edit.before):
        yield f"the plan makes {edit.node!r} call {edit.after!r}, no clone of {edit.before!r}"
    named[position].name = edit.after


def _replay_object(objects: Sequence[Any], edit: ObjectEdit) -> Iterator[str]:
    known = 0 <= edit.node_id < len(objects)
    kind = objects[edit.node_id].WhichOneof("kind") if known else None
    if kind != edit.kind or getattr(objects[edit.node_id], edit.kind).device != edit.before:
        yield f"the plan's edit of object {edit.node_id} does not fit the object graph"
        return
    getattr(objects[edit.node_id], edit.kind).device = edit.after


def _differences(expected: Any, placed: Any, clones: Mapping[str, str]) -> Iterator[str]:
    """Where two MetaGraphs differ: nodes, functions, objects, then every other field."""
    yield from _nodes("the main graph", expected.graph_def.node, placed.graph_def.node)
    one, two = (
        sorted(graph.graph_def.library.function, key=lambda f: _clone_last(f, clones))
        for graph in (expected, placed)
    )
    names = [f.signature.name for f in one], [f.signature.name for f in two]
    yield from _names("the model", "function", *names)
    mine, theirs = dict(zip(names[0], one, strict=True)), dict(zip(names[1], two, strict=True))
    for name in sorted(mine.keys() & theirs.keys()):
        yield from _function(mine[name], theirs[name])
    yield from _objects(expected.object_graph_def.nodes, placed.object_graph_def.nodes)
    yield from _fields("the MetaGraph", expected, placed, ("graph_def", "object_graph_def"))
    yield from _fields("the graph", expected.graph_def, placed.graph_def, ("node", "library"))
    libraries = expected.graph_def.library, placed.graph_def.library
    yield from _fields("the library", *libraries, ("function",))
    graphs = expected.object_graph_def, placed.object_graph_def
    yield from _fields("the object graph", *graphs, ("nodes",))


def _clone_last(function: Any, clones: Mapping[str, str]) -> str:
    """Sorts clones by name behind the functions of the model, which keep their order."""
    name = str(function.signature.name)
    return name if name in clones else ""


def _function(one: Any, two: Any) -> Iterator[str]:
    where = _where(one.signature.name)
    yield from _nodes(where, one.node_def, two.node_def)
    yield from _fields(where, one, two, ("node_def",))


def _nodes(where: str, one: Sequence[Any], two: Sequence[Any]) -> Iterator[str]:
    yield from _names(where, "node", [n.name for n in one], [n.name for n in two])
    theirs = {n.name: n for n in two}
    for node in one:
        if node.name in theirs:
            yield from _node(f"node {node.name!r} of {where}", node, theirs[node.name])


def _node(where: str, one: Any, two: Any) -> Iterator[str]:
    """Differences of two nodes; control edges by the nodes that they come from."""
    mine, theirs = _controls(one), _controls(two)
    yield from (f"{where} does not wait for {name[1:]!r} any more" for name in mine - theirs)
    yield from (f"{where} waits for {name[1:]!r}, unplanned" for name in theirs - mine)
    data = ([text for text in n.input if not text.startswith("^")] for n in (one, two))
    told = mine != theirs and _same(*data)
    yield from _fields(where, one, two, ("input",) if told else ())


def _controls(node: Any) -> set[str]:
    return {text for text in node.input if text.startswith("^")}


def _objects(one: Sequence[Any], two: Sequence[Any]) -> Iterator[str]:
    if len(one) != len(two):
        yield f"the object graph has {len(two)} objects, not {len(one)}"
    for i, (mine, theirs) in enumerate(zip(one, two, strict=False)):
        yield from _fields(f"object {i}", mine, theirs)


def _names(where: str, noun: str, one: Sequence[str], two: Sequence[str]) -> Iterator[str]:
    mine, theirs = set(one), set(two)
    yield from (f"{where} has lost {noun} {name!r}" for name in one if name not in theirs)
    yield from (f"{where} has the new {noun} {name!r}" for name in two if name not in mine)
    if mine == theirs and list(one) != list(two):
        yield f"{where} has its {noun}s in another order"


def _fields(where: str, one: Any, two: Any, skipped: Sequence[str] = ()) -> Iterator[str]:
    if not skipped and _same(one, two):
        return
    names = [field.name for field in one.DESCRIPTOR.fields if field.name not in skipped]
    different = [name for name in names if not _same(_get(one, name), _get(two, name))]
    if not skipped and not different:
        yield f"{where} differs in a field that this TensorFlow does not know"
    yield from (f"{where} differs in its field {name!r}" for name in different)


def _get(message: Any, field: str) -> Any:
    """The value of a field, None if it can be unset and is."""
    known = message.DESCRIPTOR.fields_by_name[field]
    return None if known.has_presence and not message.HasField(field) else getattr(message, field)


def _same(one: Any, two: Any) -> bool:
    """Exact equality; messages by their bytes, so that a NaN equals itself."""
    if one is None or two is None:
        return one is two
    if isinstance(one, Message):
        return bool(
            one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)
        )
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str | bytes):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)


def _where(function: str) -> str:
    return f"function {function!r}" if function else "the main graph"


def _bodies(meta_graph: Any) -> dict[str, dict[str, Any]]:
    """Function, or empty for the main graph -> node name -> node."""
    library = meta_graph.graph_def.library
    bodies = {f.signature.name: {n.name: n for n in f.node_def} for f in library.function}
    return {**bodies, "": {n.name: n for n in meta_graph.graph_def.node}}


def _named(node: Any, attribute: str) -> Sequence[Any]:
    """The functions that an attribute names."""
    if attribute not in node.attr:
        return ()
    value = node.attr[attribute]
    return [value.func] if value.HasField("func") else list(value.list.func)


def _nodes_called(
    name: str, function: str, bodies: Mapping[str, Mapping[str, Any]]
) -> Iterator[Any]:
    return (bodies[call[-1]][node] for call, node in _located(name, function, bodies))


def _located(
    name: str, function: str, bodies: Mapping[str, Mapping[str, Any]], outer: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where an operator may be: (calling nodes, then the function that is reached), node."""
    nodes = bodies[function]
    if name in nodes:
        yield (*outer, function), name
    parts = name.split("/")
    for i in range(1, len(parts)):
        call = "/".join(parts[:i])
        for called in _named(nodes[call], "f") if call in nodes else ():
            if called.name in bodies:
                yield from _located("/".join(parts[i:]), called.name, bodies, (*outer, call))


def _misplaced_inside(
    node: Any, device: str, bodies: Mapping[str, Mapping[str, Any]], seen: set[tuple[str, str]]
) -> Iterator[str]:
    """Nodes that an operator's functions hold on another device than the operator's."""
    for attribute in node.attr:
        for function in _named(node, attribute):
            known = function.name and function.name in bodies
            if not known or (function.name, device) in seen:
                continue
            seen.add((function.name, device))
            for inner in bodies[function.name].values():
                if inner.device != device:
                    where = f"node {inner.name!r} of function {function.name!r}"
                    yield f"{where} is on {inner.device!r}, not on {device!r} as its operator"
                yield from _misplaced_inside(inner, device, bodies, seen)


_ALLOWED = ASSIGNMENTS | {"Const", "NoOp", "RestoreV2"}


def without_restore(original: Any, placed: Any, edit: RestoreEdit | None) -> tuple[Any, list[str]]:
    """The placed MetaGraph without what the edit added, and what is wrong with that.

    Args:
      original: the `MetaGraphDef` before it was placed.
      placed: the placed one; not changed.
      edit: what the plan says of the restore.
    """
    if edit is None:
        return placed, []
    faults = []
    names = frozenset(edit.nodes)
    added = [node for node in placed.graph_def.node if node.name in names]
    before = {node.name for node in original.graph_def.node}
    if len(added) != len(names) or names & before or edit.after not in names:
        faults.append("the plan's nodes of the restore are not all new nodes of the model")
    faults += [
        f"node {node.name!r} of the restore is a {node.op}"
        for node in added
        if node.op not in _ALLOWED
    ]
    if placed.saver_def.restore_op_name != edit.after:
        faults.append(f"the model is not restored by {edit.after!r}, as the plan says")
    read = read_variables(original)
    wanted = {name: key for name, key in _pairs(original, edit.before).items() if name in read}
    if wanted != _pairs(placed, edit.after):
        faults.append("the restore does not give every variable the value that it had")
    rest = type(placed)()
    rest.CopyFrom(placed)
    del rest.graph_def.node[:]
    rest.graph_def.node.extend(node for node in placed.graph_def.node if node.name not in names)
    rest.saver_def.restore_op_name = edit.before
    return rest, faults


def _pairs(meta_graph: Any, root: str) -> dict[str, tuple[bytes, bytes]]:
    """Variable -> tensor of the checkpoint; empty if it is unknown."""
    found = restored(meta_graph, root) or {}
    return {variable: (source.key, source.part) for variable, source in found.items()}

"""Lets every worker restore the variables that it holds, and no others.

A SavedModel restores all its variables with one `RestoreV2`, which runs on the master: the whole
model is read there and sent on, so a model that needs several workers' memory could not be loaded.
For a plan of several tasks one `RestoreV2` per task is added to the main graph, and the saver's
entry names them. Variables that no signature reads are left out: an export of Keras holds every
variable two or three times. Nothing else changes, and the TF2 loader restores in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tensorflow.python.framework import tensor_util

from moirai_tf.cluster.cluster import task_of
from moirai_tf.model.validate import input_node
from moirai_tf.rewrite.plan import Plan, RestoreEdit
from moirai_tf.rewrite.restored import Restored, read_variables, restored

_SCOPE = "moirai_restore"


def split_restore(meta_graph: Any, plan: Plan) -> RestoreEdit | None:
    """Makes every task of a plan restore its own variables, in place; the devices are written.

    Returns:
      What was changed; None if the plan has one task, or the model restores in a way of its own.
    """
    homes = {_home(device.name) for device in plan.devices}
    before = meta_graph.saver_def.restore_op_name
    found = restored(meta_graph, before) if len(homes) > 1 else None
    if not found:
        return None
    main = {node.name: node for node in meta_graph.graph_def.node}
    if any(name.partition("/")[0] == _SCOPE for name in main):
        return None
    groups: dict[str, dict[str, Restored]] = {}
    read = read_variables(meta_graph)
    for variable, source in found.items():
        if variable not in read:
            continue
        groups.setdefault(_home(main[variable].device or plan.client), {})[variable] = source
    file = input_node(meta_graph.saver_def.filename_tensor_name)
    added = [
        node
        for k, (home, group) in enumerate(sorted(groups.items()))
        for node in _restore_group(f"{_SCOPE}/{k}", home, file, group, main)
    ]
    done = [node.name for node in added if node.op == "NoOp"]
    added.append(_node(main, _SCOPE, "NoOp", "", (f"^{name}" for name in done)))
    meta_graph.graph_def.node.extend(added)
    meta_graph.saver_def.restore_op_name = _SCOPE
    return RestoreEdit(before, _SCOPE, tuple(node.name for node in added))


def join_restore(meta_graph: Any, edit: RestoreEdit | None) -> None:
    """Undoes `split_restore`, in place."""
    if edit is None:
        return
    names = frozenset(edit.nodes)
    nodes = meta_graph.graph_def.node
    for i in reversed(range(len(nodes))):
        if nodes[i].name in names:
            del nodes[i]
    meta_graph.saver_def.restore_op_name = edit.before


def misfit_restore(meta_graph: Any, edit: RestoreEdit | None) -> Iterable[str]:
    """What of the edit is not in a model."""
    if edit is None:
        return
    if meta_graph.saver_def.restore_op_name != edit.after:
        yield f"the model is not restored by {edit.after!r}"
    known = {node.name for node in meta_graph.graph_def.node}
    yield from (f"there is no node {name!r}" for name in edit.nodes if name not in known)


def _restore_group(
    scope: str, home: str, file: str, group: Mapping[str, Restored], main: Mapping[str, Any]
) -> list[Any]:
    """Reads the tensors of one task on its CPU, and assigns each where its variable is."""
    sources = group.values()
    restore = _node(
        main, f"{scope}/RestoreV2", "RestoreV2", home,
        (file, f"{scope}/tensor_names", f"{scope}/shape_and_slices"),
    )  # fmt: skip
    nodes = [
        _strings(main, f"{scope}/tensor_names", home, [source.key for source in sources]),
        _strings(main, f"{scope}/shape_and_slices", home, [source.part for source in sources]),
        restore,
    ]
    for i, (variable, source) in enumerate(group.items()):
        given = source.assignment
        kind = "T" if given.op == "Assign" else "dtype"
        restore.attr["dtypes"].list.type.append(given.attr[kind].type)
        tensor = f"{restore.name}:{i}" if i else restore.name
        device = main[variable].device or home
        assign = _node(main, f"{scope}/assign_{i}", given.op, device, (variable, tensor))
        for name in given.attr:
            if not name.startswith("_"):
                assign.attr[name].CopyFrom(given.attr[name])
        nodes.append(assign)
    done = [f"^{node.name}" for node in nodes[3:]]
    return [*nodes, _node(main, f"{scope}/done", "NoOp", home, done)]


def _strings(main: Mapping[str, Any], name: str, device: str, values: list[bytes]) -> Any:
    tensor = tensor_util.make_tensor_proto(values, shape=[len(values)])
    node = _node(main, name, "Const", device, ())
    node.attr["dtype"].type = tensor.dtype
    node.attr["value"].tensor.CopyFrom(tensor)
    return node


def _node(main: Mapping[str, Any], name: str, op: str, device: str, inputs: Iterable[str]) -> Any:
    kind = type(next(iter(main.values())))
    return kind(name=name, op=op, device=device, input=list(inputs))


def _home(device: str) -> str:
    """The CPU that reads files for a device: the kernel of `RestoreV2` exists there only."""
    return f"{task_of(device)}/device:CPU:0"

"""Checks that a placed MetaGraph restores the same variables from the same tensors."""

from __future__ import annotations

from typing import Any

from moirai_tf.rewrite.plan import RestoreEdit
from moirai_tf.rewrite.restored import ASSIGNMENTS, read_variables, restored

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

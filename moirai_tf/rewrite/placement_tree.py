"""A placement of flat operators, regrouped by the function call that each came through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moirai_tf.graph.graph import RESULT, Graph, Scope
from moirai_tf.rewrite.order import Order, Wait


@dataclass
class CallTree:
    """The operators of one call of a function, and the calls inside it."""

    function: str
    devices: dict[str, str] = field(default_factory=dict)
    """Node name in the body -> device."""
    calls: dict[str, CallTree] = field(default_factory=dict)
    """Name of the calling node -> its tree."""
    waits: tuple[Wait, ...] = ()
    """Control edges to add to the body."""


def call_tree(graph: Graph, placement: Mapping[str, str], order: Order) -> CallTree:
    """Placement and order as a tree whose root is the main graph; results have no node there."""
    root = CallTree("")
    trees: dict[Scope | None, CallTree] = {}
    planned = {(operator.scope, operator.node.name) for operator in graph.operators}
    for operator in graph.operators:
        if operator.op == RESULT or operator.name not in placement:
            continue
        tree = _tree_of(operator.scope, trees, root)
        tree.devices[operator.node.name] = placement[operator.name]
        for unread in operator.unread:
            # The TF2 loader runs it: where control flow starts follows what feeds it.
            if (unread.scope, unread.node) not in planned:
                feeding = _tree_of(unread.scope, trees, root)
                feeding.devices[unread.node] = placement[operator.name]
    for calls, waits in order.waits.items():
        tree = root
        for call in calls:
            tree = tree.calls[call]
        tree.waits = waits
    return root


def _tree_of(scope: Scope, trees: dict[Scope | None, CallTree], root: CallTree) -> CallTree:
    if scope.parent is None:
        return root
    if scope not in trees:
        outer = _tree_of(scope.parent, trees, root)
        trees[scope] = outer.calls.setdefault(scope.call, CallTree(scope.function))
    return trees[scope]

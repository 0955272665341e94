"""Drops what one inference does not need, and control edges that order nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tensorflow.python.framework import op_def_registry

from moirai_tf.graph.graph import ColocationGroup, Graph, Operator, TensorRef
from moirai_tf.model.validate import BACK_EDGE_SOURCES, function_attrs

_STATEFUL_WITHOUT_EFFECT = frozenset({
    "VarHandleOp", "ReadVariableOp", "VariableV2", "Variable", "ResourceGather", "ResourceGatherNd",
    "HashTableV2", "HashTable", "LookupTableFindV2", "LookupTableSizeV2", "VarIsInitializedOp",
    "VariableShape", "_Retval", "_Arg",
    "RandomUniform", "RandomStandardNormal", "RandomUniformInt", "TruncatedNormal",
})  # fmt: skip
"""Ops that TensorFlow calls stateful because they read state; running them changes nothing."""

_DEADNESS_OPS = frozenset({"Switch", "RefSwitch", "Merge", "RefMerge", "Enter", "RefEnter"})


def has_side_effect(
    node: Any, functions: Mapping[str, Any], inside: frozenset[str] = frozenset()
) -> bool:
    """Whether running a node can be seen by anything but its readers.

    Args:
      node: a `NodeDef`; one with functions does what they do.
      functions: function name -> `FunctionDef`.
      inside: functions that are being asked already.
    """
    named = (node.op, *(function.name for _, _, function in function_attrs(node)))
    bodies = [name for name in named if name in functions]
    if bodies:
        return any(
            has_side_effect(inner, functions, inside | {name})
            for name in bodies
            if name not in inside
            for inner in functions[name].node_def
        )
    op_def = op_def_registry.get(node.op)
    is_stateful = op_def is None or bool(op_def.is_stateful)
    return is_stateful and node.op not in _STATEFUL_WITHOUT_EFFECT


def prune(graph: Graph) -> Graph:
    """What the outputs and the side effects of a graph need, and nothing else.

    A control edge is kept if its source has a side effect, or if the graph holds TF1 control flow,
    where control edges carry deadness. `NoOp`s are replaced by what they wait for. The model itself
    keeps all of it: this is the graph that is placed, not the one that is written.
    """
    carries_deadness = any(o.op in _DEADNESS_OPS for o in graph.operators)
    effects = frozenset(
        i for i, o in enumerate(graph.operators) if has_side_effect(o.node, graph.functions)
    )
    orders = frozenset(range(len(graph))) if carries_deadness else effects
    waits: list[tuple[int, ...]] = []
    for operator in graph.operators:
        waits.append(_controls(operator, graph.operators, waits, orders))
    needed = _needed(graph, waits, effects)
    position = {old: new for new, old in enumerate(sorted(needed))}
    operators = tuple(_moved(graph.operators[old], position, waits[old]) for old in sorted(needed))
    return replace(
        graph,
        operators=operators,
        inputs={name: position[i] for name, i in graph.inputs.items()},
        outputs={name: position[i] for name, i in graph.outputs.items()},
        colocation=_groups(graph.colocation, position),
    )


def _controls(
    operator: Operator,
    operators: Sequence[Operator],
    waits: Sequence[tuple[int, ...]],
    orders: frozenset[int],
) -> tuple[int, ...]:
    """The control inputs that order something, `NoOp`s looked through."""
    found: dict[int, None] = {}
    for control in operator.controls:
        if operators[control].op == "NoOp":
            found.update(dict.fromkeys(waits[control]))
        elif control in orders:
            found[control] = None
    return tuple(sorted(found))


def _needed(graph: Graph, waits: Sequence[tuple[int, ...]], effects: frozenset[int]) -> set[int]:
    needed: set[int] = set()
    stack = [*graph.outputs.values(), *graph.inputs.values(), *effects]
    stack.extend(i for i, o in enumerate(graph.operators) if o.op in BACK_EDGE_SOURCES)
    while stack:
        i = stack.pop()
        if i in needed:
            continue
        needed.add(i)
        stack.extend(ref.producer for ref in graph.operators[i].inputs)
        stack.extend(waits[i])
    return needed


def _moved(operator: Operator, position: dict[int, int], controls: Sequence[int]) -> Operator:
    return replace(
        operator,
        inputs=tuple(TensorRef(position[r.producer], r.port) for r in operator.inputs),
        controls=tuple(position[c] for c in controls),
    )


def _groups(
    groups: Sequence[ColocationGroup], position: dict[int, int]
) -> tuple[ColocationGroup, ...]:
    kept = (
        replace(g, members=tuple(position[m] for m in g.members if m in position)) for g in groups
    )
    return tuple(g for g in kept if len(g.members) > 1)

"""Finds the planned order of operators in TensorFlow's partitioned graphs.

An order is kept if the later operator's node depends on the earlier one's inside its partition:
then no executor can start it before. What became part of a kernel is looked for in that kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moirai_tf.model.validate import input_node
from moirai_tf.rewrite.plan import Precedence
from moirai_tf.verify.names import Names
from moirai_tf.verify.partition import PartitionedGraph
from moirai_tf.verify.report import ORDER, Finding


def prove_order(
    run: str, graph: PartitionedGraph, order: Sequence[Precedence]
) -> tuple[int, list[Finding]]:
    """How many precedences of a plan a run's graphs enforce, and those that they do not.

    A precedence of operators that are not there any more is in neither: of two that compute the
    same, Grappler keeps one.
    """
    nodes = Kernels(graph.nodes, graph.names)
    kept = 0
    findings: list[Finding] = []
    for pair in order:
        one, two = nodes.holding(pair.before), nodes.holding(pair.after)
        if not one or not two:
            continue
        if one & two or _depends(graph.nodes, two, one):
            kept += 1
            continue
        findings.append(
            Finding(
                ORDER,
                f"{run}: operator {pair.after!r} does not wait for {pair.before!r}, "
                "as the plan's order says",
                (pair.before, pair.after),
            )
        )
    return kept, findings


_CONTRACTIONS = frozenset({
    "Conv2D", "Conv3D", "DepthwiseConv2dNative", "MatMul", "BatchMatMul", "BatchMatMulV2",
})  # fmt: skip
"""Ops that give their names to the kernels that they are fused into; these are named as the last of
their operators."""


class Kernels:
    """The node that each operator is, or became a part of."""

    def __init__(self, nodes: Mapping[str, Any], names: Names) -> None:
        self._nodes = nodes
        self._names = names
        self._readers: dict[str, list[str]] = {}
        """Operator -> those that read it in its own function."""
        for operator in names.placement:
            for source in names.sources(operator) if operator in names.nodes else ():
                self._readers.setdefault(source, []).append(operator)

    def holding(self, operator: str) -> set[str]:
        """An operator's node, or the kernel of a contraction; all nodes of a divided one."""
        if operator in self._names.divided:
            return {n.name for n in self._nodes.values() if self._names.operator(n) == operator}
        name = operator.removeprefix(self._names.prefix)
        if name in self._nodes:
            return {name}
        op = self._names.op(operator)
        while op in _CONTRACTIONS and len(readers := self._readers.get(operator, [])) == 1:
            operator = readers[0]
            node = self._nodes.get(operator.removeprefix(self._names.prefix))
            if node is not None:
                return {str(node.name)} if node.op.startswith("_") and op in node.op else set()
            if self._names.op(operator) in _CONTRACTIONS:
                break
        return set()


def _depends(nodes: Mapping[str, Any], targets: set[str], sources: set[str]) -> bool:
    """Whether any target depends on any source; nodes of a loop depend on one another."""
    pending, seen = list(targets), set(targets)
    for name in pending:
        new = {input_node(text) for text in nodes[name].input} - seen
        if new & sources:
            return True
        seen |= new
        pending.extend(new)
    return False

"""From the name of a kernel in a profile back to the operator of the flat graph.

Grappler and oneDNN rewrite the graph before it runs. A fused kernel keeps the name of one member,
an optimizer puts its own name into the path and a prefix before the last part, and a lowered loop
or branch puts its body under the name of its operator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from moirai_tf.graph.graph import Graph

_OPTIMIZERS = re.compile(
    r"(?:^|(?<=/))(?:ArithmeticOptimizer|ConstantFolding|ConstantFoldingCtrl|DebugStripper|"
    r"LoopOptimizer|PinToHostOptimizer|RemapperOptimizer|CommonSubgraphElimination)/"
)
_BOUNDARY = "Func/"
"""What TensorFlow puts before the names of a function's inputs and outputs that it inlines."""
_LAYOUT_SUFFIX = re.compile(r"-\d+-[^/]*$|-folded[^/]*$")


class KernelNames:
    """Finds the operator that a kernel's name leads to."""

    def __init__(self, graph: Graph) -> None:
        self._index: Mapping[str, int] = graph.index

    def owner(self, kernel: str) -> int | None:
        """Index of the operator, or None if the name leads to none.

        The name itself wins, then the name without the optimizers' marks, then the longest path
        above it: `call/while/body/_17/while/MatMul` belongs to the operator `call/while`.
        """
        kernel = kernel.removeprefix(_BOUNDARY)
        for name in _spellings(kernel):
            if name in self._index:
                return self._index[name]
        path = _OPTIMIZERS.sub("", kernel)
        while path:
            path = path.rpartition("/")[0]
            if path in self._index:
                return self._index[path]
        return None


def _spellings(kernel: str) -> Iterator[str]:
    """The name, without optimizers in its path, and then with ever less before its last part.

    `a/ArithmeticOptimizer/AddOpsRewrite_Leaf_1_add_2` may be about `a/Leaf_1_add_2`, `a/1_add_2`,
    `a/add_2` or `a/2`, the longest first.
    """
    yield kernel
    plain = _LAYOUT_SUFFIX.sub("", _OPTIMIZERS.sub("", kernel))
    if plain == kernel:
        return
    yield plain
    scope, slash, last = plain.rpartition("/")
    while "_" in last:
        last = last.partition("_")[2]
        yield f"{scope}{slash}{last}"

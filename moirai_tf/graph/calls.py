"""Which function calls TensorFlow inlines before it places nodes. Every other call is one operator.

A Session inlines with Grappler (`InlineFunctionCalls` in tensorflow/core/grappler/optimizers/
function_optimizer.cc), the TF2 loader in its pass before placement (common_runtime/
lower_functional_ops.cc). Neither inlines (`MarkedForXlaCompilation` of both, `ValidateInlining` in
common_runtime/inline_function_utils.cc)

- a node that XLA compiles;
- a function marked `_noinline`: the mark of a node counts for nothing;
- a function with `api_implements`, for which Grappler may choose another implementation, such as
  the recurrent layers of Keras 2.

A Session does not inline either (`ValidateSideEffectsExecution`, `ValidateNoDeadOutputs`)

- a function with stateful nodes, if the call has no outgoing control edge, or if some such node
  does not lead to a control output of the function;
- a function that returns what a `Switch` gives without a `Merge` between.

What only the TF2 loader inlines is one operator all the same: its body inherits the call's device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from tensorflow.python.framework import op_def_registry

from moirai_tf.graph.graph import CALL_OPS, MERGE_OPS
from moirai_tf.model.op_types import attr_of
from moirai_tf.model.validate import input_node

_XLA = ("_xla_compile_id", "_tpu_replicate", "_XlaMustCompile")
_SWITCHES = frozenset({"Switch", "RefSwitch", "_SwitchN"})
_EXEMPT = frozenset({
    "CollectiveGather", "CollectiveReduce", "CollectiveBcastSend", "CollectiveBcastRecv",
    "CollectiveBcastSendV2", "CollectiveBcastRecvV2", "NcclAllReduce", "Send", "Recv",
    "CollectiveAssignGroupsV2", "CollectiveInitializeCommunicator",
    "RandomUniform", "RandomUniformInt", "RandomStandardNormal", "ParameterizedTruncatedNormal",
    "TruncatedNormal", "RandomShuffle", "Multinomial", "RandomGamma", "RandomGammaGrad",
    "RandomPoisson", "RandomPoissonV2", "ReadVariableOp",
    "CudnnRNN", "CudnnRNNBackprop", "CudnnRNNV2", "CudnnRNNV3", "CudnnRNNBackpropV2",
    "CudnnRNNBackpropV3", "SaveV2", "RestoreV2", "InfeedEnqueue", "InfeedEnqueueTuple",
})  # fmt: skip
"""Stateful ops that need not lead to a control output
(`IsExemptFromSideEffectsExecutionValidation`), but for those of TPUs."""


def compiled(node: Any) -> bool:
    """Whether XLA compiles a node, so that it is neither inlined nor lowered."""
    values = (attr_of(node, attribute) for attribute in _XLA)
    return any(value.s or value.b for value in values)


class Calls:
    """The calls of a function library."""

    def __init__(self, functions: Mapping[str, Any]) -> None:
        self._functions = functions
        self._safe: dict[str, bool] = {}
        self._dead: dict[str, bool] = {}
        self._waited_for: dict[str, frozenset[str]] = {}

    def inlined(self, node: Any, *, controls: bool) -> Any | None:
        """The function that TensorFlow puts in the place of a call; None if the node stays.

        Args:
          node: any `NodeDef`.
          controls: whether a control edge leaves the node, as its graph is when TensorFlow looks.
        """
        name = attr_of(node, "f").func.name if node.op in CALL_OPS else ""
        function = self._functions.get(name)
        if function is None or compiled(node) or not self.inlinable(function):
            return None
        if self._stateful(function) and not (controls and self._is_safe(function)):
            return None
        return function

    def inlinable(self, function: Any) -> bool:
        """Whether TensorFlow inlines the function of a loop or branch that it takes apart.

        What keeps effects together does not count there.
        """
        return not _marked(function) and not self._is_dead(function)

    def controlling(self, function: Any, *, controls: bool) -> frozenset[str]:
        """Nodes of an inlined body that a control edge leaves.

        Args:
          function: the `FunctionDef`.
          controls: whether one leaves the call, or the call is fetched.
        """
        name = function.signature.name
        if name not in self._waited_for:
            self._waited_for[name] = waited_for(function.node_def)
        outer = function.control_ret.values() if controls else ()
        return self._waited_for[name].union(outer)

    def _stateful(self, function: Any) -> list[str]:
        """Nodes that TensorFlow takes to have a side effect."""
        return [
            node.name
            for node in function.node_def
            if node.op not in _EXEMPT and self._is_stateful(node.op)
        ]

    def _is_stateful(self, op: str) -> bool:
        function = self._functions.get(op)
        return bool(function.signature.is_stateful) if function is not None else stateful_op(op)

    def _is_safe(self, function: Any) -> bool:
        """Whether every side effect leads to a control output."""
        name = function.signature.name
        if name not in self._safe:
            ends = function.control_ret.values()
            self._safe[name] = _before(function, ends).issuperset(self._stateful(function))
        return self._safe[name]

    def _is_dead(self, function: Any) -> bool:
        """Whether a result may be the untaken side of a `Switch`."""
        name = function.signature.name
        if name not in self._dead:
            self._dead[name] = False  # a function may call itself
            results = [input_node(text) for text in function.ret.values()]
            ops = {node.name: node.op for node in function.node_def}
            before = _before(function, results, {n for n, op in ops.items() if op in MERGE_OPS})
            self._dead[name] = any(
                ops[n] in _SWITCHES
                or (ops[n] in self._functions and self._is_dead(self._functions[ops[n]]))
                for n in before
            )
        return self._dead[name]


def waited_for(nodes: Iterable[Any]) -> frozenset[str]:
    """The nodes of one body that others wait for without data."""
    return frozenset(
        input_node(text) for node in nodes for text in node.input if text.startswith("^")
    )


def _marked(function: Any) -> bool:
    return bool(attr_of(function, "_noinline").b) or "api_implements" in function.attr


def _before(function: Any, ends: Iterable[str], but: Iterable[str] = ()) -> set[str]:
    """The nodes from which a path leads to some nodes, none through others."""
    closed = frozenset(but)
    nodes = {node.name: node for node in function.node_def if node.name not in closed}
    found = {name for name in ends if name in nodes}
    pending = list(found)
    while pending:
        sources = {input_node(text) for text in nodes[pending.pop()].input}
        new = {source for source in sources if source in nodes} - found
        found |= new
        pending.extend(new)
    return found


@cache
def stateful_op(op: str) -> bool:
    """Whether TensorFlow says of an op that it has state."""
    op_def = op_def_registry.get(op)
    return op_def is not None and bool(op_def.is_stateful)

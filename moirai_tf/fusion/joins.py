"""Operators that join a neighbour without any backend's rule.

Constants, variable reads and arithmetic on shapes join the operator they feed; identities, views
and repetitions of a fusion's end join what they look at or repeat; element-wise operators form the
expressions that Eigen evaluates. Weights stay with their readers: they must never travel at every
inference.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from moirai_tf.fusion import ops
from moirai_tf.fusion.analysis import Analysis, constant_values
from moirai_tf.fusion.merge import Merger
from moirai_tf.graph.graph import CLIENT_OPS

JOINED = "joined"
EXPRESSION = "eigen/expression"
CONCATENATION = "grappler/concatenation"
REDUCTION = "grappler/reduction"
REWRITTEN = "grappler/rewritten"
_CONCAT = "ConcatV2"
_CHAINABLE = ops.ELEMENT_WISE | ops.IDENTITIES | frozenset(ops.VIEWS)


@dataclass(frozen=True, slots=True)
class Joins:
    """The joins of one graph, made in a merger."""

    analysis: Analysis
    merger: Merger
    fused: Container[int]
    """Operators that a rule has fused: no expression takes them in."""

    def forwarders(self) -> None:
        """Identities join what they pass on, repetitions a fusion that they repeat the end of.

        Other repetitions stay apart: they cost little, and each may run where it is needed.
        """
        for i, operator in enumerate(self.analysis.graph.operators):
            passed_on = self.analysis.forwards[i]
            is_identity = operator.op in ops.IDENTITIES
            if passed_on is not None and (is_identity or passed_on.producer in self.fused):
                self._join_source(i, passed_on.producer)
            elif self._reads_shape(i) and operator.inputs:
                self._join_source(i, operator.inputs[0].producer)

    def views(self) -> None:
        """Reshapes join their producer if nobody else reads it."""
        for i, operator in enumerate(self.analysis.graph.operators):
            if operator.op not in ops.VIEWS or i in self.fused or self.merger.feeds[i]:
                continue
            producer = operator.inputs[0].producer
            if self.merger.only_successor(producer) == self.merger.find(i):
                self._join_source(i, producer)

    def operands(self) -> None:
        """Operators that are no data join their only reader, or else their source."""
        size = len(self.analysis.graph)
        for i in reversed(range(size)):
            reader = self._reader(i) if self.merger.only_feeds(i) else None
            if reader is not None and not self._would_move_data(i, reader):
                self._join(i, reader)
        for i in range(size):
            if self.analysis.shape[i] and self.merger.only_feeds(i):
                self._join_only_source(i)

    def concatenations(self) -> None:
        """A concatenation that only another one reads along the same axis joins it.

        Grappler makes one of the two wherever they are placed (`constant_folding.cc`, MergeConcat):
        apart, every part of the first would cross to the second.
        """
        for i, operator in enumerate(self.analysis.graph.operators):
            readers = self.analysis.data_readers(i) if operator.op == _CONCAT else ()
            if len(readers) == 1 and self._axis(i) == self._axis(readers[0]) is not None:
                self.merger.merge((i, readers[0]), CONCATENATION, keep=(i, readers[0]))

    def reductions(self) -> None:
        """A largest or smallest element joins the monotonic operator that it alone reads.

        Grappler swaps the two wherever they are placed (`arithmetic_optimizer.cc`,
        OptimizeMaxOrMinOfMonotonic): apart, the tensor would cross, and come back.
        """
        for i, operator in enumerate(self.analysis.graph.operators):
            if operator.op not in ops.EXTREMA:
                continue
            source = self._source(i, 0)
            monotonic = self.analysis.graph.operators[source].op in ops.MONOTONIC
            if monotonic and self.analysis.data_readers(source) == (i,):
                self.merger.merge((source, i), REDUCTION, keep=(source, i))

    def rewritten(self) -> None:
        """An operator joins those whose inputs Grappler lets it read in their place.

        Grappler does so wherever the two are placed, and whoever else reads the one that is passed
        over: apart, what that reads would cross as well as what it gives.
        """
        for i, operator in enumerate(self.analysis.graph.operators):
            passed_over = [
                source
                for source in {self._source(i, k): None for k in range(len(operator.inputs))}
                if not self.analysis.fixed[source] and self._passes_over(i, source)
            ]
            for source in passed_over:
                rule = self.merger.rule(i) or self.merger.rule(source) or REWRITTEN
                self.merger.merge((source, i), rule, keep=(source, i))

    def expressions(self) -> None:
        """An element-wise operator joins its only reader if that is element-wise, too."""
        known: dict[int, tuple[bool, bool]] = {}
        for i in reversed(range(len(self.analysis.graph))):
            reader = self.merger.only_successor(i) if self._is_chainable(i) else None
            if reader is None or not all(self._expression(i, known)):
                continue
            computes, feeds = self._expression(reader, known)
            if self.merger.merge((i, reader), EXPRESSION, keep=(i, reader)) is None:
                known[self.merger.find(i)] = computes, feeds  # its other consumers are inside now

    def weights(self) -> None:
        """Readers of a weight share its device, unless no device could run them all."""
        for i, is_weight in enumerate(self.analysis.weight):
            readers = [r for r in self.analysis.graph.consumers[i] if not self._is_client(r)]
            if is_weight:
                self.merger.colocate((i, *readers))

    def _reads_shape(self, i: int) -> bool:
        """Whether an operator reads one tensor's shape.

        Grappler makes a `Size` of the product of a shape, where the shape is read
        (`constant_folding.cc`).
        """
        operators = self.analysis.graph.operators
        operator = operators[i]
        if operator.op == "Prod":
            return operators[operator.inputs[0].producer].op == "Shape"
        return operator.op in ops.SHAPE_SOURCES and len(operator.inputs) == 1

    def _passes_over(self, i: int, source: int) -> bool:
        """Whether Grappler may let an operator read what its source reads."""
        reader, passed = (self.analysis.graph.operators[k] for k in (i, source))
        if reader.op in ops.PRODUCTS and passed.op in ops.TRANSPOSES:
            return self._swaps_rows_and_columns(source)
        return passed.op in ops.PASSED_OVER.get(reader.op, ())

    def _swaps_rows_and_columns(self, transpose: int) -> bool:
        graph = self.analysis.graph
        order = constant_values(graph, graph.operators[transpose].inputs[1].producer)
        size = len(order)
        return order == [*range(size - 2), size - 1, size - 2]

    def _source(self, i: int, position: int) -> int:
        """The operator behind an input."""
        return self.analysis.source(self.analysis.graph.operators[i].inputs[position]).producer

    def _axis(self, i: int) -> object | None:
        """The constant axis of a concatenation; None for any other operator."""
        operators = self.analysis.graph.operators
        if operators[i].op != _CONCAT:
            return None
        value: object | None = operators[operators[i].inputs[-1].producer].attr("value")
        return value

    def _reader(self, i: int) -> int | None:
        """The only reader of a cluster, or the one that all other readers follow anyway."""
        readers = self.merger.ordered_successors(i)
        if readers and all(self.merger.follows(r, readers[0]) for r in readers[1:]):
            return readers[0]
        return None

    def _join_only_source(self, i: int) -> None:
        sources = [p for p in self.merger.predecessors(i) if not self.analysis.fixed[p]]
        if len(sources) == 1:
            self._join(i, sources[0])

    def _join_source(self, i: int, source: int) -> None:
        if not self.analysis.fixed[source]:
            self._join(i, source)

    def _join(self, i: int, neighbour: int) -> None:
        if not self._is_client(neighbour):
            rule = self.merger.rule(neighbour) or JOINED
            self.merger.merge((i, neighbour), rule, keep=(neighbour,))

    def _would_move_data(self, i: int, reader: int) -> bool:
        """Whether the reader would need an input of the client only to know its shape."""
        clients = {p for p in self.merger.predecessors(i) if self._is_client(p)}
        return bool(clients) and not clients <= self.merger.predecessors(reader)

    def _expression(self, i: int, known: dict[int, tuple[bool, bool]]) -> tuple[bool, bool]:
        """Whether a cluster does nothing but element-wise work, and all that reads it does too.

        A cluster is looked through once and then remembered: expressions grow as long as graphs.
        """
        cluster = self.merger.find(i)
        if cluster not in known:
            members = self.merger.members(cluster)
            computes = all(self.merger.feeds[m] or self._is_chainable(m) for m in members)
            consumers = {c for m in members for c in self.analysis.graph.consumers[m]}
            outside = [c for c in consumers.difference(members) if not self.merger.feeds[c]]
            known[cluster] = computes, bool(outside) and all(map(self._is_chainable, outside))
        return known[cluster]

    def _is_chainable(self, i: int) -> bool:
        op = self.analysis.graph.operators[i].op
        return op in _CHAINABLE and i not in self.fused and not self.merger.feeds[i]

    def _is_client(self, i: int) -> bool:
        return self.analysis.graph.operators[i].op in CLIENT_OPS

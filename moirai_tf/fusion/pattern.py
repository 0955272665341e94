"""Patterns: trees of op types that are matched from an operator upwards through its inputs.

Of the places where rules apply bigger fusions come first, every operator in at most one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from moirai_tf.fusion import ops
from moirai_tf.fusion.analysis import Analysis
from moirai_tf.graph.graph import Operator, TensorRef

Binding = Mapping[str, TensorRef]
"""Label of a pattern node -> the tensor that it stands for."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One node of a pattern; nodes with the same label must be the same tensor.

    Operators that only forward a tensor are looked through. The inputs of commutative ops match in
    either order. An operator may have more inputs than the pattern names.
    """

    label: str
    ops: tuple[str, ...] = ()
    """Op types of a member of the fusion; empty for a tensor that comes from outside."""
    inputs: tuple[Pattern, ...] = ()
    optional: bool = False
    """The node may be missing: then its first input stands in its place."""
    fixed: bool = False
    """From outside, and computed from constants and variables alone."""
    vector: bool = False
    """From outside, and either that or of one dimension."""

    def labels(self) -> frozenset[str]:
        """Labels of all members."""
        own = frozenset({self.label}) if self.ops else frozenset()
        return own.union(*(p.labels() for p in self.inputs))

    def starts(self) -> frozenset[str] | None:
        """Op types that the pattern's own tensor can come from; None for any."""
        inner = self.inputs[0].starts() if self.optional else frozenset()
        return None if inner is None or not self.ops else inner.union(self.ops)


def node(label: str, op_types: Sequence[str] | str, *inputs: Pattern) -> Pattern:
    """A member of the fusion."""
    chosen = (op_types,) if isinstance(op_types, str) else tuple(op_types)
    return Pattern(label, chosen, inputs)


def maybe(label: str, op_types: Sequence[str] | str, *inputs: Pattern) -> Pattern:
    """A member that may be missing."""
    return replace(node(label, op_types, *inputs), optional=True)


def tensor(label: str) -> Pattern:
    """Any tensor from outside."""
    return Pattern(label)


def fixed(label: str) -> Pattern:
    """A tensor from outside that is computed from constants and variables alone."""
    return Pattern(label, fixed=True)


def bias(label: str) -> Pattern:
    """A tensor from outside that may be added as a bias: a weight, or any vector."""
    return Pattern(label, vector=True)


@dataclass(frozen=True, slots=True)
class Match:
    """Where a pattern was found."""

    root: int
    """The operator whose output is the fusion's."""
    members: tuple[int, ...]
    """Operators of the fusion, ascending; those that forward between them included."""
    binding: Binding

    def operator(self, label: str) -> int:
        """Index of the member with that label."""
        return self.binding[label].producer


Check = Callable[[Analysis, Match], str | None]
"""Says why a match must not be fused, naming operators; None if it may."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A fusion that a backend makes: what it looks like, and when it may be made."""

    name: str
    """`rule set/what is fused`."""
    pattern: Pattern
    checks: tuple[Check, ...] = ()
    device_types: tuple[str, ...] = ("CPU",)
    """Device types on which the backend makes it."""


def find(analysis: Analysis, pattern: Pattern, root: int) -> Iterator[Match]:
    """All ways to match a pattern whose root is an operator."""
    for binding in _bind(analysis, pattern, TensorRef(root, 0), {}):
        labels = [label for label in pattern.labels() if label in binding]
        members = {binding[label].producer for label in labels}
        if len(members) == len(labels):
            everything = members | _forwarders_between(analysis, members)
            yield Match(root, tuple(sorted(everything)), binding)


def _bind(
    analysis: Analysis, pattern: Pattern, ref: TensorRef, bound: dict[str, TensorRef]
) -> Iterator[dict[str, TensorRef]]:
    found = analysis.source(ref)
    known = bound.get(pattern.label)
    if known is not None:
        if known == found:
            yield bound
        return
    if not pattern.ops:
        if _suits(analysis, pattern, found):
            yield {**bound, pattern.label: found}
        return
    operator = analysis.graph.operators[found.producer]
    if operator.op in pattern.ops and found.port == 0 and not analysis.fixed[found.producer]:
        for inputs in _orders(operator, pattern):
            here = {**bound, pattern.label: found}
            yield from _bind_all(analysis, pattern.inputs, inputs, here)
    if pattern.optional:
        yield from _bind(analysis, pattern.inputs[0], ref, bound)


def _suits(analysis: Analysis, pattern: Pattern, ref: TensorRef) -> bool:
    """Whether a tensor from outside is of the kind that a pattern asks for."""
    shape = analysis.graph.spec(ref).shape
    is_vector = pattern.vector and shape is not None and len(shape) == 1
    return not (pattern.fixed or pattern.vector) or analysis.fixed[ref.producer] or is_vector


def _bind_all(
    analysis: Analysis,
    patterns: Sequence[Pattern],
    refs: Sequence[TensorRef],
    bound: dict[str, TensorRef],
) -> Iterator[dict[str, TensorRef]]:
    if not patterns:
        yield bound
        return
    for here in _bind(analysis, patterns[0], refs[0], bound):
        yield from _bind_all(analysis, patterns[1:], refs[1:], here)


def _orders(operator: Operator, pattern: Pattern) -> Iterator[tuple[TensorRef, ...]]:
    """The orders in which the operator's inputs may meet the pattern's."""
    inputs = operator.inputs
    if len(inputs) < len(pattern.inputs):
        return
    yield inputs
    if len(pattern.inputs) == len(inputs) == 2 and operator.op in ops.COMMUTATIVE:
        yield inputs[1], inputs[0]


def _forwarders_between(analysis: Analysis, members: set[int]) -> set[int]:
    """Operators that only forward what one member reads of another."""
    between: set[int] = set()
    for member in members:
        for ref in analysis.graph.operators[member].inputs:
            if analysis.source(ref).producer in members:
                between |= _chain(analysis, ref)
    return between


def _chain(analysis: Analysis, ref: TensorRef) -> set[int]:
    """The forwarding operators from a tensor up to its source."""
    chain: set[int] = set()
    source = analysis.source(ref)
    while ref != source:
        chain.add(ref.producer)
        inputs = analysis.graph.operators[ref.producer].inputs
        ref = next((r for r in inputs if analysis.source(r) == source), source)
    return chain


@dataclass(frozen=True, slots=True)
class Fusion:
    """Operators that a rule fuses."""

    rule: str
    members: tuple[int, ...]
    """Ascending."""


@dataclass(frozen=True, slots=True)
class NearMiss:
    """Operators that look like a rule's pattern but must not be fused, or not all of them."""

    rule: str
    members: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        return f"not fused by {self.rule}: {self.reason}"


def match(
    analysis: Analysis, rules: Sequence[Rule]
) -> tuple[tuple[Fusion, ...], tuple[NearMiss, ...]]:
    """Chooses fusions among all places where rules apply.

    Among overlapping ones the bigger wins, then the earlier rule, then the earlier operator. The
    result depends on nothing but the graph and the rules.
    """
    applied: list[tuple[int, int, int, Fusion]] = []
    missed: dict[str, NearMiss] = {}
    for rank, root, rule, matches in _candidates(analysis, rules):
        for found in (m for m in matches if len(m.members) > 1):
            reason = _first_reason(analysis, rule, found)
            if reason is None:
                fusion = Fusion(rule.name, found.members)
                applied.append((-len(found.members), rank, root, fusion))
            else:
                miss = NearMiss(rule.name, found.members, reason)
                missed[reason] = max(miss, missed.get(reason, miss), key=_size)
    applied.sort(key=lambda entry: entry[:3])
    return _without_overlap([fusion for *_, fusion in applied]), tuple(missed.values())


def _candidates(
    analysis: Analysis, rules: Sequence[Rule]
) -> Iterator[tuple[int, int, Rule, Iterator[Match]]]:
    by_root: dict[str, list[tuple[int, Rule, list[frozenset[str]]]]] = {}
    for rank, rule in enumerate(rules):
        starts = [p.starts() for p in rule.pattern.inputs]
        needed = [s for s in starts if s is not None]
        for op in rule.pattern.ops:
            by_root.setdefault(op, []).append((rank, rule, needed))
    kinds = analysis.graph.operators
    for root, operator in enumerate(kinds):
        if operator.op not in by_root or analysis.forwards[root] is not None:
            continue
        inputs = {kinds[analysis.source(ref).producer].op for ref in operator.inputs}
        for rank, rule, needed in by_root[operator.op]:
            if not any(map(inputs.isdisjoint, needed)):
                yield rank, root, rule, find(analysis, rule.pattern, root)


def _first_reason(analysis: Analysis, rule: Rule, found: Match) -> str | None:
    reasons = (check(analysis, found) for check in rule.checks)
    return next((reason for reason in reasons if reason is not None), None)


def _size(miss: NearMiss) -> int:
    return len(miss.members)


def _without_overlap(fusions: Sequence[Fusion]) -> tuple[Fusion, ...]:
    taken: set[int] = set()
    kept: list[Fusion] = []
    for fusion in fusions:
        if taken.isdisjoint(fusion.members):
            taken.update(fusion.members)
            kept.append(fusion)
    return tuple(kept)

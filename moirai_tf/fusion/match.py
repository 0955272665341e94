"""Finds where rules apply: bigger fusions first, every operator in at most one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moirai_tf.fusion.analysis import Analysis
from moirai_tf.fusion.pattern import Match, Rule, find


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

"""Merges operators of a graph step by step and keeps the result free of cycles.

The merged graph is kept in a topological order that is repaired locally after each merge, as in
the dynamic topological sort of Pearce and Kelly (2006): only clusters between the first and the
last of those that merge can be on a cycle, so only these are searched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moirai_tf.graph.graph import Graph

_MOST_VISITED = 1000
"""A merge is given up after this many clusters; it bounds the time for graphs of any size."""


class DisjointSets:
    """Union-find over 0..size-1, with the members of each set."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))
        self._members: list[list[int]] = [[i] for i in range(size)]

    def find(self, i: int) -> int:
        """The set of an element, named by one of its elements."""
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def members(self, i: int) -> Sequence[int]:
        """All elements of the set that holds `i`."""
        return self._members[self.find(i)]

    def union(self, elements: Iterable[int]) -> int:
        """Joins the sets of some elements and returns the result's name."""
        roots = sorted({self.find(i) for i in elements}, key=lambda r: -len(self._members[r]))
        first, *others = roots
        for other in others:
            self._parent[other] = first
            self._members[first].extend(self._members[other])
            self._members[other] = []
        return first


class Merger:
    """The clusters of a graph: at first one per operator.

    Args:
      graph: the fine graph.
      feeds: for each operator, whether it only prepares what others compute with.
    """

    def __init__(self, graph: Graph, feeds: Sequence[bool]) -> None:
        size = len(graph)
        self.feeds = tuple(feeds)
        self._only_feeds = list(feeds)
        self._graph = graph
        self._sets = DisjointSets(size)
        self._classes = DisjointSets(size)
        self._types = [frozenset(o.device_types) for o in graph.operators]
        self._rules = [""] * size
        self._position = list(range(size))
        self._after: list[set[int]] = [set() for _ in range(size)]
        self._before: list[set[int]] = [set() for _ in range(size)]
        for producer, consumer in graph.edges():
            self._after[producer].add(consumer)
            self._before[consumer].add(producer)

    def find(self, i: int) -> int:
        """The cluster of an operator, named by one of its operators."""
        return self._sets.find(i)

    def members(self, i: int) -> Sequence[int]:
        """The operators of the cluster that holds `i`, in no order."""
        return self._sets.members(i)

    def rule(self, i: int) -> str:
        """What made the cluster of an operator; empty for a single operator."""
        return self._rules[self.find(i)]

    def only_feeds(self, i: int) -> bool:
        """Whether no operator in the cluster of an operator works on data."""
        return self._only_feeds[self.find(i)]

    def only_successor(self, i: int) -> int | None:
        """The one cluster that depends on the cluster of an operator, if it is just one."""
        return self._only(self._after, self.find(i))

    def ordered_successors(self, i: int) -> list[int]:
        """The clusters that depend on the cluster of an operator, in topological order."""
        near = self._neighbours(self._after, self.find(i))
        return sorted(near, key=self._position.__getitem__)

    def predecessors(self, i: int) -> set[int]:
        """The clusters that the cluster of an operator depends on."""
        return self._neighbours(self._before, self.find(i))

    def follows(self, consumer: int, producer: int) -> bool:
        """Whether the cluster of one operator reads from that of another one."""
        target = self.find(producer)
        return any(self.find(i) == target for i in self._before[self.find(consumer)])

    def clusters(self) -> list[int]:
        """All clusters in a topological order."""
        roots = {self.find(i) for i in range(len(self._position))}
        return sorted(roots, key=self._position.__getitem__)

    def colocate(self, operators: Sequence[int]) -> bool:
        """Lets operators share a device; False (and no change) if no device type runs them all."""
        types = self._common_types(operators)
        if not types:
            return False
        self._types[self._classes.union(operators)] = types
        return True

    def colocated(self) -> list[list[int]]:
        """Groups of two clusters or more that share a device, as sorted clusters."""
        groups: dict[int, set[int]] = {}
        for i in range(len(self._position)):
            groups.setdefault(self._classes.find(i), set()).add(self.find(i))
        return [sorted(group) for group in groups.values() if len(group) > 1]

    def merge(self, operators: Sequence[int], rule: str, keep: Sequence[int] = ()) -> str | None:
        """Merges the clusters of some operators into one.

        Args:
          operators: any operators of the clusters.
          rule: what the result is called.
          keep: operators that must not lose a device type by it.

        Returns:
          Why it must not be, and then nothing has changed; None if it is done.
        """
        roots = {self.find(i) for i in operators}
        if len(roots) == 1:
            self._rules[next(iter(roots))] = rule
            return None
        place = self._lost_types(operators, keep) or self._make_room(roots)
        if isinstance(place, str):
            return place
        self.colocate(operators)
        self._join(roots, rule, place)
        return None

    def _common_types(self, operators: Sequence[int]) -> frozenset[str]:
        first, *others = map(self._types_of, operators)
        return first.intersection(*others)

    def _lost_types(self, operators: Sequence[int], keep: Sequence[int]) -> str | None:
        common = self._common_types(operators)
        if not common:
            shown = ", ".join(f"{self._name(i)} ({self._shown_types(i)})" for i in operators)
            return f"no device type runs all of {shown}"
        for i in keep:
            lost = self._types_of(i) - common
            if lost:
                culprit = next(o for o in operators if not lost <= self._types_of(o))
                return (
                    f"{self._name(culprit)} runs on {self._shown_types(culprit)} only and would "
                    f"keep {self._name(i)} from {', '.join(sorted(lost))}"
                )
        return None

    def _types_of(self, i: int) -> frozenset[str]:
        return self._types[self._classes.find(i)]

    def _make_room(self, roots: set[int]) -> int | str:
        """Finds the merged cluster's place in the order and moves others out of its way.

        Where nothing outside follows any member before the last member's place, that place is
        right, and so is the first one where nothing outside precedes any member after it.

        Returns:
          The place, or why there is none.
        """
        ordered = sorted(roots, key=self._position.__getitem__)
        low, high = self._position[ordered[0]], self._position[ordered[-1]]
        sides = [(self._after, ordered[:-1], high), (self._before, ordered[1:], low)]
        sides.sort(key=lambda side: sum(len(side[0][r]) for r in side[1]))
        for edges, inner, place in sides:
            if not self._frontier(edges, inner, low, high) - roots:
                return place
        after = self._closure(self._after, ordered[:-1], low, high, roots)
        if isinstance(after, str):
            return after
        before = self._closure(self._before, ordered[1:], low, high, roots)
        if isinstance(before, str):
            return before
        return self._reorder(roots, before, after)

    def _frontier(
        self, edges: list[set[int]], inner: Sequence[int], low: int, high: int
    ) -> set[int]:
        """Neighbours strictly between two places."""
        near = {n for root in inner for n in self._neighbours(edges, root)}
        return {n for n in near if low < self._position[n] < high}

    def _closure(
        self, edges: list[set[int]], starts: Sequence[int], low: int, high: int, roots: set[int]
    ) -> set[int] | str:
        """Everything outside that is reachable strictly between two places, or why not to merge."""
        seen = self._frontier(edges, starts, low, high) - roots
        stack = sorted(seen)
        while stack:
            if len(seen) > _MOST_VISITED:
                return f"more than {_MOST_VISITED} operators lie between its members"
            cluster = stack.pop()
            if not roots.isdisjoint(self._neighbours(edges, cluster)):
                between = self._name(cluster)
                return f"{between} depends on one of its members and another one on {between}"
            new = self._frontier(edges, [cluster], low, high) - seen
            seen |= new
            stack.extend(sorted(new))
        return seen

    def _reorder(self, roots: set[int], before: set[int], after: set[int]) -> int:
        """Puts what comes before first, then the merged cluster, then what comes after."""
        position = self._position
        places = sorted(position[c] for c in (*before, *roots, *after))
        first = sorted(before, key=position.__getitem__)
        last = sorted(after, key=position.__getitem__)
        for clusters, free in ((first, places[: len(first)]), (last, places[-len(last) :])):
            for cluster, place in zip(clusters, free, strict=True):
                position[cluster] = place
        return places[len(first)]

    def _join(self, roots: set[int], rule: str, place: int) -> None:
        name = self._sets.union(roots)
        self._only_feeds[name] = all(self._only_feeds[r] for r in roots)
        self._position[name] = place
        self._rules[name] = rule
        for edges in (self._after, self._before):
            largest = max((edges[r] for r in roots), key=len)
            largest.update(*(edges[r] for r in roots if edges[r] is not largest))
            for root in roots:
                edges[root] = set()
            edges[name] = largest

    def _only(self, edges: list[set[int]], root: int) -> int | None:
        """The only neighbouring cluster; forgets names that say nothing more, so as to be fast."""
        found: int | None = None
        known: list[int] = []
        for i in edges[root]:
            near = self.find(i)
            if near in (root, found):
                known.append(i)
            elif found is None:
                found = near
            else:
                found = None
                break
        edges[root].difference_update(known)
        return found

    def _neighbours(self, edges: list[set[int]], root: int) -> set[int]:
        """Neighbouring clusters; remembers them by their present names."""
        near = {self.find(i) for i in edges[root]}
        near.discard(root)
        edges[root] = near
        return near

    def _name(self, i: int) -> str:
        return self._graph.operators[i].name

    def _shown_types(self, i: int) -> str:
        return ", ".join(sorted(self._types_of(i)))

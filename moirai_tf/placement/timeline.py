"""When devices, ports and links are busy, and the first gap that fits."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from moirai_tf.placement.problem import LINK, PORT, Problem


class Timeline:
    """Busy intervals of one resource, kept apart and in order; touching ones are merged."""

    __slots__ = ("_finishes", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._finishes: list[int] = []

    def fit(self, ready_ns: int, duration_ns: int) -> int:
        """Earliest start >= ready_ns of a free gap; duration_ns > 0."""
        finishes = self._finishes
        if not finishes or ready_ns >= finishes[-1]:
            return ready_ns
        starts = self._starts
        for index in range(bisect_right(finishes, ready_ns), len(finishes)):
            if starts[index] - ready_ns >= duration_ns:
                return ready_ns
            ready_ns = finishes[index]
        return ready_ns

    def occupy(self, start_ns: int, finish_ns: int) -> None:
        """Marks a free interval of positive length as busy."""
        starts, finishes = self._starts, self._finishes
        index = bisect_left(starts, start_ns)
        joins_left = index > 0 and finishes[index - 1] == start_ns
        joins_right = index < len(starts) and starts[index] == finish_ns
        if joins_left and joins_right:
            finishes[index - 1] = finishes[index]
            del starts[index], finishes[index]
        elif joins_left:
            finishes[index - 1] = finish_ns
        elif joins_right:
            starts[index] = start_ns
        else:
            starts.insert(index, start_ns)
            finishes.insert(index, finish_ns)


class Channels:
    """The resources that transfers occupy under a problem's congestion mode."""

    def __init__(self, problem: Problem) -> None:
        devices = range(len(problem.devices))
        self.congestion = problem.congestion
        self._send = [Timeline() for _ in devices]
        self._receive = [Timeline() for _ in devices]
        self._link = [[Timeline() for _ in devices] for _ in devices]

    def fit(self, source: int, target: int, ready_ns: int, duration_ns: int) -> int:
        """Earliest start >= ready_ns at which every resource of the transfer is free."""
        if duration_ns == 0:
            return ready_ns
        if self.congestion == LINK:
            return self._link[source][target].fit(ready_ns, duration_ns)
        if self.congestion == PORT:
            return self._fit_ports(source, target, ready_ns, duration_ns)
        return ready_ns

    def occupy(self, source: int, target: int, start_ns: int, finish_ns: int) -> None:
        """Marks the transfer's resources as busy."""
        if start_ns == finish_ns:
            return
        if self.congestion == LINK:
            self._link[source][target].occupy(start_ns, finish_ns)
        elif self.congestion == PORT:
            self._send[source].occupy(start_ns, finish_ns)
            self._receive[target].occupy(start_ns, finish_ns)

    def conflict(self, first_source: int, second_source: int) -> bool:
        """Whether two transfers to one device exclude each other."""
        if self.congestion == LINK:
            return first_source == second_source
        return self.congestion == PORT

    def _fit_ports(self, source: int, target: int, ready_ns: int, duration_ns: int) -> int:
        start_ns = self._send[source].fit(ready_ns, duration_ns)
        while True:
            received_ns = self._receive[target].fit(start_ns, duration_ns)
            if received_ns == start_ns:
                return start_ns
            start_ns = self._send[source].fit(received_ns, duration_ns)
            if start_ns == received_ns:
                return start_ns

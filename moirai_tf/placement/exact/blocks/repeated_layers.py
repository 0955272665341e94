"""Repetition in the sequence of blocks: equal layers, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_LONGEST_PERIOD = 64


class Run(NamedTuple):
    """Some blocks whose classes are repeated a number of times."""

    first: int
    """Position of the first block."""
    period: int
    """Blocks in one repetition."""
    times: int


def runs(kinds: Sequence[int]) -> list[Run]:
    """Cuts a sequence of classes into runs: always the longest repetition that begins here.

    What is repeated only once is a run of one block.
    """
    found = []
    begin = 0
    while begin < len(kinds):
        longest = min(_LONGEST_PERIOD, (len(kinds) - begin) // 2)
        options = [Run(begin, 1, 1)]
        options += (_repeated(kinds, begin, period) for period in range(1, longest + 1))
        repeated = [run for run in options if run.times > 1] or options[:1]
        best = max(repeated, key=lambda run: run.period * run.times)
        found.append(best)
        begin += best.period * best.times
    return found


def _repeated(kinds: Sequence[int], begin: int, period: int) -> Run:
    end = begin + period
    while end < len(kinds) and kinds[end] == kinds[end - period]:
        end += 1
    return Run(begin, period, (end - begin) // period)

"""Which worker of a local cluster runs on which core."""

from __future__ import annotations

import os
from collections.abc import Sequence

from moirai_tf.errors import MoiraiError

_KEPT = 1000
"""Partial packings that are followed up: all of them for about ten workers."""
_TOLERANCE = 1e-9


def choose_cores(shares: Sequence[float], cores: Sequence[int] | None = None) -> tuple[int, ...]:
    """A core for every worker.

    Args:
      shares: the part of a core that each worker gets.
      cores: the core of every worker; if None, the cores that this process may use are loaded as
        equally as possible.

    Raises:
      MoiraiError: shares of one core add up to more than 1, or a core is not there.
    """
    usable = sorted(os.sched_getaffinity(0))
    chosen = tuple(cores) if cores is not None else pack(shares, usable)
    if len(chosen) != len(shares):
        raise _fault(f"{len(chosen)} cores are given for {len(shares)} shares")
    for core in chosen:
        if core not in usable:
            raise _fault(f"core {core} is none of this process's cores {usable}")
        load = sum(share for share, other in zip(shares, chosen, strict=True) if other == core)
        if load > 1 + _TOLERANCE:
            raise _fault(f"the shares on core {core} add up to {load:g}")
    return chosen


def pack(shares: Sequence[float], cores: Sequence[int]) -> tuple[int, ...]:
    """A core for every share, so that the sums per core are as equal as possible."""
    order = sorted(range(len(shares)), key=lambda i: -shares[i])
    # Ways to pack the shares so far: the load of every core, and the core of every share.
    ways: list[tuple[tuple[float, ...], tuple[int, ...]]] = [((0.0,) * len(cores), ())]
    for i in order:
        # Which core has which load does not matter to what follows, so one way each is kept.
        longer: dict[tuple[float, ...], tuple[tuple[float, ...], tuple[int, ...]]] = {}
        for loads, chosen in ways:
            for core in range(len(cores)):
                new = (*loads[:core], loads[core] + shares[i], *loads[core + 1 :])
                key = tuple(sorted(round(load, 9) for load in new))
                longer.setdefault(key, (new, (*chosen, core)))
        ways = sorted(longer.values(), key=lambda way: sum(x * x for x in way[0]))[:_KEPT]
    by_share = dict(zip(order, ways[0][1], strict=True))
    return tuple(cores[by_share[i]] for i in range(len(shares)))


def _fault(what: str) -> MoiraiError:
    return MoiraiError(
        what,
        why="every worker gets its whole share of one core, or it would be slower than asked for",
        fix="ask for fewer workers or smaller shares, at most 1 per core of this machine",
    )

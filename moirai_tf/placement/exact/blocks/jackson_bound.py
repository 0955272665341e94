"""Lower bound for one device, port or link that does one thing at a time."""

from __future__ import annotations

from moirai_tf.placement.compiled import compiled_lean
from moirai_tf.placement.problem import IntArray


@compiled_lean
def preemptive_bound(
    heads: IntArray, lengths: IntArray, tails: IntArray, members: IntArray, left: IntArray
) -> int:
    """Makespan of Jackson's preemptive schedule (1955), at most that of any schedule.

    Of the released jobs the one with the longest tail runs, and gives way to a released one with
    a longer tail. With preemption allowed this is optimal.

    Args:
      heads: release of each job.
      lengths: time that each job occupies the machine, positive.
      tails: time from each job's end to the end of everything.
      members: the jobs of this machine.
      left: scratch, as long as `heads`.
    """
    bound = 0
    waiting = len(members)
    for job in members:
        left[job] = lengths[job]
    now = -1
    while waiting:
        chosen = -1
        following = 2**62
        for job in members:
            if left[job] == 0:
                continue
            if heads[job] > now:
                following = min(following, heads[job])
            elif chosen < 0 or tails[job] > tails[chosen]:
                chosen = job
        if chosen < 0:
            now = following
            continue
        step = min(left[chosen], following - now)
        now += step
        left[chosen] -= step
        if left[chosen] == 0:
            waiting -= 1
            bound = max(bound, now + tails[chosen])
    return bound

"""The answer of a plan in one sentence."""

from __future__ import annotations

from moirai_tf.cluster.names import short_devices
from moirai_tf.placement.objective import LATENCY
from moirai_tf.rewrite.plan import PlanSummary


def verdict(summary: PlanSummary, because: str = "") -> str:
    """Gain, devices, and how far it is proved.

    Args:
      summary: what was found.
      because: why one device is best, if it is and that is known.
    """
    used = summary.used
    if len(used) < 2:
        return f"{_one_device(summary, because)}{_proved(summary, one=True)}"
    short = short_devices(summary.devices)
    single, single_ns = summary.single_device, summary.single_device_predicted_ns
    if single is None or single_ns is None:
        gain = f"no device can run the model alone; {len(used)} devices share it"
    else:
        times = single_ns / max(1, summary.predicted_ns)
        how = f"{times:.2f}x faster" if times >= 1 else f"{1 / times:.2f}x slower"
        gain = f"{how} than the best single device {short[single]}; {len(used)} devices used"
    computed = "; from computed costs" if set(used) & set(summary.computed) else ""
    return f"{gain}{computed}{_proved(summary)}"


def _one_device(summary: PlanSummary, because: str) -> str:
    """Who does the work, and what is elsewhere all the same."""
    short = short_devices(summary.devices)
    used = summary.used or tuple(filter(None, [summary.single_device]))
    if not used:
        return "nothing takes any time"
    name = short[used[0]]
    reason = f", because {because}" if because else ""
    if used[0] == summary.single_device:
        return f"one device is best: {name}{reason}"
    return f"all work is on {name}, where it must be"


def _proved(summary: PlanSummary, *, one: bool = False) -> str:
    if summary.objective != LATENCY:
        return f"; placed for {summary.objective}"
    if summary.gap == 0:
        return "; proved optimal"
    if summary.lower_bound_ns == 0:
        return "; nothing is proved"
    percent = f"{100 * summary.gap:.2g} %"
    return (
        f"; proved: no placement gains more than {percent}" if one else f"; proved within {percent}"
    )

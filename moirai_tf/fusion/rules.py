"""Rule sets by name, and which of them a cluster's device types need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moirai_tf.errors import MoiraiError
from moirai_tf.fusion import cudnn, eigen, nnpack, onednn
from moirai_tf.fusion.options import RULE_SET_NAMES
from moirai_tf.fusion.pattern import Rule

RULE_SETS: Mapping[str, tuple[Rule, ...]] = dict(
    zip(RULE_SET_NAMES, (eigen.RULES, nnpack.RULES, onednn.RULES, cudnn.RULES), strict=True)
)


def rules_for(names: Sequence[str], device_types: Sequence[str] | None = None) -> tuple[Rule, ...]:
    """The rules of some sets, in order, those that two sets share only once.

    Args:
      names: rule sets.
      device_types: keep rules that serve one of these; None keeps all.

    Raises:
      MoiraiError: no rule set has that name.
    """
    unknown = [name for name in names if name not in RULE_SETS]
    if unknown:
        raise MoiraiError(
            f"there is no rule set {unknown[0]!r}",
            why="a rule set describes what one backend fuses",
            fix=f"choose among {', '.join(RULE_SETS)}",
        )
    chosen: dict[object, Rule] = {}
    for rule in (rule for name in names for rule in RULE_SETS[name]):
        if device_types is None or not set(rule.device_types).isdisjoint(device_types):
            chosen.setdefault((rule.pattern, rule.checks), rule)
    return tuple(chosen.values())

"""What a user can say about fusion."""

from __future__ import annotations

from dataclasses import dataclass

from moirai_tf.options import option

RULE_SET_NAMES = ("eigen", "nnpack", "onednn", "cudnn")


@dataclass(frozen=True)
class FuseOptions:
    """How operators are fused before they are placed."""

    coarsen: bool = option(True, "fuse operators; without it each is placed on its own")
    rules: tuple[str, ...] = option(
        RULE_SET_NAMES, f"rule sets to use, of {', '.join(RULE_SET_NAMES)}"
    )

"""What a user can say about costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moirai_tf.model.options import INPUTS_HELP
from moirai_tf.options import option

MEASURE: Final = "measure"
ANALYTICAL: Final = "analytical"


@dataclass(frozen=True)
class ProfileOptions:
    """Where the costs of operators and transfers come from."""

    source: str = option(
        "auto",
        "where operator costs come from: measured on devices of this process and of the cluster's "
        "servers, computed by Grappler from the cluster file's properties, a table (--costs), or "
        "auto: the table if one is given, else measured where possible and computed elsewhere",
        choices=("auto", MEASURE, ANALYTICAL, "file"),
    )
    costs: str = option("", "cost table (JSON) of an earlier profile to use")
    repeats: int = option(20, "measured runs; times are their medians")
    warmup: int = option(5, "runs before the measured ones")
    inputs: str = option("", INPUTS_HELP)
    seed: int = option(0, "seed of generated inputs")
    trip_count: int = option(10, "iterations of a loop whose count is not static, when computing")
    links: str = option(
        "auto",
        "where transfer costs come from: the cluster file, measured between the devices that can "
        "be reached, or auto: measured if operators are measured on servers or GPUs",
        choices=("auto", "cluster", MEASURE),
    )
    refresh: tuple[str, ...] = option(
        (),
        "device to profile anew although the table (--costs) has it; `changed` for all that it "
        "lacks or that were described differently",
    )

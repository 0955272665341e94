"""What a user can say about dividing a batch."""

from __future__ import annotations

from dataclasses import dataclass

from moirai_tf.options import option

AUTO, ON, OFF = "auto", "on", "off"


@dataclass(frozen=True)
class SplitOptions:
    """Whether one request's batch is divided over devices."""

    split: str = option(
        AUTO,
        "divide the batch of a request over devices: on, off, or auto: over CPUs, where that is "
        "predicted to be faster. Only models that treat rows independently can be divided",
        choices=(AUTO, ON, OFF),
    )
    most_shares: int = option(8, "most shares of a batch, each for one device")
    least_batch: int = option(4, "auto: batches of fewer rows are not divided")

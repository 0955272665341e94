"""What a transfer occupies: the one model of ports and links, in Python and in machine code.

Resources are numbered. Devices come first; with congestion `port` the send ports of all devices
follow and then their receive ports, with `link` the directed pairs of devices by source, with
`none` nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moirai_tf.placement.compiled import compiled_lean

if TYPE_CHECKING:
    from moirai_tf.placement.problem import Problem

CONGESTION_MODES = PORT, LINK, NONE = "port", "link", "none"
NOTHING = -1
"""In place of a resource."""
_PORT, _LINK = CONGESTION_MODES.index(PORT), CONGESTION_MODES.index(LINK)


def congestion_code(congestion: str) -> int:
    """The mode as compiled code knows it."""
    return CONGESTION_MODES.index(congestion)


def resource_count(congestion: str, devices: int) -> int:
    """How many resources there are, the devices included."""
    return devices + {PORT: 2 * devices, LINK: devices * devices, NONE: 0}[congestion]


def channels_of(problem: Problem, source: int, target: int) -> tuple[int, ...]:
    """The resources that a transfer between two devices occupies, at most two."""
    both = _channels(congestion_code(problem.congestion), len(problem.devices), source, target)
    return tuple(channel for channel in both if channel != NOTHING)


def _channels(congestion: int, devices: int, source: int, target: int) -> tuple[int, int]:
    """The two resources of a transfer, `NOTHING` in place of one that there is not."""
    if congestion == _PORT:
        return devices + source, 2 * devices + target
    if congestion == _LINK:
        return devices + source * devices + target, NOTHING
    return NOTHING, NOTHING


channels = compiled_lean(_channels)

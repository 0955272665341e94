"""Constructive heuristics: functions from a problem to one schedule, each in its own module.

A heuristic takes the problem, a packing that proves it feasible, and the deadline it asks now and
then. HEFT, ETF, m-ETF, m-SCT and GETF place one operator after another in a `PartialSchedule`;
m-TOPO chooses devices and lets `simulate` play them. All follow a `Reservation`, so tight memory
and colocation never lead them into a dead end. A new one is a module here and an entry in
`heuristics.HEURISTICS`, or in `PUBLISHED` if it may take seconds.
"""

from moirai_tf.placement.construct.etf import etf
from moirai_tf.placement.construct.getf import getf
from moirai_tf.placement.construct.heft import heft
from moirai_tf.placement.construct.m_etf import m_etf
from moirai_tf.placement.construct.m_sct import m_sct
from moirai_tf.placement.construct.m_topo import m_topo
from moirai_tf.placement.construct.single import OneDevice, single, single_devices

__all__ = [
    "OneDevice",
    "etf",
    "getf",
    "heft",
    "m_etf",
    "m_sct",
    "m_topo",
    "single",
    "single_devices",
]

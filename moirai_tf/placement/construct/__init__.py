"""Constructive heuristics: functions from a problem to one schedule, each in its own module.

A heuristic takes the problem, a packing that proves it feasible, and the deadline it asks now and
then. All of them build on `PartialSchedule` and follow a `Reservation`, so tight memory and
colocation never lead them into a dead end.
"""

from moirai_tf.placement.construct.etf import etf
from moirai_tf.placement.construct.heft import heft
from moirai_tf.placement.construct.m_topo import m_topo
from moirai_tf.placement.construct.single import OneDevice, single, single_devices

__all__ = ["OneDevice", "etf", "heft", "m_topo", "single", "single_devices"]

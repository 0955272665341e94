"""Gives every node of an ONNX graph the device that the plan has for it.

First by name: a node, or a tensor that it makes, is called like an operator of the plan (less the
call in the main graph), perhaps with tf2onnx's `__12` behind, or lies in the scope of one, as the
body of a loop. The rest is inferred: the device of the nearest reader, else of what it reads.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moirai_tf.export.onnx_graph import Flow
from moirai_tf.rewrite.plan import Plan

_NUMBERED = re.compile(r"(__\d+)+$")


@dataclass(frozen=True)
class Assignment:
    """Where the nodes of the main graph run."""

    devices: tuple[str, ...]
    """Of every node, in order."""
    operators: tuple[str, ...]
    """Operators of the plan that they are called after; empty where it was inferred."""

    @property
    def named(self) -> int:
        """Nodes whose device comes from the plan by name."""
        return sum(map(bool, self.operators))


def assign(graph: Any, plan: Plan, *, calls: bool) -> Assignment:
    """The device of every node.

    Args:
      graph: the main graph, sorted.
      plan: the plan.
      calls: whether the plan's operators are inside a call of the main graph, which ONNX lacks.
    """
    known = {(n.partition("/")[2] or n) if calls else n: n for n in plan.placement}
    operators = [_operator(node, known) for node in graph.node]
    devices = [plan.placement[name] if name else "" for name in operators]
    flow = Flow(graph)
    inferred = {
        i: _nearest(i, devices, flow.consumers)
        or _nearest(i, devices, flow.producers)
        or plan.client
        for i, device in enumerate(devices)
        if not device
    }
    found = tuple(inferred.get(i, device) for i, device in enumerate(devices))
    return Assignment(found, tuple(operators))


def _operator(node: Any, known: Mapping[str, str]) -> str:
    """The operator of the plan that a node is called after; empty if there is none."""
    for name in _names(node):
        if name in known:
            return known[name]
    for name in _names(node):
        while "/" in name:
            name = _NUMBERED.sub("", name.rpartition("/")[0])
            if name in known:
                return known[name]
    return ""


def _names(node: Any) -> Iterator[str]:
    for name in (node.name, *(tensor.rpartition(":")[0] or tensor for tensor in node.output)):
        if name:
            yield name
            yield _NUMBERED.sub("", name)


def _nearest(start: int, devices: Sequence[str], next_to: Sequence[Sequence[int]]) -> str:
    """The device of the nearest node in one direction that has one; empty if none has."""
    pending, seen = deque([start]), {start}
    while pending:
        for i in next_to[pending.popleft()]:
            if devices[i]:
                return devices[i]
            if i not in seen:
                seen.add(i)
                pending.append(i)
    return ""

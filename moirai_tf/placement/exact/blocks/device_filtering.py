"""Devices that the operators of a block can still have, and what follows from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.compiled import compiled, compiled_lean
from moirai_tf.placement.exact.blocks.block_arrays import NEVER, OPEN, BlockData
from moirai_tf.placement.problem import BoolArray, IntArray


class Windows(NamedTuple):
    """Longest paths before and after each operator on each device, (operators, devices) each."""

    weight: IntArray
    """What an operator adds to its paths."""
    head: IntArray
    """Least weight of the heaviest path to an operator."""
    tail: IntArray
    """Least weight of the heaviest path behind an operator."""


@compiled
def new_windows(operators: int, devices: int) -> Windows:
    """Scratch."""
    return Windows(
        np.zeros((operators, devices), dtype=np.int64),
        np.zeros((operators, devices), dtype=np.int64),
        np.zeros((operators, devices), dtype=np.int64),
    )


@compiled_lean
def fill_heads(data: BlockData, domain: BoolArray, windows: Windows) -> int:
    """Sets `head`; returns the weight of the heaviest path of all."""
    operators, devices = data.compute.shape
    weight, heads = windows.weight, windows.head
    longest = 0
    for operator in range(operators):
        for target in range(devices):
            heads[operator, target] = 0
        for entry in range(data.first_input[operator], data.first_input[operator + 1]):
            tensor = data.input[entry]
            producer = data.producer[tensor]
            for target in range(devices):
                if not domain[operator, target]:
                    continue
                came = NEVER
                for source in range(devices):
                    if domain[producer, source]:
                        left = heads[producer, source] + weight[producer, source]
                        came = min(came, left + data.time[tensor, source, target])
                heads[operator, target] = max(heads[operator, target], came)
        least = NEVER
        for target in range(devices):
            if domain[operator, target]:
                least = min(least, heads[operator, target] + weight[operator, target])
        longest = max(longest, least)
    return longest


@compiled_lean
def fill_tails(data: BlockData, domain: BoolArray, windows: Windows) -> None:
    """Sets `tail`."""
    operators, devices = data.compute.shape
    weight, tails = windows.weight, windows.tail
    for operator in range(operators - 1, -1, -1):
        for source in range(devices):
            longest = 0
            if domain[operator, source]:
                for entry in range(data.first_output[operator], data.first_output[operator + 1]):
                    tensor = data.output[entry]
                    for place in range(data.first_reader[tensor], data.first_reader[tensor + 1]):
                        reader = data.reader[place]
                        least = NEVER
                        for target in range(devices):
                            if domain[reader, target]:
                                way = data.time[tensor, source, target] + weight[reader, target]
                                least = min(least, way + tails[reader, target])
                        longest = max(longest, least)
            tails[operator, source] = longest


@compiled_lean
def settle(domain: BoolArray, device: IntArray) -> bool:
    """Sets the device of operators that have only one left; False if one has none."""
    operators, devices = domain.shape
    for operator in range(operators):
        count = 0
        for place in range(devices):
            if domain[operator, place]:
                count += 1
                device[operator] = place
        if count == 0:
            return False
        if count > 1:
            device[operator] = OPEN
    return True


@compiled_lean
def unite(data: BlockData, domain: BoolArray) -> None:
    """Leaves each operator the devices that are open to its whole unit."""
    operators, devices = domain.shape
    for operator in range(operators):
        first = data.unit[operator]
        for place in range(devices):
            domain[first, place] &= domain[operator, place]
    for operator in range(operators):
        for place in range(devices):
            domain[operator, place] &= domain[data.unit[operator], place]


@compiled_lean
def fit(data: BlockData, domain: BoolArray, device: IntArray) -> bool:
    """Removes devices without memory for an operator; whether any was removed."""
    operators, devices = domain.shape
    changed = False
    for place in range(devices):
        left = data.room[place]
        for operator in range(operators):
            if device[operator] == place:
                left -= data.memory[operator]
        for operator in range(operators):
            need = data.memory[operator] if device[operator] == OPEN else 0
            if domain[operator, place] and need > left:
                domain[operator, place] = False
                changed = True
    return changed


@compiled_lean
def shorten(domain: BoolArray, windows: Windows, limit: int) -> bool:
    """Removes devices through which no path is lighter than a limit; whether any was removed."""
    operators, devices = domain.shape
    changed = False
    for operator in range(operators):
        for place in range(devices):
            if domain[operator, place]:
                path = windows.head[operator, place] + windows.weight[operator, place]
                if path + windows.tail[operator, place] >= limit:
                    domain[operator, place] = False
                    changed = True
    return changed

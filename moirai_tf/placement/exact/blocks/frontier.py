"""Of many ways to run a block those that no other one replaces."""

from __future__ import annotations

import numpy as np

from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.problem import IntArray


@compiled
def memory_of(size: IntArray, device: IntArray, devices: int) -> IntArray:
    """(choices, devices): bytes on each device.

    Args:
      size: bytes of each operator.
      device: (choices, operators).
      devices: number of them.
    """
    memory = np.zeros((len(device), devices), dtype=np.int64)
    for choice in range(len(device)):
        for operator in range(len(size)):
            memory[choice, device[choice, operator]] += size[operator]
    return memory


@compiled
def undominated(ticks: IntArray, memory: IntArray) -> IntArray:
    """Enough of the choices: any other takes no less time and memory than one of these.

    Args:
      ticks: of each choice.
      memory: (choices, devices).
    """
    kept = np.empty(len(ticks), dtype=np.int64)
    count = 0
    for choice in np.argsort(ticks, kind="mergesort"):
        replaced = False
        for place in range(count - 1, -1, -1):
            replaced = True
            for device in range(memory.shape[1]):
                if memory[kept[place], device] > memory[choice, device]:
                    replaced = False
                    break
            if replaced:
                break
        if not replaced:
            kept[count] = choice
            count += 1
    return kept[:count]

"""A problem as flat integer arrays, for compiled code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moirai_tf.placement.problem import Problem

IntArray = npt.NDArray[np.int64]


class Arrays(NamedTuple):
    """Operators, tensors and devices by index; lists of lists are cut up by their `_at` array."""

    compute_ns: IntArray
    """(operators, devices); -1 where the operator cannot be."""
    producer: IntArray
    """Of each tensor."""
    time_ns: IntArray
    """(different matrices, devices, devices)."""
    matrix: IntArray
    """Of each tensor, into `time_ns`."""
    incoming: IntArray
    """Tensors that operator i reads are `incoming[incoming_at[i]:incoming_at[i + 1]]`; a position
    in this array names an edge."""
    incoming_at: IntArray
    outgoing: IntArray
    """Tensors that each operator writes."""
    outgoing_at: IntArray
    readers: IntArray
    """Operators that read each tensor."""
    readers_at: IntArray
    per_edge: bool
    sends_at: int
    """First resource that transfers occupy; those before are the devices. Nothing is occupied
    where it is the number of resources."""
    is_link: bool
    resources: int


def arrays_of(problem: Problem) -> Arrays:
    """The arrays of a valid problem."""
    devices = len(problem.devices)
    matrices = list({id(array): array for array in problem.time_ns}.values())
    number = {id(array): index for index, array in enumerate(matrices)}
    channels = {"port": 2 * devices, "link": devices * devices, "none": 0}[problem.congestion]
    incoming, incoming_at = flat(problem.incoming)
    outgoing, outgoing_at = flat(problem.outgoing)
    readers, readers_at = flat(tensor.consumers for tensor in problem.tensors)
    return Arrays(
        compute_ns=np.where(problem.runnable, problem.compute_ns, -1),
        producer=np.array([tensor.producer for tensor in problem.tensors], dtype=np.int64),
        time_ns=np.array(matrices, dtype=np.int64).reshape(-1, devices, devices),
        matrix=np.array([number[id(array)] for array in problem.time_ns], dtype=np.int64),
        incoming=incoming,
        incoming_at=incoming_at,
        outgoing=outgoing,
        outgoing_at=outgoing_at,
        readers=readers,
        readers_at=readers_at,
        per_edge=problem.transfers == "per_edge",
        sends_at=devices,
        is_link=problem.congestion == "link",
        resources=devices + channels,
    )


def flat(lists: Iterable[Sequence[int]]) -> tuple[IntArray, IntArray]:
    """All entries one after another, and where each list begins and the last ends."""
    rows = list(lists)
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return np.array([entry for row in rows for entry in row], dtype=np.int64), ends

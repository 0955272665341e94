"""Jobs of a block as events to be put in order."""

from __future__ import annotations

import numpy as np

from moirai_tf.placement.compiled import compiled, compiled_lean
from moirai_tf.placement.exact.blocks.block_arrays import NEVER, OPEN, BlockData, Work, machines_of
from moirai_tf.placement.exact.blocks.giffler_thompson import Events
from moirai_tf.placement.problem import BoolArray, IntArray


@compiled
def to_events(data: BlockData, domain: BoolArray, work: Work, jobs: int) -> tuple[Events, IntArray]:
    """The jobs of operators with devices, numbered topologically; job of each event.

    Operators that are still open occupy nothing: they are the least time between others. So a
    best order of the events takes no longer than any schedule.
    """
    operators, devices = data.compute.shape
    place = np.full(jobs, -1, dtype=np.int64)
    job_of = np.empty(jobs, dtype=np.int64)
    first = np.zeros(jobs + 1, dtype=np.int64)
    before = np.empty((2, jobs + len(data.input) + operators**2), dtype=np.int64)
    need = np.zeros((operators, devices), dtype=np.int64)
    count, entries = 0, 0
    for operator in range(operators):
        if work.device[operator] == OPEN:
            continue
        for entry in range(data.first_input[operator], data.first_input[operator + 1]):
            tensor = data.input[entry]
            job = _bringer(data, work, tensor, operator)
            if job >= operators and place[job] < 0:
                entries = _wait(before, entries, place[data.producer[tensor]], 0)
                place[job] = count
                job_of[count] = job
                count += 1
                first[count] = entries
        waits = entries
        for entry in range(data.first_input[operator], data.first_input[operator + 1]):
            job = _bringer(data, work, data.input[entry], operator)
            if job >= 0:
                entries = _wait(before, entries, place[job], 0)
        if entries - waits < data.first_input[operator + 1] - data.first_input[operator]:
            entries = _add_lags(data, domain, work, operator, need, place, before, entries)
        place[operator] = count
        job_of[count] = operator
        count += 1
        first[count] = entries
    job_of = job_of[:count]
    length, resources = work.job_length[job_of], work.job_resources[job_of]
    tail, ends, lags = work.job_tail[job_of], before[0, :entries], before[1, :entries]
    machines = machines_of(data)
    return Events(length, resources, first, ends, lags, tail, machines), job_of


@compiled_lean
def _wait(before: IntArray, entries: int, event: int, lag: int) -> int:
    """Adds an event to be waited for, and the time after it; returns the number of entries."""
    before[0, entries] = event
    before[1, entries] = lag
    return entries + 1


@compiled_lean
def _bringer(data: BlockData, work: Work, tensor: int, reader: int) -> int:
    """Job after which a reader has a tensor: its transfer or its producer; OPEN if that is."""
    producer = int(data.producer[tensor])
    source, target = work.device[producer], work.device[reader]
    if source == OPEN:
        return OPEN
    if source == target:
        return producer
    return int(work.carrier[tensor, reader if data.per_edge else target])


@compiled_lean
def _add_lags(
    data: BlockData,
    domain: BoolArray,
    work: Work,
    last: int,
    need: IntArray,
    place: IntArray,
    before: IntArray,
    entries: int,
) -> int:
    """Adds the operators with devices from which open ones lead to `last`, and the least times."""
    devices = data.compute.shape[1]
    for operator in range(last - 1, -1, -1):
        longest = -1
        for source in range(devices):
            need[operator, source] = -1
            if domain[operator, source]:
                found = _need(data, domain, work, operator, source, last, need)
                need[operator, source] = found
                longest = max(longest, found)
        if work.device[operator] != OPEN:
            need[operator, :] = -1
            if longest >= 0:
                entries = _wait(before, entries, place[operator], longest)
    return entries


@compiled_lean
def _need(
    data: BlockData,
    domain: BoolArray,
    work: Work,
    operator: int,
    source: int,
    last: int,
    need: IntArray,
) -> int:
    """Least time from an operator's end on a device, through open ones, to the start of `last`.

    -1 if no path leads there through an open operator.
    """
    longest = -1
    for entry in range(data.first_output[operator], data.first_output[operator + 1]):
        tensor = data.output[entry]
        for spot in range(data.first_reader[tensor], data.first_reader[tensor + 1]):
            reader = data.reader[spot]
            if reader == last and work.device[operator] == OPEN:
                longest = max(longest, data.time[tensor, source, work.device[last]])
            if reader >= last or work.device[reader] != OPEN:
                continue
            least = NEVER
            for target in range(data.compute.shape[1]):
                if need[reader, target] >= 0:
                    way = data.time[tensor, source, target] + data.compute[reader, target]
                    least = min(least, way + need[reader, target])
            if least < NEVER:
                longest = max(longest, least)
    return longest

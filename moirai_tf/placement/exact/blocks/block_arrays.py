"""A block as arrays, and the jobs of its operators with devices: what occupies devices and ways."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.compiled import compiled, compiled_lean
from moirai_tf.placement.exact.blocks.jackson_bound import preemptive_bound
from moirai_tf.placement.problem import IntArray

NEVER = 2**60
"""Stands for "cannot be"; above every sum of times."""
FREE, LINKS, PORTS = 0, 1, 2
OPEN = -1
"""In place of a device: several are possible."""


class BlockData(NamedTuple):
    """A block as arrays, its operators numbered in the order in which devices are chosen.

    The first operator is the entry, which ends at time 0, and the last one the exit.
    """

    compute: IntArray
    """(operators, devices), in ticks; never negative."""
    producer: IntArray
    time: IntArray
    """(tensors, devices, devices), in ticks."""
    first_reader: IntArray
    reader: IntArray
    """Tensor t is read by `reader[first_reader[t]:first_reader[t + 1]]`."""
    first_input: IntArray
    input: IntArray
    first_output: IntArray
    output: IntArray
    memory: IntArray
    """Bytes of each operator; 0 for the entry, which the block before counts."""
    room: IntArray
    """Bytes of each device."""
    unit: IntArray
    """Operators with the same number share a device."""
    per_edge: int
    congestion: int
    """FREE, LINKS or PORTS."""


class Work(NamedTuple):
    """Scratch of one search: jobs are operators with a device and the transfers between them."""

    device: IntArray
    """Of each operator; OPEN if several are possible."""
    job_head: IntArray
    """Earliest start."""
    job_length: IntArray
    job_tail: IntArray
    """Least time, and prices still to be paid, from a job's end to the end of everything."""
    job_resources: IntArray
    job_tensor: IntArray
    job_key: IntArray
    carrier: IntArray
    """(tensors, max(devices, operators)): job that brings a tensor; -1 for none."""
    newest: IntArray
    """Last job of each resource; -1 for none."""
    older: IntArray
    """(jobs, 2): the job before on the same resource."""
    members: IntArray
    left: IntArray


@compiled
def new_work(data: BlockData) -> Work:
    """Scratch for a search of this block."""
    operators, devices = data.compute.shape
    jobs = operators + len(data.reader)
    return Work(
        np.full(operators, OPEN, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.full((jobs, 2), -1, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.full((len(data.producer), max(operators, devices)), -1, dtype=np.int64),
        np.full(machines_of(data), -1, dtype=np.int64),
        np.full((jobs, 2), -1, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
    )


@compiled_lean
def machines_of(data: BlockData) -> int:
    """Number of resources: devices, then ports that send and that receive, or links."""
    devices = int(data.compute.shape[1])
    if data.congestion == LINKS:
        return devices + devices * devices
    return 3 * devices if data.congestion == PORTS else devices


@compiled_lean
def channels(data: BlockData, source: int, target: int) -> tuple[int, int]:
    """Resources that a transfer occupies; -1 for nothing."""
    devices = data.compute.shape[1]
    if data.congestion == LINKS:
        return devices + source * devices + target, -1
    if data.congestion == PORTS:
        return devices + source, 2 * devices + target
    return -1, -1


@compiled_lean
def collect_jobs(data: BlockData, head: IntArray, tail: IntArray, work: Work) -> int:
    """Fills the job arrays: operators first, then the transfers they are known to need.

    Args:
      data: the block.
      head: (operators, devices): earliest starts.
      tail: (operators, devices): least time and prices after an operator.
      work: device of each operator; output.
    """
    operators = len(data.unit)
    for operator in range(operators):
        device = work.device[operator]
        length = 0
        if device != OPEN:
            length = data.compute[operator, device]
            work.job_head[operator] = head[operator, device]
            work.job_tail[operator] = tail[operator, device]
        work.job_length[operator] = length
        work.job_resources[operator, 0] = device if length else -1
        work.job_resources[operator, 1] = -1
    count = operators
    for tensor in range(len(data.producer)):
        if work.device[data.producer[tensor]] != OPEN:
            count = _collect_transfers(data, head, tail, work, tensor, count)
    return count


@compiled_lean
def _collect_transfers(
    data: BlockData, head: IntArray, tail: IntArray, work: Work, tensor: int, count: int
) -> int:
    producer = data.producer[tensor]
    source = work.device[producer]
    work.carrier[tensor, :] = -1
    for place in range(data.first_reader[tensor], data.first_reader[tensor + 1]):
        reader = data.reader[place]
        target = work.device[reader]
        if target in (OPEN, source):
            continue
        key = reader if data.per_edge else target
        job = work.carrier[tensor, key]
        if job < 0:
            job = count
            count += 1
            work.carrier[tensor, key] = job
            length = data.time[tensor, source, target]
            work.job_head[job] = head[producer, source] + data.compute[producer, source]
            work.job_length[job] = length
            work.job_tail[job] = 0
            work.job_tensor[job] = tensor
            work.job_key[job] = key
            sends, receives = channels(data, source, target)
            work.job_resources[job, 0] = sends if length else -1
            work.job_resources[job, 1] = receives if length else -1
        after = data.compute[reader, target] + tail[reader, target]
        work.job_tail[job] = max(work.job_tail[job], after)
    return count


@compiled_lean
def jobs_bound(work: Work, jobs: int, bound: int) -> int:
    """The largest bound that any one resource proves, at least `bound`."""
    work.newest[:] = -1
    for job in range(jobs):
        for side in range(2):
            machine = work.job_resources[job, side]
            if machine >= 0:
                work.older[job, side] = work.newest[machine]
                work.newest[machine] = job
    for machine in range(len(work.newest)):
        job = work.newest[machine]
        count, total, latest, longest = 0, 0, 0, 0
        while job >= 0:
            work.members[count] = job
            count += 1
            total += work.job_length[job]
            latest = max(latest, work.job_head[job])
            longest = max(longest, work.job_tail[job])
            job = work.older[job, 0 if work.job_resources[job, 0] == machine else 1]
        if count > 1 and latest + total + longest > bound:
            found = preemptive_bound(
                work.job_head, work.job_length, work.job_tail, work.members[:count], work.left
            )
            bound = max(bound, found)
    return bound

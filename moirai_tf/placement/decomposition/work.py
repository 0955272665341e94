"""A block as arrays, and what a choice of devices for its first operators implies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.compiled import compiled
from moirai_tf.placement.decomposition.machine import preemptive_bound
from moirai_tf.placement.decomposition.sequence import Events
from moirai_tf.placement.problem import BoolArray, IntArray

NEVER = 2**60
"""Stands for "cannot be"; above every sum of times."""
FREE, LINKS, PORTS = 0, 1, 2


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


@compiled
def path_tails(data: BlockData, allowed: BoolArray, weight: IntArray) -> IntArray:
    """(operators, devices): least weight of the heaviest path from an operator, itself included.

    A path weighs its operators' weights and the ways between them. For fixed devices the
    makespan from the operator's start, plus the prices along the path, is at least that.
    """
    operators, devices = data.compute.shape
    tails = np.zeros((operators, devices), dtype=np.int64)
    for operator in range(operators - 1, -1, -1):
        for device in range(devices):
            longest = 0
            for entry in range(data.first_output[operator], data.first_output[operator + 1]):
                tensor = data.output[entry]
                for place in range(data.first_reader[tensor], data.first_reader[tensor + 1]):
                    reader = data.reader[place]
                    least = NEVER
                    for target in range(devices):
                        if allowed[reader, target]:
                            way = data.time[tensor, device, target]
                            least = min(least, way + tails[reader, target])
                    longest = max(longest, least)
            tails[operator, device] = weight[operator, device] + longest
    return tails


@compiled
def paths_bound(
    data: BlockData,
    allowed: BoolArray,
    weight: IntArray,
    tails: IntArray,
    work: Work,
    decided: int,
) -> int:
    """The heaviest path through operators without a device."""
    device, finish, heads = work.device, work.finish, work.heads
    operators, devices = data.compute.shape
    bound = 0
    for operator in range(decided, operators):
        least = NEVER
        for target in range(devices):
            if not allowed[operator, target]:
                continue
            head = 0
            for entry in range(data.first_input[operator], data.first_input[operator + 1]):
                tensor = data.input[entry]
                producer = data.producer[tensor]
                if producer < decided:
                    came = finish[producer] + data.time[tensor, device[producer], target]
                else:
                    came = NEVER
                    for source in range(devices):
                        if allowed[producer, source]:
                            left = heads[producer, source] + weight[producer, source]
                            came = min(came, left + data.time[tensor, source, target])
                head = max(head, came)
            heads[operator, target] = head
            least = min(least, head + tails[operator, target])
        bound = max(bound, least)
    return bound


@compiled
def fill_tails(
    data: BlockData,
    allowed: BoolArray,
    tails: IntArray,
    work: Work,
    decided: int,
) -> None:
    """Sets `after` of the decided operators, given `path_tails` of the others."""
    device, after = work.device, work.after
    devices = data.compute.shape[1]
    for operator in range(decided - 1, -1, -1):
        longest = 0
        source = device[operator]
        for entry in range(data.first_output[operator], data.first_output[operator + 1]):
            tensor = data.output[entry]
            for place in range(data.first_reader[tensor], data.first_reader[tensor + 1]):
                reader = data.reader[place]
                if reader < decided:
                    target = device[reader]
                    least = data.time[tensor, source, target] + after[reader]
                    least += data.compute[reader, target]
                else:
                    least = NEVER
                    for target in range(devices):
                        if allowed[reader, target]:
                            way = data.time[tensor, source, target]
                            least = min(least, way + tails[reader, target])
                longest = max(longest, least)
        after[operator] = longest


class Work(NamedTuple):
    """Scratch of one search: jobs are operators with a device and the transfers between them."""

    device: IntArray
    finish: IntArray
    """Earliest end of each decided operator."""
    after: IntArray
    """Least time from each decided operator's end to the end of everything."""
    heads: IntArray
    job_head: IntArray
    job_length: IntArray
    job_tail: IntArray
    job_resources: IntArray
    job_tensor: IntArray
    job_key: IntArray
    carrier: IntArray
    """(tensors, max(devices, operators)): job that brings a tensor; -1 for none."""
    members: IntArray
    left: IntArray


@compiled
def new_work(data: BlockData) -> Work:
    """Scratch for a search of this block."""
    operators, devices = data.compute.shape
    jobs = operators + len(data.reader)
    keys = max(operators, devices)
    return Work(
        np.zeros(operators, dtype=np.int64),
        np.zeros(operators, dtype=np.int64),
        np.zeros(operators, dtype=np.int64),
        np.zeros((operators, devices), dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.zeros((jobs, 2), dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.full((len(data.producer), keys), -1, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
    )


@compiled
def collect_jobs(data: BlockData, work: Work, decided: int) -> int:
    """Fills the job arrays: operators first, then the transfers they are known to need."""
    devices = data.compute.shape[1]
    for operator in range(decided):
        length = data.compute[operator, work.device[operator]]
        work.job_head[operator] = work.finish[operator] - length
        work.job_length[operator] = length
        work.job_tail[operator] = work.after[operator]
        work.job_resources[operator, 0] = work.device[operator] if length else -1
        work.job_resources[operator, 1] = -1
    count = decided
    for tensor in range(len(data.producer)):
        producer = data.producer[tensor]
        if producer >= decided:
            continue
        work.carrier[tensor, :] = -1
        source = work.device[producer]
        for place in range(data.first_reader[tensor], data.first_reader[tensor + 1]):
            reader = data.reader[place]
            if reader >= decided or work.device[reader] == source:
                continue
            target = work.device[reader]
            key = reader if data.per_edge else target
            job = work.carrier[tensor, key]
            if job < 0:
                job = count
                count += 1
                work.carrier[tensor, key] = job
                length = data.time[tensor, source, target]
                work.job_head[job] = work.finish[producer]
                work.job_length[job] = length
                work.job_tail[job] = 0
                work.job_tensor[job] = tensor
                work.job_key[job] = key
                work.job_resources[job, 0] = -1
                work.job_resources[job, 1] = -1
                if length and data.congestion == LINKS:
                    work.job_resources[job, 0] = 3 * devices + source * devices + target
                elif length and data.congestion == PORTS:
                    work.job_resources[job, 0] = devices + source
                    work.job_resources[job, 1] = 2 * devices + target
            tail = data.compute[reader, target] + work.after[reader]
            work.job_tail[job] = max(work.job_tail[job], tail)
    return count


@compiled
def jobs_bound(work: Work, jobs: int, machines: int) -> int:
    """The largest bound that any one resource proves."""
    bound = 0
    for machine in range(machines):
        count = 0
        for job in range(jobs):
            if work.job_resources[job, 0] == machine or work.job_resources[job, 1] == machine:
                work.members[count] = job
                count += 1
        if count > 1:
            found = preemptive_bound(
                work.job_head, work.job_length, work.job_tail, work.members[:count], work.left
            )
            bound = max(bound, found)
    return bound


@compiled
def possible(data: BlockData, allowed: BoolArray, work: Work, operator: int, device: int) -> bool:
    """Whether bans, units and memory let the next operator be on a device."""
    if not allowed[operator, device]:
        return False
    if data.unit[operator] < operator and work.device[data.unit[operator]] != device:
        return False
    used = data.memory[operator]
    for other in range(operator):
        if work.device[other] == device:
            used += data.memory[other]
    return bool(used <= data.room[device])


@compiled
def decide(data: BlockData, work: Work, operator: int, device: int) -> None:
    """Sets an operator's device and its earliest finish there if nothing ever had to wait."""
    work.device[operator] = device
    head = 0
    for entry in range(data.first_input[operator], data.first_input[operator + 1]):
        tensor = data.input[entry]
        producer = data.producer[tensor]
        way = data.time[tensor, work.device[producer], device]
        head = max(head, work.finish[producer] + way)
    work.finish[operator] = head + data.compute[operator, device]


@compiled
def to_events(data: BlockData, work: Work, jobs: int, machines: int) -> tuple[Events, IntArray]:
    """The jobs of fully decided operators, numbered topologically; job of each event."""
    operators = len(data.unit)
    place = np.full(jobs, -1, dtype=np.int64)
    job_of = np.empty(jobs, dtype=np.int64)
    first = np.zeros(jobs + 1, dtype=np.int64)
    before = np.empty(jobs + len(data.input), dtype=np.int64)
    count, entries = 0, 0
    for operator in range(operators):
        device = work.device[operator]
        for entry in range(data.first_input[operator], data.first_input[operator + 1]):
            tensor = data.input[entry]
            producer = data.producer[tensor]
            if work.device[producer] == device:
                continue
            job = work.carrier[tensor, operator if data.per_edge else device]
            if place[job] < 0:
                before[entries] = place[producer]
                entries += 1
                place[job] = count
                job_of[count] = job
                count += 1
                first[count] = entries
        for entry in range(data.first_input[operator], data.first_input[operator + 1]):
            tensor = data.input[entry]
            producer = data.producer[tensor]
            if work.device[producer] == device:
                before[entries] = place[producer]
            else:
                key = operator if data.per_edge else device
                before[entries] = place[work.carrier[tensor, key]]
            entries += 1
        place[operator] = count
        job_of[count] = operator
        count += 1
        first[count] = entries
    length = work.job_length[job_of]
    tail = work.job_tail[job_of]
    resources = work.job_resources[job_of]
    return Events(length, resources, first, before[:entries], tail, machines), job_of

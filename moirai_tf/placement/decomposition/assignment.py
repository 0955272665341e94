"""Exact search over the devices of a block's operators, with prices for what they occupy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.decomposition.compiled import compiled
from moirai_tf.placement.decomposition.machine import preemptive_bound
from moirai_tf.placement.decomposition.sequence import Events, best_sequence
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
    unit: IntArray
    """Operators with the same number share a device."""
    per_edge: int
    congestion: int
    """FREE, LINKS or PORTS."""


class Found(NamedTuple):
    """What a block search brought back; the cutoff as value means that nothing was found."""

    value: int
    """Makespan plus prices."""
    bound: int
    """No schedule below the cutoff has less."""
    device: IntArray
    start: IntArray
    """Start of each operator."""
    transfers: IntArray
    """Rows of tensor, target device or (`per_edge`) consumer, start."""
    nodes: int


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
def _open_bound(
    data: BlockData,
    allowed: BoolArray,
    weight: IntArray,
    tails: IntArray,
    device: IntArray,
    finish: IntArray,
    heads: IntArray,
    decided: int,
) -> int:
    """The heaviest path through operators without a device; `heads` is scratch."""
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
def _fill_tails(
    data: BlockData,
    allowed: BoolArray,
    tails: IntArray,
    device: IntArray,
    after: IntArray,
    decided: int,
) -> None:
    """`after`: least time from each decided operator's end to the end of everything."""
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
    after: IntArray
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
def _scratch(data: BlockData) -> Work:
    operators, devices = data.compute.shape
    jobs = operators + len(data.reader)
    keys = operators if data.per_edge else devices
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
def _collect_jobs(data: BlockData, work: Work, decided: int) -> int:
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
def _jobs_bound(work: Work, jobs: int, machines: int) -> int:
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
def _decide(data: BlockData, work: Work, operator: int, device: int) -> None:
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
def _events(data: BlockData, work: Work, jobs: int, machines: int) -> tuple[Events, IntArray]:
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


@compiled
def search_block(
    data: BlockData,
    allowed: BoolArray,
    price: IntArray,
    cutoff: int,
    node_limit: int,
    sequence_limit: int,
) -> Found:
    """Branch and bound over devices; orders are solved exactly once all devices are chosen.

    Args:
      data: the block.
      allowed: (operators, devices); at least one device each, one for entry and exit.
      price: (operators, devices): what an operator pays on a device besides its time; >= 0.
      cutoff: only a smaller value is of interest.
      node_limit: nodes after which the search gives up, with a valid bound.
      sequence_limit: the same for each search over orders.
    """
    operators, devices = data.compute.shape
    machines = 3 * devices + devices * devices
    base = 0
    extra = np.zeros((operators, devices), dtype=np.int64)
    for operator in range(operators):
        least = NEVER
        for device in range(devices):
            if allowed[operator, device]:
                least = min(least, price[operator, device])
        base += least
        for device in range(devices):
            extra[operator, device] = price[operator, device] - least
    weight = data.compute + extra
    tails = path_tails(data, allowed, weight)
    work = _scratch(data)
    best_device = np.zeros(operators, dtype=np.int64)
    best_start = np.zeros(operators, dtype=np.int64)
    best_transfers = np.zeros((0, 3), dtype=np.int64)
    event_start = np.zeros(operators + len(data.reader), dtype=np.int64)
    options = np.zeros((operators + 1, devices), dtype=np.int64)
    bounds = np.zeros((operators + 1, devices), dtype=np.int64)
    sizes = np.zeros(operators + 1, dtype=np.int64)
    taken = np.zeros(operators + 1, dtype=np.int64)
    paid = np.zeros(operators + 1, dtype=np.int64)
    best, open_bound = cutoff - base, cutoff - base
    nodes, depth = 0, 0
    sizes[0] = -1
    while depth >= 0:
        if sizes[depth] < 0:
            count = 0
            for device in range(devices):
                if not allowed[depth, device]:
                    continue
                if data.unit[depth] < depth and work.device[data.unit[depth]] != device:
                    continue
                nodes += 1
                _decide(data, work, depth, device)
                cost = paid[depth] + extra[depth, device]
                bound = cost + _open_bound(
                    data, allowed, weight, tails, work.device, work.finish, work.heads, depth + 1
                )
                if bound < best:
                    _fill_tails(data, allowed, tails, work.device, work.after, depth + 1)
                    jobs = _collect_jobs(data, work, depth + 1)
                    bound = max(bound, cost + _jobs_bound(work, jobs, machines))
                    bound = max(bound, cost + work.finish[depth] + work.after[depth])
                if bound >= best:
                    continue
                place = count
                while place and bounds[depth, place - 1] > bound:
                    bounds[depth, place] = bounds[depth, place - 1]
                    options[depth, place] = options[depth, place - 1]
                    place -= 1
                bounds[depth, place] = bound
                options[depth, place] = device
                count += 1
            sizes[depth] = count
            taken[depth] = 0
        if taken[depth] == sizes[depth]:
            depth -= 1
            continue
        device = options[depth, taken[depth]]
        bound = bounds[depth, taken[depth]]
        taken[depth] += 1
        if bound >= best:
            continue
        if nodes > node_limit:
            open_bound = min(open_bound, bound)
            continue
        _decide(data, work, depth, device)
        paid[depth + 1] = paid[depth] + extra[depth, device]
        if depth + 1 < operators:
            depth += 1
            sizes[depth] = -1
            continue
        _fill_tails(data, allowed, tails, work.device, work.after, operators)
        jobs = _collect_jobs(data, work, operators)
        events, job_of = _events(data, work, jobs, machines)
        cost = paid[operators]
        value, proved = best_sequence(events, best - cost, sequence_limit, event_start)
        if proved < value:
            open_bound = min(open_bound, proved + cost)
        if value + cost < best:
            best = value + cost
            best_device[:] = work.device
            best_transfers = np.zeros((jobs - operators, 3), dtype=np.int64)
            for event in range(jobs):
                job = job_of[event]
                if job < operators:
                    best_start[job] = event_start[event]
                else:
                    row = best_transfers[job - operators]
                    row[0], row[1] = work.job_tensor[job], work.job_key[job]
                    row[2] = event_start[event]
    lower = min(best, open_bound)
    return Found(best + base, lower + base, best_device, best_start, best_transfers, nodes)

"""Jobs of a block: operators with a device and the transfers between them, and their graph."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moirai_tf.placement.compiled import compiled, compiled_lean
from moirai_tf.placement.evaluate.channels import NOTHING, channels
from moirai_tf.placement.exact.blocks.block import NEVER, OPEN, BlockArrays
from moirai_tf.placement.problem import BoolArray, IntArray


class ResourceScratch(NamedTuple):
    """Scratch of `resources_bound`."""

    newest: IntArray
    """(resources,): last job of each; -1 for none."""
    older: IntArray
    """(jobs, 2): the job before on the same resource."""
    members: IntArray
    """(jobs,)"""
    left: IntArray
    """(jobs,), in ticks."""


class JobTable(NamedTuple):
    """When jobs can run and what they occupy; times in ticks."""

    head: IntArray
    """(jobs,): earliest start."""
    length: IntArray
    """(jobs,)"""
    tail: IntArray
    """(jobs,): least time, and prices still to be paid, from a job's end to the end of all."""
    resources: IntArray
    """(jobs, 2): NOTHING in place of one."""


class Jobs(NamedTuple):
    """Scratch of one search: operators, those without a device of no length, then transfers."""

    device: IntArray
    """(operators,): OPEN if several are possible."""
    table: JobTable
    tensor: IntArray
    """(jobs,): what a transfer moves."""
    key: IntArray
    """(jobs,): target device of a transfer or, if it is for one consumer alone, that one."""
    carrier: IntArray
    """(tensors, max(devices, operators)): transfer of a tensor with a key; -1 for none."""
    finish: IntArray
    """(jobs,): -1, as no job has been put in order."""
    scratch: ResourceScratch


@compiled
def new_scratch(resources: int, jobs: int) -> ResourceScratch:
    """Scratch for so many resources and jobs."""
    return ResourceScratch(
        np.zeros(resources, dtype=np.int64),
        np.zeros((jobs, 2), dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
        np.zeros(jobs, dtype=np.int64),
    )


@compiled
def new_jobs(data: BlockArrays) -> Jobs:
    """Scratch for a search of this block."""
    operators, devices = data.compute.shape
    count = operators + len(data.reader)
    return Jobs(
        np.full(operators, OPEN, dtype=np.int64),
        JobTable(
            np.zeros(count, dtype=np.int64),
            np.zeros(count, dtype=np.int64),
            np.zeros(count, dtype=np.int64),
            np.full((count, 2), NOTHING, dtype=np.int64),
        ),
        np.zeros(count, dtype=np.int64),
        np.zeros(count, dtype=np.int64),
        np.full((len(data.producer), max(operators, devices)), -1, dtype=np.int64),
        np.full(count, -1, dtype=np.int64),
        new_scratch(data.resources, count),
    )


@compiled_lean
def collect_jobs(data: BlockArrays, head: IntArray, tail: IntArray, jobs: Jobs) -> int:
    """Fills `jobs`: operators first, then the transfers they are known to need; their number.

    Args:
      data: the block.
      head: (operators, devices), in ticks: earliest starts.
      tail: (operators, devices), in ticks: least time and prices after an operator.
      jobs: has the device of each operator; changed.
    """
    operators, table = len(data.unit), jobs.table
    for operator in range(operators):
        device = jobs.device[operator]
        length = 0
        if device != OPEN:
            length = data.compute[operator, device]
            table.head[operator] = head[operator, device]
            table.tail[operator] = tail[operator, device]
        table.length[operator] = length
        table.resources[operator, 0] = device if length else NOTHING
        table.resources[operator, 1] = NOTHING
    count = operators
    for tensor in range(len(data.producer)):
        if jobs.device[data.producer[tensor]] != OPEN:
            count = _collect_transfers(data, head, tail, jobs, tensor, count)
    return count


@compiled_lean
def _collect_transfers(
    data: BlockArrays, head: IntArray, tail: IntArray, jobs: Jobs, tensor: int, count: int
) -> int:
    """Adds the transfers of a tensor to `jobs`; returns the number of jobs."""
    producer, table = data.producer[tensor], jobs.table
    source = jobs.device[producer]
    jobs.carrier[tensor, :] = -1
    for place in range(data.first_reader[tensor], data.first_reader[tensor + 1]):
        reader = data.reader[place]
        target = jobs.device[reader]
        if target in (OPEN, source):
            continue
        key = reader if data.per_edge else target
        job = jobs.carrier[tensor, key]
        if job < 0:
            job = count
            count += 1
            jobs.carrier[tensor, key] = job
            length = data.time[tensor, source, target]
            table.head[job] = head[producer, source] + data.compute[producer, source]
            table.length[job] = length
            table.tail[job] = 0
            jobs.tensor[job] = tensor
            jobs.key[job] = key
            sends, receives = channels(data.congestion, data.compute.shape[1], source, target)
            table.resources[job, 0] = sends if length else NOTHING
            table.resources[job, 1] = receives if length else NOTHING
        after = data.compute[reader, target] + tail[reader, target]
        table.tail[job] = max(table.tail[job], after)
    return count


@compiled_lean
def jackson_bound(
    heads: IntArray, lengths: IntArray, tails: IntArray, members: IntArray, left: IntArray
) -> int:
    """Makespan of Jackson's preemptive schedule (1955), at most that of any schedule.

    Of the released jobs the one with the longest tail runs, and gives way to a released one with
    a longer tail. With preemption allowed this is optimal.

    Args:
      heads: release of each job.
      lengths: time that each job occupies the resource, positive.
      tails: time from each job's end to the end of everything.
      members: the jobs of this resource.
      left: scratch, as long as `heads`.
    """
    bound = 0
    waiting = len(members)
    for job in members:
        left[job] = lengths[job]
    now = -1
    while waiting:
        chosen = -1
        following = 2**62
        for job in members:
            if left[job] == 0:
                continue
            if heads[job] > now:
                following = min(following, heads[job])
            elif chosen < 0 or tails[job] > tails[chosen]:
                chosen = job
        if chosen < 0:
            now = following
            continue
        step = min(left[chosen], following - now)
        now += step
        left[chosen] -= step
        if left[chosen] == 0:
            waiting -= 1
            bound = max(bound, now + tails[chosen])
    return bound


@compiled_lean
def resources_bound(
    table: JobTable, finish: IntArray, count: int, scratch: ResourceScratch, bound: int
) -> int:
    """The largest of the resources' bounds by Jackson, at least `bound`, in ticks.

    Args:
      table: the jobs.
      finish: (jobs,): jobs count where this is -1.
      count: number of jobs.
      scratch: changed.
      bound: a lower bound that is known.
    """
    newest, older = scratch.newest, scratch.older
    newest[:] = -1
    for job in range(count):
        for side in range(2):
            resource = table.resources[job, side]
            if resource != NOTHING and finish[job] < 0:
                older[job, side] = newest[resource]
                newest[resource] = job
    for resource in range(len(newest)):
        job = newest[resource]
        size, total, latest, longest = 0, 0, 0, 0
        while job >= 0:
            scratch.members[size] = job
            size += 1
            total += table.length[job]
            latest = max(latest, table.head[job])
            longest = max(longest, table.tail[job])
            job = older[job, 0 if table.resources[job, 0] == resource else 1]
        if size > 1 and latest + total + longest > bound:
            found = jackson_bound(
                table.head, table.length, table.tail, scratch.members[:size], scratch.left
            )
            bound = max(bound, found)
    return bound


class JobGraph(NamedTuple):
    """Jobs with a device, numbered topologically; j waits for `before[first[j]:first[j + 1]]`."""

    table: JobTable
    first: IntArray
    """(jobs + 1,)"""
    before: IntArray
    lag: IntArray
    """As long as `before`: least ticks between the end of that job and the start of this one."""
    source: IntArray
    """(jobs,): number in `Jobs`."""
    total: int
    """Number of resources."""


@compiled
def job_graph(data: BlockArrays, domain: BoolArray, jobs: Jobs, size: int) -> JobGraph:
    """The graph of the first `size` jobs.

    Operators that are still open occupy nothing: they are the least time between others. So a
    best order takes no longer than any schedule.
    """
    operators, devices = data.compute.shape
    place = np.full(size, -1, dtype=np.int64)
    source = np.empty(size, dtype=np.int64)
    first = np.zeros(size + 1, dtype=np.int64)
    before = np.empty((2, size + len(data.input) + operators**2), dtype=np.int64)
    need = np.zeros((operators, devices), dtype=np.int64)
    count, entries = 0, 0
    for operator in range(operators):
        if jobs.device[operator] == OPEN:
            continue
        for entry in range(data.first_input[operator], data.first_input[operator + 1]):
            tensor = data.input[entry]
            job = _bringer(data, jobs, tensor, operator)
            if job >= operators and place[job] < 0:
                entries = _wait(before, entries, place[data.producer[tensor]], 0)
                place[job] = count
                source[count] = job
                count += 1
                first[count] = entries
        waits = entries
        for entry in range(data.first_input[operator], data.first_input[operator + 1]):
            job = _bringer(data, jobs, data.input[entry], operator)
            if job >= 0:
                entries = _wait(before, entries, place[job], 0)
        if entries - waits < data.first_input[operator + 1] - data.first_input[operator]:
            entries = _add_lags(data, domain, jobs, operator, need, place, before, entries)
        place[operator] = count
        source[count] = operator
        count += 1
        first[count] = entries
    source, table = source[:count], jobs.table
    kept = JobTable(
        table.head[source], table.length[source], table.tail[source], table.resources[source]
    )
    return JobGraph(kept, first, before[0, :entries], before[1, :entries], source, data.resources)


@compiled_lean
def _wait(before: IntArray, entries: int, job: int, lag: int) -> int:
    """Adds a job to be waited for, and the time after it; returns the number of entries."""
    before[0, entries] = job
    before[1, entries] = lag
    return entries + 1


@compiled_lean
def _bringer(data: BlockArrays, jobs: Jobs, tensor: int, reader: int) -> int:
    """Job after which a reader has a tensor: its transfer or its producer; OPEN if that is."""
    producer = int(data.producer[tensor])
    source, target = jobs.device[producer], jobs.device[reader]
    if source == OPEN:
        return OPEN
    if source == target:
        return producer
    return int(jobs.carrier[tensor, reader if data.per_edge else target])


@compiled_lean
def _add_lags(
    data: BlockArrays,
    domain: BoolArray,
    jobs: Jobs,
    last: int,
    need: IntArray,
    place: IntArray,
    before: IntArray,
    entries: int,
) -> int:
    """Makes `last` wait for operators with devices from which open ones lead to it.

    Args:
      data: the block.
      domain: (operators, devices).
      jobs: the jobs.
      last: an operator with a device.
      need: (operators, devices): scratch.
      place: number of each job in the graph.
      before: (2, entries): jobs waited for and times after them; changed.
      entries: how many there are.

    Returns:
      How many there are then.
    """
    devices = data.compute.shape[1]
    for operator in range(last - 1, -1, -1):
        longest = -1
        for source in range(devices):
            need[operator, source] = -1
            if domain[operator, source]:
                found = _need(data, jobs, operator, source, last, need)
                need[operator, source] = found
                longest = max(longest, found)
        if jobs.device[operator] != OPEN:
            need[operator, :] = -1
            if longest >= 0:
                entries = _wait(before, entries, place[operator], longest)
    return entries


@compiled_lean
def _need(
    data: BlockArrays, jobs: Jobs, operator: int, source: int, last: int, need: IntArray
) -> int:
    """No less time, in ticks, is between an operator's end on a device and the start of `last`.

    Only paths whose other operators are open count; -1 if there is none, or only the edge from an
    operator with a device.
    """
    longest = -1
    for entry in range(data.first_output[operator], data.first_output[operator + 1]):
        tensor = data.output[entry]
        for spot in range(data.first_reader[tensor], data.first_reader[tensor + 1]):
            reader = data.reader[spot]
            if reader == last and jobs.device[operator] == OPEN:
                longest = max(longest, data.time[tensor, source, jobs.device[last]])
            if reader >= last or jobs.device[reader] != OPEN:
                continue
            least = NEVER
            for target in range(data.compute.shape[1]):
                if need[reader, target] >= 0:
                    way = data.time[tensor, source, target] + data.compute[reader, target]
                    least = min(least, way + need[reader, target])
            if least < NEVER:
                longest = max(longest, least)
    return longest

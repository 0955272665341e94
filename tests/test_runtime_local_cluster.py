"""Local clusters: real servers under real limits, and nothing of them left behind.

Where the system allows no control groups, workers have whole cores, and limits must be refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from moirai_tf.bench.guard import remove_groups
from moirai_tf.bench.local_cluster import LocalCluster, local_cluster
from moirai_tf.bench.worker_limits import Controller, find_controllers, make_group, remove_stale
from moirai_tf.errors import MoiraiError
from tests.local_clusters import (
    DEVICES,
    LIMITED,
    MEMORY,
    SHARES,
    TIMEOUT_S,
    eventually,
    gone,
    groups_of,
    guard_of,
    line_of,
    nothing_left,
    process,
    status,
)

USER = """
import json, sys
from moirai_tf.bench.local_cluster import local_cluster
with local_cluster(json.loads(sys.argv[1])) as workers:
    print(json.dumps(workers.pids), flush=True)
    sys.stdin.read()
"""

FILLING_CLIENT = """
import sys
import tensorflow as tf
with tf.Graph().as_default():
    size = tf.compat.v1.placeholder(tf.int32)
    used = tf.reduce_max(tf.random.uniform([size // 4])) < 2
    session = tf.compat.v1.Session(sys.argv[1])
    for nbytes in (100_000_000, 800_000_000):
        print(session.run(used, {size: nbytes}), flush=True)
"""


THREADS_HAVE_NAMES = not tf.__version__.startswith(("2.18.", "2.19.", "2.20."))


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalCluster]:
    """Two workers, started by a user who has a proxy that answers nobody."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("http_proxy", "http://127.0.0.1:9")
        started = local_cluster(SHARES, memory_bytes=MEMORY)
        running = started.__enter__()
    try:
        yield running
    finally:
        started.__exit__(None, None, None)


# What runs


def test_workers_answer_where_the_cluster_says(
    workers: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_grpc_proxy", "localhost")
    config = tf.compat.v1.ConfigProto(operation_timeout_in_ms=int(TIMEOUT_S * 1000))
    assert [device.name for device in workers.cluster.devices] == DEVICES
    assert [device.memory_bytes for device in workers.cluster.devices] == MEMORY
    assert workers.cluster.client == DEVICES[0]
    assert len(workers.cluster.links) == 2
    for device in workers.cluster.devices:
        with tf.Graph().as_default():
            ends = []
            for name in DEVICES:
                with tf.device(name):
                    ends.append(tf.constant(20) + tf.constant(1))
            with tf.compat.v1.Session(f"grpc://{device.address}", config=config) as session:
                assert session.run(ends) == [21, 21]
                assert {found.name for found in session.list_devices()} >= set(DEVICES)


def test_workers_are_pinned_before_they_have_threads(workers: LocalCluster) -> None:
    for pid, core in zip(workers.pids, workers.cores, strict=True):
        threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        assert len(threads) > 1
        assert {status(thread, "Cpus_allowed_list") for thread in threads} == {str(core)}


def test_operators_come_after_messages(workers: LocalCluster) -> None:
    """All are as nice as this process, and those that compute nicer by 5."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for pid in workers.pids:
        names = {
            int(task.name): (task / "comm").read_text().strip()
            for task in Path(f"/proc/{pid}/task").iterdir()
        }
        computing = [thread for thread, name in names.items() if name == "tf_Compute"]
        niceness = {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in names}
        if not THREADS_HAVE_NAMES:
            assert not computing
            assert set(niceness.values()) == {own}
            continue
        assert len(computing) >= 8
        assert {niceness[thread] for thread in computing} == {min(19, own + 5)}
        receiving = {niceness[thread] for thread in names if thread not in computing}
        assert own in receiving, "only those that a computing thread started are as nice"


def test_a_thread_that_is_ready_gets_its_turn_within_a_tick(workers: LocalCluster) -> None:
    """An idle worker has one thread that goes on waking up, and none that computes."""

    def wakes() -> dict[int, int]:
        tasks = Path(f"/proc/{workers.pids[0]}/task").iterdir()
        threads = [int(task.name) for task in tasks]
        return {thread: int(status(thread, "voluntary_ctxt_switches")) for thread in threads}

    before = wakes()
    time.sleep(1.0)
    after = wakes()
    often = [thread for thread in before if after.get(thread, 0) - before[thread] > 100]
    assert len(often) == 1


def test_shares_and_capacities_are_limits_of_the_kernel(workers: LocalCluster) -> None:
    if not LIMITED:
        with pytest.raises(MoiraiError, match="cannot be enforced"), local_cluster([0.5]):
            pass
        return
    guard = guard_of(workers.pids[0])
    cpu, memory = find_controllers(["cpu", "memory"])
    for task, share in enumerate(SHARES):
        group = cpu.directory / f"moirai_{guard}_{task}"
        assert (group / "cgroup.procs").read_text().split() == [str(workers.pids[task])]
        assert _quota(cpu, group) == pytest.approx(share, rel=1e-3)
    group = memory.directory / f"moirai_{guard}_1"
    assert (group / "cgroup.procs").read_text().split() == [str(workers.pids[1])]
    name = "memory.max" if memory.version == 2 else "memory.limit_in_bytes"
    limit = int((group / name).read_text())
    private, resident = (
        int(status(workers.pids[1], key).split()[0]) * 1024 for key in ("RssAnon", "VmRSS")
    )
    assert MEMORY[1] is not None
    assert private / 2 < limit - MEMORY[1] < resident + (100 << 20)
    assert not (memory.directory / f"moirai_{guard}_0").exists(), "it has no limit"


def _quota(cpu: Controller, group: Path) -> float:
    if cpu.version == 2:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    quota, period = ((group / f"cpu.cfs_{x}_us").read_text() for x in ("quota", "period"))
    return int(quota) / int(period)


def test_the_guard_is_small_and_out_of_reach_of_the_terminal(workers: LocalCluster) -> None:
    guard = guard_of(workers.pids[0])
    assert "tensorflow" not in Path(f"/proc/{guard}/maps").read_text()
    assert os.getsid(guard) == guard != os.getsid(0)
    os.kill(guard, signal.SIGINT)
    assert workers.alive(0)


def test_a_paused_worker_is_alive_and_goes_on(workers: LocalCluster) -> None:
    workers.pause(1)
    try:
        assert eventually(lambda: status(workers.pids[1], "State").startswith("T"))
        assert workers.alive(1)
    finally:
        workers.resume(1)
    assert eventually(lambda: not status(workers.pids[1], "State").startswith("T"))


def test_the_kernel_ends_a_worker_that_takes_more_than_its_memory() -> None:
    if not LIMITED:
        with (
            pytest.raises(MoiraiError, match="cannot be enforced"),
            local_cluster([1.0], memory_bytes=[10**8]),
        ):
            pass
        return
    with local_cluster([1.0], memory_bytes=[200_000_000]) as workers:
        address = workers.cluster.devices[0].address
        # In another process: the session waits for ever for the worker that is gone.
        with process("-c", FILLING_CLIENT, f"grpc://{address}") as client:
            assert line_of(client) == "True\n"
            assert eventually(lambda: not workers.alive(0))


# What is left


def test_nothing_is_left_after_an_exception_with_a_dead_and_a_paused_worker() -> None:
    with contextlib.suppress(ZeroDivisionError), local_cluster(SHARES) as workers:
        guard = guard_of(workers.pids[0])
        assert len(groups_of(guard)) == (2 if LIMITED else 0)
        workers.kill(1)
        assert not workers.alive(1)
        workers.kill(1)
        workers.pause(0)
        raise ZeroDivisionError
    assert not groups_of(guard)
    assert all(map(gone, [*workers.pids, guard]))


def test_nothing_is_left_when_the_user_is_killed() -> None:
    with process("-c", USER, json.dumps(SHARES)) as user:
        pids = json.loads(line_of(user))
        guard = guard_of(pids[0])
        assert guard_of(guard) == user.pid
        user.kill()
        assert nothing_left(pids, guard)


def test_nothing_is_left_when_a_child_of_the_user_outlives_it() -> None:
    """The child inherits the pipe whose end tells the guard of the user's death."""
    child = "os.fork() or (sys.stdin.read(), os._exit(0))"
    code = USER.replace("    sys", f"    {child}\n    sys")
    with process("-c", f"import os{code}", json.dumps(SHARES)) as user:
        pids = json.loads(line_of(user))
        guard = guard_of(pids[0])
        user.kill()
        assert nothing_left(pids, guard)


def test_nothing_is_left_when_the_guard_is_killed() -> None:
    with local_cluster(SHARES) as workers:
        guard = guard_of(workers.pids[0])
        os.kill(guard, signal.SIGKILL)
        assert eventually(lambda: not workers.alive(0) and not workers.alive(1))
    assert not groups_of(guard)


def test_the_next_start_removes_groups_of_a_dead_guard() -> None:
    if not LIMITED:
        return
    dead = subprocess.Popen(["true"])
    dead.wait()
    (controller,) = find_controllers(["cpu"])
    stale = make_group(controller, dead.pid, 0).directory
    used = make_group(controller, os.getpid(), 0).directory
    try:
        remove_stale(controller)
        assert not stale.exists()
        assert used.exists()
    finally:
        remove_groups([controller.prefix], os.getpid())
    assert not used.exists()

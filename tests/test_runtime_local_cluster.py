"""Local clusters: real servers under real limits, and nothing of them left behind.

Where the system allows no control groups, workers have whole cores, and limits must be refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from moirai_tf.bench import local_cluster as module
from moirai_tf.bench.guard import remove_groups
from moirai_tf.bench.local_cluster import LocalCluster, local_cluster
from moirai_tf.bench.worker_limits import (
    Controller,
    choose_cores,
    find_controllers,
    make_group,
    pack,
    remove_stale,
)
from moirai_tf.cluster import read_cluster
from moirai_tf.errors import MoiraiError

ROOT = Path(__file__).resolve().parent.parent
DEVICES = [f"/job:worker/replica:0/task:{task}/device:CPU:0" for task in (0, 1)]
TIMEOUT_S = 60.0

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


def _limits_allowed() -> bool:
    try:
        for controller in find_controllers(["cpu", "memory"]):
            try:
                make_group(controller, os.getpid(), 0)
            finally:
                remove_groups([controller.prefix], os.getpid())
    except MoiraiError:
        return False
    return True


LIMITED = _limits_allowed()
THREADS_HAVE_NAMES = not tf.__version__.startswith(("2.18.", "2.19.", "2.20."))
SHARES = [0.6, 0.4] if LIMITED else [1.0, 1.0]
MEMORY = [None, 200_000_000 if LIMITED else None]


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


def _status(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{key}:"))


def _guard(pid: int) -> int:
    return int(_status(pid, "PPid"))


def _gone(pid: int) -> bool:
    try:
        return _status(pid, "State").startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def _groups(guard: int) -> list[Path]:
    if not LIMITED:
        return []
    folders = {controller.directory for controller in find_controllers(["cpu", "memory"])}
    return [group for folder in folders for group in folder.glob(f"moirai_{guard}_*")]


def _eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def _nothing_left(pids: list[int], guard: int) -> bool:
    return _eventually(lambda: all(map(_gone, [*pids, guard])) and not _groups(guard))


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process, killed at the end if it is still there."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


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
        assert {_status(thread, "Cpus_allowed_list") for thread in threads} == {str(core)}


def test_operators_come_after_messages(workers: LocalCluster) -> None:
    for pid in workers.pids:
        names = {
            int(task.name): (task / "comm").read_text().strip()
            for task in Path(f"/proc/{pid}/task").iterdir()
        }
        computing = [thread for thread, name in names.items() if name == "tf_Compute"]
        niceness = {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in names}
        if not THREADS_HAVE_NAMES:
            assert not computing
            assert set(niceness.values()) == {os.getpriority(os.PRIO_PROCESS, 0)}
            continue
        assert len(computing) >= 8
        assert {niceness[thread] for thread in computing} == {5}
        receiving = {niceness[thread] for thread in names if thread not in computing}
        assert 0 in receiving, "only those that a computing thread started are as nice"


def test_a_thread_that_is_ready_gets_its_turn_within_a_tick(workers: LocalCluster) -> None:
    """An idle worker has one thread that goes on waking up, and none that computes."""

    def wakes() -> dict[int, int]:
        tasks = Path(f"/proc/{workers.pids[0]}/task").iterdir()
        threads = [int(task.name) for task in tasks]
        return {thread: int(_status(thread, "voluntary_ctxt_switches")) for thread in threads}

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
    guard = _guard(workers.pids[0])
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
        int(_status(workers.pids[1], key).split()[0]) * 1024 for key in ("RssAnon", "VmRSS")
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
    guard = _guard(workers.pids[0])
    assert "tensorflow" not in Path(f"/proc/{guard}/maps").read_text()
    assert os.getsid(guard) == guard != os.getsid(0)
    os.kill(guard, signal.SIGINT)
    assert workers.alive(0)


def test_a_paused_worker_is_alive_and_goes_on(workers: LocalCluster) -> None:
    workers.pause(1)
    try:
        assert _eventually(lambda: _status(workers.pids[1], "State").startswith("T"))
        assert workers.alive(1)
    finally:
        workers.resume(1)
    assert _eventually(lambda: not _status(workers.pids[1], "State").startswith("T"))


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
        with _process("-c", FILLING_CLIENT, f"grpc://{address}") as client:
            assert _line(client) == "True\n"
            assert _eventually(lambda: not workers.alive(0))


# What is left


def test_nothing_is_left_after_an_exception_with_a_dead_and_a_paused_worker() -> None:
    with contextlib.suppress(ZeroDivisionError), local_cluster(SHARES) as workers:
        guard = _guard(workers.pids[0])
        assert len(_groups(guard)) == (2 if LIMITED else 0)
        workers.kill(1)
        assert not workers.alive(1)
        workers.kill(1)
        workers.pause(0)
        raise ZeroDivisionError
    assert not _groups(guard)
    assert all(map(_gone, [*workers.pids, guard]))


def test_nothing_is_left_when_the_user_is_killed() -> None:
    with _process("-c", USER, json.dumps(SHARES)) as user:
        pids = json.loads(_line(user))
        guard = _guard(pids[0])
        assert _guard(guard) == user.pid
        user.kill()
        assert _nothing_left(pids, guard)


def test_nothing_is_left_when_a_child_of_the_user_outlives_it() -> None:
    """The child inherits the pipe whose end tells the guard of the user's death."""
    child = "os.fork() or (sys.stdin.read(), os._exit(0))"
    code = USER.replace("    sys", f"    {child}\n    sys")
    with _process("-c", f"import os{code}", json.dumps(SHARES)) as user:
        pids = json.loads(_line(user))
        guard = _guard(pids[0])
        user.kill()
        assert _nothing_left(pids, guard)


def test_nothing_is_left_when_the_guard_is_killed() -> None:
    with local_cluster(SHARES) as workers:
        guard = _guard(workers.pids[0])
        os.kill(guard, signal.SIGKILL)
        assert _eventually(lambda: not workers.alive(0) and not workers.alive(1))
    assert not _groups(guard)


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


# What cannot start


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Process ids of the guards that the test starts."""
    started: list[int] = []
    start = module.guarded

    @contextlib.contextmanager
    def noted(controllers: list[Controller]) -> Iterator[subprocess.Popen[bytes]]:
        with start(controllers) as guard:
            started.append(guard.pid)
            yield guard

    monkeypatch.setattr(module, "guarded", noted)
    return started


def _children() -> set[int]:
    pid = os.getpid()
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


def test_a_worker_that_dies_at_its_start_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guards: list[int]
) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no libmagic.so here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        pytest.raises(MoiraiError, match=r"task \d died with code 1: .*no libmagic.so here"),
        local_cluster(SHARES),
    ):
        pass
    assert _gone(guards[0])
    assert not _groups(guards[0])


def test_a_taken_port_is_an_error(monkeypatch: pytest.MonkeyPatch, guards: list[int]) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(module, "reserved_port", lambda: contextlib.nullcontext(port))
        with (
            pytest.raises(MoiraiError, match=r"task 0 died with code 1: .*not start gRPC server"),
            local_cluster([1.0]),
        ):
            pass
    assert _gone(guards[0])


def test_reserved_ports_differ_and_stay_reserved() -> None:
    with module.reserved_port() as one, module.reserved_port() as two:
        assert one != two
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("", one))


def test_workers_that_take_too_long_are_ended(guards: list[int]) -> None:
    with (
        pytest.raises(MoiraiError, match="not ready in time"),
        local_cluster(SHARES, startup_timeout_s=0.3),
    ):
        pass
    assert _gone(guards[0])
    assert not _groups(guards[0])


def test_a_system_without_quotas_refuses_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guards: list[int]
) -> None:
    """In a directory that is no control group, files of limits must not be made up."""
    monkeypatch.setattr(
        module, "find_controllers", lambda names: [Controller(name, tmp_path, 1) for name in names]
    )
    for more in ({"shares": [0.5]}, {"shares": [1.0], "memory_bytes": [10**9]}):
        with pytest.raises(MoiraiError, match="cannot be enforced"), local_cluster(**more):
            pass
    assert [*tmp_path.iterdir()] == []
    assert all(map(_gone, guards))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": []}, "no shares"),
        ({"shares": [0.0]}, "the share 0 of a core"),
        ({"shares": [1.5]}, r"the share 1\.5 of a core"),
        ({"shares": [float("nan")]}, "the share nan of a core"),
        ({"shares": [1.0], "memory_bytes": [1, 2]}, "2 capacities of memory are given for 1 shar"),
        ({"shares": [1.0], "memory_bytes": [0]}, "not all positive"),
        ({"shares": [1.0], "threads": 0}, "0 threads"),
        ({"shares": [1.0], "cores": [4096]}, "core 4096 is none of this process's"),
        ({"shares": [1.0], "cores": []}, "0 cores are given for 1 shares"),
    ],
)
def test_impossible_clusters_are_refused(options: dict[str, object], message: str) -> None:
    before = _children()
    with pytest.raises(MoiraiError, match=message), local_cluster(**options):  # type: ignore[arg-type]
        pass
    assert _children() == before


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(MoiraiError, match=r"not Linux 5\.3"), local_cluster([1.0]):
        pass


# Cores


@pytest.mark.parametrize(
    ("shares", "cores", "loads"),
    [
        ([0.8, 0.6, 0.4, 0.2], [4, 7], [1.0, 1.0]),
        ([1.0, 1.0], [4, 7], [1.0, 1.0]),
        ([0.5, 1.0], [4, 7], [1.0, 0.5]),
        # The next share to the emptiest core each time would give 0.7 and 0.5.
        ([0.3, 0.3, 0.2, 0.2, 0.2], [0, 1], [0.6, 0.6]),
        ([0.5, 0.5], [0, 1, 2], [0.5, 0.5, 0.0]),
        ([0.1] * 16, [0, 1, 2, 3], [0.4] * 4),
    ],
)
def test_cores_are_loaded_equally(
    shares: list[float], cores: list[int], loads: list[float]
) -> None:
    chosen = pack(shares, cores)
    found = [sum(s for s, c in zip(shares, chosen, strict=True) if c == core) for core in cores]
    assert sorted(found) == pytest.approx(sorted(loads))


def test_a_core_is_not_promised_twice() -> None:
    core = min(os.sched_getaffinity(0))
    assert choose_cores([0.3, 0.7], [core, core]) == (core, core)
    with pytest.raises(MoiraiError, match=rf"shares on core {core} add up to 1\.1"):
        choose_cores([0.4, 0.7], [core, core])


# Where groups are made


def test_groups_are_made_below_the_own_one_of_version_1() -> None:
    mounts = (
        "29 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n"
        "33 29 0:30 /docker/ab12 /groups/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    )
    own = "4:cpu,cpuacct:/docker/ab12/inner\n0::/\n"
    assert find_controllers(["cpu"], mounts, own) == [
        Controller("cpu", Path("/groups/cpu/inner"), 1)
    ]
    outside = "4:cpu,cpuacct:/elsewhere\n"
    assert find_controllers(["cpu"], mounts, outside) == [Controller("cpu", Path("/groups/cpu"), 1)]
    with pytest.raises(MoiraiError, match="no control group near this process's own offers 'memor"):
        find_controllers(["cpu", "memory"], mounts, own)


def test_groups_are_made_where_version_2_allows_limits(tmp_path: Path) -> None:
    """A group that has processes cannot have limited groups below it, but the one above can."""
    (tmp_path / "user" / "shell").mkdir(parents=True)
    for group, controllers in (("", "cpu memory"), ("user", "memory"), ("user/shell", "")):
        (tmp_path / group / "cgroup.subtree_control").write_text(f"{controllers}\n")
    mounts = f"30 25 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw,nsdelegate\n"
    own = "0::/user/shell\n"
    below = tmp_path / "user"
    assert find_controllers(["memory"], mounts, own) == [Controller("memory", below, 2)]
    # One process is in one group, so both limits must be possible in the same.
    assert find_controllers(["cpu", "memory"], mounts, own) == [
        Controller("cpu", tmp_path, 2),
        Controller("memory", tmp_path, 2),
    ]


# The command


def _command(output: Path, *more: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    shares = [f"--shares={share}" for share in SHARES]
    return _process("-m", "tools.moirai_cluster", *shares, f"--output={output}", *more)


def test_the_command_holds_a_cluster_until_ctrl_c(tmp_path: Path) -> None:
    output = tmp_path / "cluster.yaml"
    memory = "100 MB" if LIMITED else "unlimited"
    with _command(output, "--memory=unlimited", f"--memory={memory}") as command:
        lines = [_line(command) for _ in SHARES]
        cluster = read_cluster(output)
        capacities = [device.memory_bytes for device in cluster.devices]
        assert capacities == [None, 10**8 if LIMITED else None]
        for line, device in zip(lines, cluster.devices, strict=True):
            assert line.startswith(f"{device.name} {device.address}: ")
        pids = [int(line.split()[-1]) for line in lines]
        guard = _guard(pids[0])
        os.kill(pids[1], signal.SIGKILL)
        assert command.stderr is not None
        assert any(line.startswith(f"{DEVICES[1]} is gone") for line in command.stderr)
        command.send_signal(signal.SIGINT)
        assert command.wait(TIMEOUT_S) == 0
        assert _nothing_left(pids, guard)
    assert [*tmp_path.iterdir()] == []


def test_the_command_ends_with_the_command_that_it_runs(tmp_path: Path) -> None:
    output = tmp_path / "cluster.yaml"
    with _command(output, '--run=cat "$MOIRAI_CLUSTER"; exit 7') as command:
        stdout, _ = command.communicate(timeout=TIMEOUT_S)
        assert command.returncode == 7
    for name in DEVICES:
        assert f"name: {name}\n" in stdout
    assert [*tmp_path.iterdir()] == []


def test_the_command_leaves_the_files_of_others_alone(tmp_path: Path) -> None:
    output = tmp_path / "cluster.yaml"
    output.write_text("another's")
    with _command(output) as command:
        _, stderr = command.communicate(timeout=TIMEOUT_S)
        assert command.returncode == 1
    assert f"error: the output {output} exists" in stderr
    assert output.read_text() == "another's"


def test_the_command_explains_itself() -> None:
    with _process("-m", "tools.moirai_cluster", "--help") as command:
        stdout, _ = command.communicate(timeout=TIMEOUT_S)
    for text in ("Example:", "--output:", "--shares:", "--run:"):
        assert text in stdout

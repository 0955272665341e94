"""Local clusters that cannot start, the cores of the others, and where their groups are made."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from moirai_tf.bench import local_cluster as module
from moirai_tf.bench.local_cluster import local_cluster
from moirai_tf.bench.worker_limits import Controller, choose_cores, find_controllers, pack
from moirai_tf.errors import MoiraiError
from tests.local_clusters import (
    SHARES,
    gone,
    groups_of,
)

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
    assert gone(guards[0])
    assert not groups_of(guards[0])


def test_a_taken_port_is_an_error(monkeypatch: pytest.MonkeyPatch, guards: list[int]) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(module, "reserved_port", lambda: contextlib.nullcontext(port))
        with (
            pytest.raises(MoiraiError, match=r"task 0 died with code 1: .*not start gRPC server"),
            local_cluster([1.0]),
        ):
            pass
    assert gone(guards[0])


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
    assert gone(guards[0])
    assert not groups_of(guards[0])


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
    assert all(map(gone, guards))


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

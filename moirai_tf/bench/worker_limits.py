"""What a worker of a local cluster may use: its core, and by control groups its time and memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moirai_tf.bench.guard import remove_groups
from moirai_tf.errors import MoiraiError

_PREFIX = "moirai_"
_QUOTA_US = 1000
"""The kernel's smallest quota, for the smoothest slow-down."""
_MAX_PERIOD_US = 1_000_000
MIN_SHARE = _QUOTA_US / _MAX_PERIOD_US
"""Smallest share of a core that the kernel can enforce."""
_HEADROOM_BYTES = 128 << 20
"""For what TensorFlow keeps of memory that it no longer uses, and for tensors on their way."""


@dataclass(frozen=True)
class Controller:
    """Where this process may make groups under one controller, `cpu` or `memory`."""

    name: str
    directory: Path
    version: int
    """1, or 2 for the unified hierarchy."""

    @property
    def prefix(self) -> str:
        """Path of every group up to the process id of its guard."""
        return str(self.directory / _PREFIX)


@dataclass(frozen=True)
class Group:
    """One worker's group under one controller."""

    controller: Controller
    directory: Path
    task: int

    def limit(self, value: float) -> None:
        """Limits what the group's processes may take from now on.

        Args:
          value: of `cpu`, the part of one core; of `memory`, how many bytes more than they hold
            now, to which a fixed headroom comes.

        Raises:
          MoiraiError: the system does not allow it.
        """
        if not self._read("cgroup.procs"):
            raise _refused(self.controller.name, f"the worker is not in {self.directory}")
        if self.controller.name == "cpu":
            period_us = round(_QUOTA_US / value)
            if self.controller.version == 2:
                self._write("cpu.max", f"{_QUOTA_US} {period_us}")
            else:
                self._write("cpu.cfs_period_us", period_us)
                self._write("cpu.cfs_quota_us", _QUOTA_US)
            return
        limit = self._memory_in_use() + int(value) + _HEADROOM_BYTES
        if self.controller.version == 2:
            self._write("memory.max", limit)
            self._write_if_there("memory.swap.max", 0)
        else:
            self._write("memory.limit_in_bytes", limit)
            self._write_if_there("memory.memsw.limit_in_bytes", limit)

    def unlimit(self) -> None:
        """Sets no limit, which proves that one can be set; raises as `limit`."""
        unlimited = {
            ("cpu", 1): ("cpu.cfs_quota_us", -1),
            ("cpu", 2): ("cpu.max", "max"),
            ("memory", 1): ("memory.limit_in_bytes", -1),
            ("memory", 2): ("memory.max", "max"),
        }
        self._write(*unlimited[self.controller.name, self.controller.version])

    def _memory_in_use(self) -> int:
        """Bytes that cannot be dropped: the process's own, and files that it has mapped."""
        keys = {"anon", "file_mapped"} if self.controller.version == 2 else {"rss", "mapped_file"}
        lines = self._read("memory.stat").splitlines()
        return sum(int(value) for key, value in map(str.split, lines) if key in keys)

    def _read(self, file: str) -> str:
        try:
            return _text(self.directory / file)
        except OSError as error:
            raise _refused(self.controller.name, f"{error.filename}: {error.strerror}") from error

    def _write_if_there(self, file: str, value: object) -> None:
        """Of swapping, which not every kernel counts: swapped memory would be unlimited."""
        if (self.directory / file).exists():
            self._write(file, value)

    def _write(self, file: str, value: object) -> None:
        # Without O_CREAT: in a directory that is no control group, nothing must seem to work.
        try:
            descriptor = os.open(self.directory / file, os.O_WRONLY)
            try:
                os.write(descriptor, str(value).encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            what = f"{self.directory / file}: {error.strerror}"
            raise _refused(self.controller.name, what) from error


def find_controllers(
    names: Sequence[str], mounts: str | None = None, memberships: str | None = None
) -> list[Controller]:
    """Where groups can be made, in or near the group of this process: its own limits hold on.

    Args:
      names: of `cpu` and `memory`.
      mounts: text of `/proc/self/mountinfo`; read if None.
      memberships: text of `/proc/self/cgroup`; read if None.

    Raises:
      MoiraiError: a controller is not mounted, or not available to this process.
    """
    mounted = list(_mounts(_text("/proc/self/mountinfo") if mounts is None else mounts))
    own = dict(_memberships(_text("/proc/self/cgroup") if memberships is None else memberships))
    found: dict[str, Controller] = {}
    for kind, root, mount_point, options in mounted:
        for name in set(names) & set(options) if kind == "cgroup" else ():
            inside = _relative(own.get(name, "/"), root)
            found[name] = Controller(name, mount_point / inside, 1)
    # A process is in one group of version 2, which must have all that version 1 does not offer.
    missing = [name for name in names if name not in found]
    for kind, root, mount_point, _ in mounted:
        if kind == "cgroup2" and missing:
            inside = _relative(own.get("", "/"), root)
            directory = _nearest(mount_point, inside, set(missing))
            if directory is not None:
                found.update({name: Controller(name, directory, 2) for name in missing})
    for name in missing:
        if name not in found:
            raise _refused(name, f"no control group near this process's own offers {name!r}")
    return [found[name] for name in names]


def _nearest(mount_point: Path, inside: Path, names: set[str]) -> Path | None:
    """The group of version 2, or the nearest above it, below which these can be limited.

    A group with processes of its own has no limited groups below it, so it is often not the first.
    """
    for group in (inside, *inside.parents):
        directory = mount_point / group
        with contextlib.suppress(OSError):
            if names <= set(_text(directory / "cgroup.subtree_control").split()):
                return directory
    return None


def make_group(controller: Controller, guard: int, task: int) -> Group:
    """A group without limits yet, for one worker of a guard.

    Raises:
      MoiraiError: the system does not allow it.
    """
    directory = Path(f"{controller.prefix}{guard}_{task}")
    try:
        directory.mkdir(exist_ok=True)  # in version 2 it is every controller's
    except OSError as error:
        raise _refused(controller.name, f"{directory}: {error.strerror}") from error
    group = Group(controller, directory, task)
    group.unlimit()
    return group


def remove_stale(controller: Controller) -> None:
    """Removes the groups whose guard is gone."""
    for directory in controller.directory.glob(f"{_PREFIX}*_*"):
        guard = directory.name.removeprefix(_PREFIX).partition("_")[0]
        if guard.isdigit() and not Path("/proc", guard).exists():
            remove_groups([controller.prefix], int(guard))


def _memberships(text: str) -> Iterator[tuple[str, str]]:
    """(controller, path) of this process's groups; version 2 is the controller ''."""
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            yield name, path


def _mounts(text: str) -> Iterator[tuple[str, str, Path, list[str]]]:
    """(file system, its directory that is mounted, mount point, options) of every mount."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        root, mount_point = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        yield kind, root, Path(mount_point), options.split(",")


def _relative(path: str, root: str) -> Path:
    """A group's path below what is mounted; the mounted directory itself if it lies outside."""
    inside = os.path.relpath(path, root)
    return Path() if inside.startswith("..") else Path(inside)


def _text(file: str | Path) -> str:
    return Path(file).read_text(encoding="utf-8")


def _refused(controller: str, what: str) -> MoiraiError:
    limit = {"cpu": "a share of a core", "memory": "a limit of memory"}[controller]
    return MoiraiError(
        f"{limit} cannot be enforced: {what}",
        why="a worker without its limit would be another device than the one asked for",
        fix="run as root on Linux with the control groups "
        f"of {controller!r} mounted and writable, or ask for no such limit",
    )


_KEPT = 1000
"""Partial packings that are followed up: all of them for about ten workers."""
_TOLERANCE = 1e-9


def choose_cores(shares: Sequence[float], cores: Sequence[int] | None = None) -> tuple[int, ...]:
    """A core for every worker.

    Args:
      shares: the part of a core that each worker gets.
      cores: the core of every worker; if None, the cores that this process may use are loaded as
        equally as possible.

    Raises:
      MoiraiError: shares of one core add up to more than 1, or a core is not there.
    """
    usable = sorted(os.sched_getaffinity(0))
    chosen = tuple(cores) if cores is not None else pack(shares, usable)
    if len(chosen) != len(shares):
        raise _fault(f"{len(chosen)} cores are given for {len(shares)} shares")
    for core in chosen:
        if core not in usable:
            raise _fault(f"core {core} is none of this process's cores {usable}")
        load = sum(share for share, other in zip(shares, chosen, strict=True) if other == core)
        if load > 1 + _TOLERANCE:
            raise _fault(f"the shares on core {core} add up to {load:g}")
    return chosen


def pack(shares: Sequence[float], cores: Sequence[int]) -> tuple[int, ...]:
    """A core for every share, so that the sums per core are as equal as possible."""
    order = sorted(range(len(shares)), key=lambda i: -shares[i])
    # Ways to pack the shares so far: the load of every core, and the core of every share.
    ways: list[tuple[tuple[float, ...], tuple[int, ...]]] = [((0.0,) * len(cores), ())]
    for i in order:
        # Which core has which load does not matter to what follows, so one way each is kept.
        longer: dict[tuple[float, ...], tuple[tuple[float, ...], tuple[int, ...]]] = {}
        for loads, chosen in ways:
            for core in range(len(cores)):
                new = (*loads[:core], loads[core] + shares[i], *loads[core + 1 :])
                key = tuple(sorted(round(load, 9) for load in new))
                longer.setdefault(key, (new, (*chosen, core)))
        ways = sorted(longer.values(), key=lambda way: sum(x * x for x in way[0]))[:_KEPT]
    by_share = dict(zip(order, ways[0][1], strict=True))
    return tuple(cores[by_share[i]] for i in range(len(shares)))


def _fault(what: str) -> MoiraiError:
    return MoiraiError(
        what,
        why="every worker gets its whole share of one core, or it would be slower than asked for",
        fix="ask for fewer workers or smaller shares, at most 1 per core of this machine",
    )

"""Devices and directed links as frozen values that cannot contradict themselves."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from moirai_tf.errors import MoiraiError

DEVICE_TYPES = ("CPU", "GPU")

_NAME = re.compile(
    r"(?:/job:(?P<job>[a-zA-Z]\w*)/replica:\d+/task:\d+)?/device:(?P<type>[A-Za-z_]+):(?P<index>\d+)",
    re.ASCII,
)
_ADDRESS = re.compile(r"[\w.-]+:\d{1,5}", re.ASCII)
_MOST_DEVICES = 1024
"""Of a cluster, and of a type in a process: each is made, and each pair has a link."""
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Device:
    """A device of TensorFlow's: a name, a capacity, and what its analytical costs need.

    Raises:
      MoiraiError: naming the field that is wrong.
    """

    name: str
    """TensorFlow's name: `/device:CPU:1`, or `/job:worker/replica:0/task:1/device:GPU:0`."""
    type: str
    """`CPU` or `GPU`, as in the name."""
    memory_bytes: int | None = None
    """Capacity; None is unlimited."""
    speed: float = 1.0
    """Declared factor: an operator takes its measured or computed time divided by this."""
    address: str = ""
    """`host:port` of the TensorFlow server that owns the device; empty for this process."""
    frequency_mhz: int | None = None
    num_cores: int | None = None
    """Grappler counts one operation per core and cycle of a CPU, so give cores x vector lanes;
    of a GPU give its streaming multiprocessors."""
    memory_bytes_per_s: int | None = None
    """Bandwidth between the device and its own memory."""
    architecture: str = ""
    """A GPU's compute capability, such as `7.5`."""
    model: str = ""
    """A GPU's name, such as `Tesla V100-SXM2-16GB`; empty if it is not known."""
    launch_ns: int | None = None
    """What a GPU's kernel takes however little it does; None for what is usual."""

    def __post_init__(self) -> None:
        match = _NAME.fullmatch(self.name)
        if match is None:
            raise _fault("name", f"{self.name!r} is not a TensorFlow device name")
        if len(match["index"]) > len(str(_MOST_DEVICES)) or int(match["index"]) >= _MOST_DEVICES:
            raise _fault("name", f"{self.name!r} is not one of the first {_MOST_DEVICES} devices")
        if match["type"] not in DEVICE_TYPES or self.type not in DEVICE_TYPES:
            unknown = match["type"] if match["type"] not in DEVICE_TYPES else self.type
            raise _fault("type", f"{unknown!r} is unknown; known are {', '.join(DEVICE_TYPES)}")
        if match["type"] != self.type:
            raise _fault("type", f"{self.type!r} contradicts the name {self.name!r}")
        if self.memory_bytes is not None and self.memory_bytes < 0:
            raise _fault("memory", f"{self.memory_bytes} bytes is negative")
        if not 0 < self.speed < float("inf"):
            raise _fault("speed", f"{self.speed} is not a positive number")
        if self.address and (not _ADDRESS.fullmatch(self.address) or match["job"] is None):
            raise _fault("address", f"{self.address!r} is not the host:port of a device with a job")
        for field in ("frequency_mhz", "num_cores", "memory_bytes_per_s"):
            value = getattr(self, field)
            if value is not None and value <= 0:
                raise _fault(field, f"{value} is not positive")
        if self.launch_ns is not None and self.launch_ns < 0:
            raise _fault("launch_overhead", f"{self.launch_ns} ns is negative")

    @property
    def task(self) -> str:
        """The part of the name that says whose it is: `/job:worker/replica:0/task:1`, or empty."""
        return task_of(self.name)

    @property
    def local(self) -> bool:
        """Whether it is a logical CPU of this process, so that operators can be timed on it."""
        here = self.name.startswith(("/device:", "/job:localhost/replica:0/task:0/"))
        return here and self.type == "CPU" and not self.address


@dataclass(frozen=True, slots=True)
class Link:
    """The way from one device to another; the way back is a link of its own.

    Raises:
      MoiraiError: naming the field that is wrong.
    """

    source: str
    target: str
    latency_ns: int
    bandwidth_bytes_per_s: int

    def __post_init__(self) -> None:
        if self.latency_ns < 0:
            raise _fault("latency", f"{self.latency_ns} ns is negative")
        if self.bandwidth_bytes_per_s <= 0:
            raise _fault("bandwidth", f"{self.bandwidth_bytes_per_s} bytes/s is not positive")

    def transfer_ns(self, nbytes: int) -> int:
        """Latency + bytes / bandwidth, rounded up to whole nanoseconds."""
        return self.latency_ns - (-nbytes * _NS_PER_S // self.bandwidth_bytes_per_s)


@dataclass(frozen=True)
class Cluster:
    """Devices that are all linked to each other, both ways.

    Raises:
      MoiraiError: a device twice, no CPU, a pair without a link, a link twice or to nowhere.
    """

    name: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    client: str = ""
    """CPU device of feeds and fetches; empty for the first CPU."""

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        if len(names) > _MOST_DEVICES:
            raise _fault("devices", f"{len(names)} are more than {_MOST_DEVICES}")
        for i, name in enumerate(names):
            if name in names[:i]:
                raise _fault(f"devices[{i}].name", f"{name!r} is devices[{names.index(name)}] too")
        cpus = [device.name for device in self.devices if device.type == "CPU"]
        if not cpus:
            raise _fault("devices", "no CPU; strings, host operators, feeds and fetches need one")
        if self.client and self.client not in cpus:
            raise _fault("client", f"{self.client!r} is none of the CPUs {', '.join(cpus)}")
        object.__setattr__(self, "client", self.client or cpus[0])
        self._check_links(names)

    def _check_links(self, names: list[str]) -> None:
        pairs = [(link.source, link.target) for link in self.links]
        wanted = dict.fromkeys(itertools.permutations(names, 2))
        for pair in pairs:
            if pair not in wanted:
                raise _fault("links", f"{pair[0]} -> {pair[1]} joins no two devices")
        if len(set(pairs)) < len(pairs):
            twice = Counter(pairs).most_common(1)[0][0]
            raise _fault("links", f"{twice[0]} -> {twice[1]} is there twice")
        missing = [pair for pair in wanted if pair not in self._by_pair]
        if missing:
            source, target = missing[0]
            more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
            raise _fault("links", f"{source} -> {target}{more} missing and no default_link given")

    @cached_property
    def addresses(self) -> Mapping[str, str]:
        """Task (`/job:worker/replica:0/task:1`) -> `host:port` of its TensorFlow server.

        Raises:
          MoiraiError: only some devices have an address, or a task has two.
        """
        found: dict[str, str] = {}
        for i, device in enumerate(self.devices):
            if not device.address:
                continue
            if found.setdefault(device.task, device.address) != device.address:
                raise _fault(f"devices[{i}].address", f"task {device.task} has another one too")
        if found:
            for i, device in enumerate(self.devices):
                if not device.address:
                    raise _fault(f"devices[{i}].address", f"{device.name!r} alone has none")
        return found

    @property
    def remote(self) -> bool:
        """Whether the devices belong to TensorFlow servers that can be reached."""
        return bool(self.addresses)

    @cached_property
    def _by_pair(self) -> Mapping[tuple[str, str], Link]:
        return {(link.source, link.target): link for link in self.links}

    def device(self, name: str) -> Device:
        """The device of that name.

        Raises:
          MoiraiError: there is none.
        """
        for device in self.devices:
            if device.name == name:
                return device
        raise _fault("devices", f"there is no {name!r} in cluster {self.name!r}")

    def transfer_ns(self, nbytes: int, source: str, target: str) -> int:
        """Time to move so many bytes from device to device, in whole nanoseconds; 0 within one."""
        return 0 if source == target else self._by_pair[source, target].transfer_ns(nbytes)


def task_of(name: str) -> str:
    """`/job:worker/replica:0/task:1` of a device's name; empty of `/device:CPU:0`."""
    return name.rpartition("/device:")[0]


def within_task(name: str) -> str:
    """`CPU:0` of `/job:worker/replica:0/task:1/device:CPU:0`."""
    return name.rpartition("/device:")[2]


def device_type(name: str) -> str:
    """`CPU` of the same."""
    return within_task(name).partition(":")[0]


def _fault(field: str, what: str) -> MoiraiError:
    return MoiraiError(
        f"{field}: {what}",
        why="operators are placed, and their times predicted, from the cluster's description",
        fix="correct the cluster; docs/cluster.md describes every field",
    )

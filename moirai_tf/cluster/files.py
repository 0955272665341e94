"""Cluster files: YAML with units, strictly validated, both ways."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import yaml
from typing_extensions import NotRequired, TypedDict

from moirai_tf.cluster import units
from moirai_tf.cluster.cluster import Cluster, Device, Link
from moirai_tf.errors import MoiraiError
from moirai_tf.records import MOST_WHOLE, Format, write_text

T = TypeVar("T")

_FORMAT = Format(
    why="the cluster file decides where operators can go and what transfers cost",
    fix="correct this field; docs/cluster.md describes the format",
    most_bytes=8 << 20,
)


class _DescribedDevice(TypedDict):
    """A device; quantities are texts with a unit."""

    name: str
    type: NotRequired[str | None]
    memory: NotRequired[Any]
    speed: NotRequired[float | None]
    address: NotRequired[str | None]
    frequency_mhz: NotRequired[int | None]
    num_cores: NotRequired[int | None]
    memory_bandwidth: NotRequired[Any]
    architecture: NotRequired[str | None]
    model: NotRequired[str | None]
    launch_overhead: NotRequired[Any]


class _SpeedRecord(TypedDict):
    latency: Any
    bandwidth: Any


_Ends = TypedDict("_Ends", {"from": NotRequired[str | None], "to": NotRequired[str | None]})


class _LinkRecord(_SpeedRecord, _Ends):
    """A directed link, or one for each ordered pair of `between`."""

    between: NotRequired[tuple[str, ...] | None]


class _ClusterRecord(TypedDict):
    name: str
    client: NotRequired[str | None]
    devices: tuple[_DescribedDevice, ...]
    links: NotRequired[tuple[_LinkRecord, ...] | None]
    default_link: NotRequired[_SpeedRecord | None]


_MOST_NODES = 1_000_000
"""A few aliases of aliases stand for more than any memory holds."""
_MALFORMED = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
"""What PyYAML raises; all but the first for values that contradict their tag, as `!!int x`."""


def read_cluster(path: str | Path) -> Cluster:
    """Reads a cluster file.

    Raises:
      MoiraiError: naming the field that is missing, unknown or wrong.
    """
    return cluster_from_yaml(_FORMAT.read_text(path))


def write_cluster(cluster: Cluster, path: str | Path) -> None:
    """Writes a cluster file that `read_cluster` reads back to an equal cluster."""
    write_text(cluster_to_yaml(cluster), Path(path))


def cluster_from_yaml(text: str) -> Cluster:
    """A cluster from the text of its file; raises as `read_cluster`."""
    try:
        values = yaml.load(text, Loader=_StrictLoader)
    except _MALFORMED as error:
        raise _FORMAT.fault("the cluster file", f"not YAML: {error}") from error
    root = _FORMAT.record(values, _ClusterRecord)
    devices = tuple(_device(row, f"devices[{i}]") for i, row in enumerate(root["devices"]))
    return Cluster(
        name=root["name"],
        devices=devices,
        links=tuple(_links(root, [device.name for device in devices])),
        client=root.get("client") or "",
    )


def cluster_to_yaml(cluster: Cluster) -> str:
    """The text of a cluster's file."""
    data = {
        "name": cluster.name,
        "client": cluster.client,
        "devices": [_device_data(device) for device in cluster.devices],
        "links": [
            {
                "from": link.source,
                "to": link.target,
                "latency": units.show(link.latency_ns, units.NANOSECONDS),
                "bandwidth": units.show(link.bandwidth_bytes_per_s, units.BYTES_PER_S),
            }
            for link in cluster.links
        ],
    }
    return str(yaml.safe_dump(data, sort_keys=False))


class _StrictLoader(yaml.SafeLoader):
    """YAML's own loader keeps the last of two equal keys without a word, and expands aliases."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _expanded(node, {}) > _MOST_NODES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_NODES} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add((key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key)))
        return super().construct_mapping(node, deep)


def _expanded(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node is with every alias replaced by what it stands for.

    Raises:
      YAMLError: an alias stands for what holds it.
    """
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise yaml.YAMLError(f"an alias stands for what holds it: {node.start_mark}")
        return count
    known[id(node)] = None
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = itertools.chain(*inner) if isinstance(node, yaml.MappingNode) else inner
    count = 1 + sum(_expanded(part, known) for part in parts)
    known[id(node)] = count
    return count


def _device(row: _DescribedDevice, path: str) -> Device:
    speed = row.get("speed")
    return _located(
        path,
        lambda: Device(
            name=row["name"],
            type=row.get("type") or row["name"].rpartition(":")[0].rpartition(":")[2],
            memory_bytes=_optional(row.get("memory"), f"{path}.memory", units.BYTES),
            speed=1.0 if speed is None else speed,
            address=row.get("address") or "",
            frequency_mhz=row.get("frequency_mhz"),
            num_cores=row.get("num_cores"),
            memory_bytes_per_s=_optional(
                row.get("memory_bandwidth"), f"{path}.memory_bandwidth", units.BYTES_PER_S
            ),
            architecture=row.get("architecture") or "",
            model=row.get("model") or "",
            launch_ns=_optional(
                row.get("launch_overhead"), f"{path}.launch_overhead", units.NANOSECONDS
            ),
        ),
    )


def _links(root: _ClusterRecord, names: list[str]) -> Iterator[Link]:
    """The links of the file, then the default link for every pair that has none."""
    linked: set[tuple[str, str]] = set()
    for i, row in enumerate(root.get("links") or ()):
        for link in _link(row, f"links[{i}]", names):
            if (link.source, link.target) in linked:
                raise _FORMAT.fault("links", f"{link.source} -> {link.target} is there twice")
            linked.add((link.source, link.target))
            yield link
    default = root.get("default_link")
    if default is None:
        return
    for source, target in itertools.permutations(dict.fromkeys(names), 2):
        if (source, target) not in linked:
            yield _speed_of_link(default, "default_link", source, target)


def _link(row: _LinkRecord, path: str, names: list[str]) -> list[Link]:
    """One directed link (`from`, `to`), or one for each ordered pair of `between`."""
    group = row.get("between")
    ends = {f"{path}.from": row.get("from"), f"{path}.to": row.get("to")}
    if group is not None and any(ends.values()):
        raise _FORMAT.fault(path, "a link has either `between`, or `from` and `to`")
    if group is not None:
        ends = {f"{path}.between[{i}]": name for i, name in enumerate(group)}
    for where, name in ends.items():
        if name is None:
            raise _FORMAT.fault(where, "missing")
        if name not in names:
            what = f"there is no device {name!r}; known are {', '.join(names)}"
            raise _FORMAT.fault(where, what)
    members = [name for name in ends.values() if name is not None]
    if group is not None and len(set(members)) < len(members):
        raise _FORMAT.fault(f"{path}.between", "it names a device twice")
    pairs = itertools.permutations(members, 2) if group is not None else [tuple(members)]
    return [_speed_of_link(row, path, source, target) for source, target in pairs]


def _speed_of_link(row: _SpeedRecord, path: str, source: str, target: str) -> Link:
    latency = _quantity(row["latency"], f"{path}.latency", units.NANOSECONDS)
    bandwidth = _quantity(row["bandwidth"], f"{path}.bandwidth", units.BYTES_PER_S)
    return _located(path, lambda: Link(source, target, latency, bandwidth))


def _optional(value: Any, path: str, known: Mapping[str, Fraction]) -> int | None:
    return None if value is None else _quantity(value, path, known)


def _quantity(value: Any, path: str, known: Mapping[str, Fraction]) -> int:
    try:
        number = units.parse(str(value), known)
    except ValueError as error:
        raise _FORMAT.fault(path, str(error)) from error
    if number > MOST_WHOLE:
        raise _FORMAT.fault(path, "a whole number of more than 63 bits")
    return number


def _located(path: str, build: Callable[[], T]) -> T:
    """The built value; an error of it names the place in the file before its own field."""
    try:
        return build()
    except MoiraiError as error:
        if error.rule.startswith(path):
            raise
        raise MoiraiError(f"{path}.{error.rule}", why=error.why, fix=error.fix) from error


def _device_data(device: Device) -> dict[str, Any]:
    data: dict[str, Any] = {"name": device.name, "type": device.type, "speed": device.speed}
    if device.memory_bytes is not None:
        data["memory"] = units.show(device.memory_bytes, units.BYTES)
    if device.memory_bytes_per_s is not None:
        data["memory_bandwidth"] = units.show(device.memory_bytes_per_s, units.BYTES_PER_S)
    if device.launch_ns is not None:
        data["launch_overhead"] = units.show(device.launch_ns, units.NANOSECONDS)
    for key in ("address", "frequency_mhz", "num_cores", "architecture", "model"):
        if getattr(device, key) not in (None, ""):
            data[key] = getattr(device, key)
    return data

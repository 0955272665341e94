"""Cluster files: YAML with units, strictly validated, both ways."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from moirai_tf.cluster import units
from moirai_tf.cluster.cluster import Cluster, Device, Link
from moirai_tf.errors import MoiraiError
from moirai_tf.fields import Field, Format

T = TypeVar("T")

_FORMAT = Format(
    why="the cluster file decides where operators can go and what transfers cost",
    fix="correct this field; docs/cluster.md describes the format",
    most_bytes=8 << 20,
)
_MOST_NODES = 1_000_000
"""A few aliases of aliases stand for more than any memory holds."""
_MALFORMED = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
"""What PyYAML raises; all but the first for values that contradict their tag, as `!!int x`."""
_DEVICE_KEYS = (
    "name", "type", "memory", "speed", "address", "frequency_mhz", "num_cores",
    "memory_bandwidth", "architecture", "model", "launch_overhead",
)  # fmt: skip


def read_cluster(path: str | Path) -> Cluster:
    """Reads a cluster file.

    Raises:
      MoiraiError: naming the field that is missing, unknown or wrong.
    """
    return cluster_from_yaml(_FORMAT.read_text(path))


def write_cluster(cluster: Cluster, path: str | Path) -> None:
    """Writes a cluster file that `read_cluster` reads back to an equal cluster."""
    Path(path).write_text(cluster_to_yaml(cluster), encoding="utf-8")


def cluster_from_yaml(text: str) -> Cluster:
    """A cluster from the text of its file; raises as `read_cluster`."""
    try:
        root = Field(yaml.load(text, Loader=_StrictLoader), _FORMAT)
    except _MALFORMED as error:
        raise _FORMAT.fault("the cluster file", f"not YAML: {error}") from error
    root.only("name", "client", "devices", "links", "default_link")
    devices = tuple(_device(field) for field in root["devices"].elements())
    return Cluster(
        name=root["name"].text(),
        devices=devices,
        links=tuple(_links(root, [device.name for device in devices])),
        client=_text(root, "client"),
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


def _device(field: Field) -> Device:
    field.only(*_DEVICE_KEYS)
    name = field["name"].text()
    speed = field.get("speed")
    build = partial(
        Device,
        name=name,
        type=_text(field, "type") or name.rpartition(":")[0].rpartition(":")[2],
        memory_bytes=_optional_quantity(field, "memory", units.BYTES),
        speed=speed.number() if speed is not None else 1.0,
        address=_text(field, "address"),
        frequency_mhz=_integer(field, "frequency_mhz"),
        num_cores=_integer(field, "num_cores"),
        memory_bytes_per_s=_optional_quantity(field, "memory_bandwidth", units.BYTES_PER_S),
        architecture=_text(field, "architecture"),
        model=_text(field, "model"),
        launch_ns=_optional_quantity(field, "launch_overhead", units.NANOSECONDS),
    )
    return _located(build, field)


def _links(root: Field, names: list[str]) -> Iterator[Link]:
    """The links of the file, then the default link for every pair that has none."""
    linked: set[tuple[str, str]] = set()
    listed = root.get("links")
    for field in listed.elements() if listed is not None else ():
        for link in _link(field, names):
            if (link.source, link.target) in linked:
                raise _FORMAT.fault("links", f"{link.source} -> {link.target} is there twice")
            linked.add((link.source, link.target))
            yield link
    default = root.get("default_link")
    if default is None:
        return
    default.only("latency", "bandwidth")
    for source, target in itertools.permutations(dict.fromkeys(names), 2):
        if (source, target) not in linked:
            yield _speed_of_link(default, source, target)


def _link(field: Field, names: list[str]) -> list[Link]:
    """One directed link (`from`, `to`), or one for each ordered pair of `between`."""
    field.only("from", "to", "between", "latency", "bandwidth")
    group = field.get("between")
    if group is None:
        ends = tuple(field[key].one_of(names, "device") for key in ("from", "to"))
        return [_speed_of_link(field, *ends)]
    if "from" in field.value or "to" in field.value:
        raise field.fault("a link has either `between`, or `from` and `to`")
    members = [element.one_of(names, "device") for element in group.elements()]
    if len(set(members)) < len(members):
        raise group.fault("it names a device twice")
    link = _speed_of_link(field, "", "")
    return [replace(link, source=a, target=b) for a, b in itertools.permutations(members, 2)]


def _speed_of_link(field: Field, source: str, target: str) -> Link:
    latency = _quantity(field["latency"], units.NANOSECONDS)
    bandwidth = _quantity(field["bandwidth"], units.BYTES_PER_S)
    return _located(partial(Link, source, target, latency, bandwidth), field)


def _text(field: Field, key: str) -> str:
    entry = field.get(key)
    return entry.text() if entry is not None else ""


def _integer(field: Field, key: str) -> int | None:
    entry = field.get(key)
    return entry.integer() if entry is not None else None


def _optional_quantity(field: Field, key: str, known: Mapping[str, Fraction]) -> int | None:
    entry = field.get(key)
    return _quantity(entry, known) if entry is not None else None


def _quantity(field: Field, known: Mapping[str, Fraction]) -> int:
    try:
        value = units.parse(field.value if isinstance(field.value, str) else field.shown(), known)
    except ValueError as error:
        raise field.fault(str(error)) from error
    return Field(value, _FORMAT, field.path).integer()


def _located(build: Callable[[], T], field: Field) -> T:
    """The built value; an error of it names the place in the file before its own field."""
    try:
        return build()
    except MoiraiError as error:
        raise MoiraiError(f"{field.path}.{error.rule}", why=error.why, fix=error.fix) from error


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

"""Hostile files: a result or a clear error in bounded time and memory; nothing is wrongly used."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from moirai_tf.cluster import read_cluster
from moirai_tf.cost.files import read_table
from moirai_tf.errors import MoiraiError
from moirai_tf.model.input_files import read_inputs
from moirai_tf.placement import read_problem
from tests.hostile import CLUSTER, Hostile, bounded

KINDS = ("cluster", "cluster, bytes", "cost table", "instance", "schedule", "plan",
         "planned schedule", "inputs", "inputs, arrays")  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    return Hostile(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind: str, hostile: Hostile) -> None:
    assert 10 <= hostile.refused(kind, range(40)) < 40


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind: str, hostile: Hostile) -> None:
    assert set(hostile.kinds) == set(KINDS)
    assert 500 <= hostile.refused(kind, range(40, 2000)) < 1960


def _bomb(levels: int, item: str) -> str:
    rows = [f"a0: &a0 {item}"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join([*rows, f"name: *a{levels - 1}"])


_YAML = {
    "aliases of aliases": _bomb(12, "[lol]"),
    "merged aliases": "a: &a {x: 1}\n"
    + "\n".join(f"{c}: &{c} {{<<: [{', '.join([f'*{p}'] * 9)}]}}" for p, c in
                zip("abcdefghijk", "bcdefghijkl", strict=True)),
    "alias of itself": "name: &a [*a]",
    "key that holds itself": "&a {*a : 1}",
    "Python object": "name: !!python/object/apply:os.system ['touch HERE']",
    "Python name": "name: !!python/name:os.system",
    "unknown tag": "name: !launch x",
    "wrong integer": "name: !!int x",
    "wrong float": "name: !!float ''",
    "wrong boolean": "name: !!bool x",
    "wrong time": "name: !!timestamp x",
    "impossible day": "name: 2001-99-99",
    "huge integer": f"name: 0x{'f' * 9000}",
    "huge integer in a list": f"name: [0x{'f' * 9000}]",
    "huge integer as a key": f"0x{'f' * 9000}: 1",
    "huge decimal": f"name: {'9' * 9000}",
    "huge quantity": f"devices: [{{name: /device:CPU:0, memory: {'9' * 4000} TB}}]",
    "list as a key": "? [a, b]\n: 1",
    "two documents": "name: a\n---\nname: b",
    "deep": "name: " + "[" * 100_000,
    "deep and closed": "name: " + "[" * 3_000 + "]" * 3_000,
    "many keys": "".join(f"k{i}: 1\n" for i in range(20_000)),
    "not a number": "devices: [{name: /device:CPU:0, speed: .nan}]",
    "infinite": "devices: [{name: /device:CPU:0, speed: .inf}]",
    "too many devices": "name: a\ndevices:\n"
    + "".join(f"- {{name: '/job:w/replica:0/task:{i}/device:CPU:0'}}\n" for i in range(2_000)),
    "a device far away": "name: a\ndevices: [{name: /device:CPU:4000000000}]",
    "half a character": 'name: "\\ud800"\ndevices: [{name: /device:CPU:0}]',
    "the same link for ever": "name: a\ndevices: [{name: /device:CPU:0}, {name: /device:CPU:1}]\n"
    f"links: [{{between: [{', '.join(['/device:CPU:0'] * 20_000)}], latency: 1 s, "
    "bandwidth: 1 B/s}]",
}  # fmt: skip


@pytest.mark.parametrize("case", _YAML)
def test_hostile_cluster_files(case: str, tmp_path: Path) -> None:
    text = _YAML[case].replace("HERE", str(tmp_path / "here"))
    (tmp_path / "c.yaml").write_text(text)
    with bounded(), pytest.raises(MoiraiError) as caught:
        read_cluster(tmp_path / "c.yaml")
    assert len(caught.value.rule) < 2_000
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


_READERS: dict[str, Callable[[Path], object]] = {
    "cluster": read_cluster,
    "table": read_table,
    "instance": read_problem,
    "inputs": lambda path: read_inputs(path, {"x": 1}),
}


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


_FILES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "byte order mark": lambda path: path.write_bytes(b"\xef\xbb\xbf"),
    "UTF-16": lambda path: path.write_bytes(str(CLUSTER).encode("utf-16")),
    "Latin-1": lambda path: path.write_bytes("name: é".encode("latin-1")),
    "NUL": lambda path: path.write_bytes(b"\0" * 100),
    "directory": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "socket": _socket,
    "device without end": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to(path.with_name("nothing")),
    "beyond all memory": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "a process's memory": lambda path: path.symlink_to("/proc/self/mem"),
}


@pytest.mark.parametrize("reader", _READERS)
@pytest.mark.parametrize("case", _FILES)
def test_what_is_no_such_file(case: str, reader: str, tmp_path: Path) -> None:
    _FILES[case](tmp_path / "file")
    with bounded(), pytest.raises(MoiraiError):
        _READERS[reader](tmp_path / "file")


def test_byte_order_mark_before_a_sound_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfname: a\ndevices: [{name: /device:CPU:0}]")
    assert read_cluster(tmp_path / "c.yaml").name == "a"
    (tmp_path / "p.json").write_bytes(b'\xef\xbb\xbf{"name": "a", "devices": [{"name": "d"}], '
                                      b'"ops": [], "tensors": []}')  # fmt: skip
    assert read_problem(tmp_path / "p.json").name == "a"

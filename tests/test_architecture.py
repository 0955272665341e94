"""The picture in docs/architecture.md is true: rooms import only rooms that stand before them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def drawn() -> list[str]:
    """The rooms and single files of the package as the document orders them."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    (block,) = re.findall(r"imports only what stands before it:\n\n((?:    .*\n)+)", text)
    return re.findall(r"[a-z_]+", block)


def imported(file: Path) -> Iterator[str]:
    """Rooms that a file of the package imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "moirai_tf":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            root, _, rest = node.module.partition(".")
            if root == "moirai_tf":
                yield rest.partition(".")[0]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("moirai_tf."):
                    yield alias.name.split(".")[1]


def rooms() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    package = ROOT / "moirai_tf"
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        if parts != ("__init__",):
            found.setdefault(parts[0], []).append(file)
    return found


def test_every_room_is_drawn() -> None:
    assert sorted(drawn()) == sorted(rooms())


def test_imports_go_one_way() -> None:
    place = {room: number for number, room in enumerate(drawn())}
    wrong = [
        f"{file.relative_to(ROOT)} imports {other}"
        for room, files in rooms().items()
        for file in files
        for other in imported(file)
        if other != room and place[other] >= place[room]
    ]
    assert wrong == []


def test_outside_the_package_only_tests_and_benchmarks_import_tests() -> None:
    for folder in ("moirai_tf", "tools", "laboratory"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"^(from|import) tests", file.read_text(), re.MULTILINE), file

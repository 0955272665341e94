"""`BUILD` is true to the tree: read back without the code that writes it."""

from __future__ import annotations

import ast
import collections
from pathlib import Path
from typing import Any

from tests import build_file

ROOT = build_file.ROOT


def _rules(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Every rule of a BUILD file with its literal attributes; Starlark's syntax is Python's."""
    calls = [node.value for node in ast.parse(text).body if isinstance(node, ast.Expr)]
    return [
        (call.func.id, {str(word.arg): _literal(word.value) for word in call.keywords})
        for call in calls
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    ]


def _literal(node: ast.expr) -> Any:
    return None if isinstance(node, ast.Call) else ast.literal_eval(node)


def _built() -> list[tuple[str, dict[str, Any]]]:
    return _rules((ROOT / "BUILD").read_text(encoding="utf-8"))


def test_every_python_file_belongs_to_exactly_one_target() -> None:
    listed = collections.Counter(
        source
        for _, attributes in _built()
        for source in attributes.get("srcs") or ()
        if source.endswith(".py") and not source.startswith(":")
    )
    on_disk = [
        path.relative_to(ROOT).as_posix()
        for folder in ("moirai_tf", "laboratory", "tools", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert listed == collections.Counter(on_disk), build_file.__doc__


def test_every_dependency_is_a_target() -> None:
    rules = _built()
    names = {f":{attributes['name']}" for _, attributes in rules if "name" in attributes}
    used = {label for _, attributes in rules for label in attributes.get("deps", ())}
    assert used <= names


def test_every_test_file_is_a_test() -> None:
    tests = {attributes["args"][0] for rule, attributes in _built() if rule == "py_test"}
    assert tests == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")
    }


def test_every_installed_command_is_a_binary() -> None:
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (commands,) = (
        ast.literal_eval(node.value) for node in setup.body if isinstance(node, ast.Assign)
    )
    binaries = {attributes["name"] for rule, attributes in _built() if rule == "py_binary"}
    assert binaries == {f"moirai_{command}" for command in commands}


def test_the_file_is_what_the_tree_asks_for() -> None:
    written = (ROOT / "BUILD").read_text(encoding="utf-8")
    assert written == build_file.render(ROOT), build_file.__doc__


def test_dependencies_are_the_imports(tmp_path: Path) -> None:
    """Two rooms, a command and a test; every way to import something."""
    for file, text in {
        "moirai_tf/__init__.py": "from moirai_tf.place import solve",
        "moirai_tf/errors.py": "import json",
        "moirai_tf/graph/__init__.py": "",
        "moirai_tf/graph/read.py": "from ..errors import MoiraiError",
        "moirai_tf/place/__init__.py": "from moirai_tf import errors",
        "moirai_tf/place/solve.py": "import moirai_tf.graph.read\nfrom . import missing",
        "tools/_flags.py": "",
        "tools/moirai_go.py": "from . import _flags\nfrom moirai_tf import nothing_special",
        "tests/conftest.py": "",
        "tests/deep/test_go.py": "def test_go():\n    from moirai_tf_tools.moirai_go import entry",
        "tests/zoo/__init__.py": "",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    dependencies = {target.name: target.deps for target in build_file.targets(tmp_path)}
    assert dependencies == {
        "errors": (),
        "graph": ("errors",),
        "moirai_tf": ("place",),
        "place": ("errors", "graph"),
        "test_go_deep": ("testing", "tools"),
        "testing": (),
        "tools": ("moirai_tf",),
        "zoo": (),
    }
    binaries = [rule for rule in _rules(build_file.render(tmp_path)) if rule[0] == "py_binary"]
    assert [attributes["name"] for _, attributes in binaries] == ["moirai_go"]

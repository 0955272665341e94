"""Writes `BUILD` from the tree: `python -m tests.build_file --write` after adding a file.

One library per room of the package, one binary per command, one test per test file. Dependencies
are the imports that the files make, so a cycle between rooms is an error of Bazel's.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_HEADER = '''"""Written by `python -m tests.build_file --write`; imports decide the dependencies.

Packages from outside come with the interpreter: `PATH=$PWD/.venv/bin:$PATH bazel test //...`.
"""

package(default_visibility = ["//visibility:public"])

# Tests see the repository as it is: configurations, golden files, settings.
filegroup(
    name = "files",
    srcs = glob(
        ["**"],
        exclude = [
            ".*/**",
            "**/__pycache__/**",
        ],
    ),
)

genrule(
    name = "pytest_main",
    outs = ["pytest_main.py"],
    cmd = "echo 'import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))' > $@",
)
'''


@dataclasses.dataclass(frozen=True)
class Target:
    """One rule with the Python files that only it lists."""

    rule: str
    name: str
    srcs: tuple[str, ...]
    deps: tuple[str, ...]


def python_files(root: Path) -> list[str]:
    """Every Python file of the package, laboratory, tools and tests, relative to the root."""
    folders = (root / name for name in ("moirai_tf", "laboratory", "tools", "tests"))
    return sorted(
        path.relative_to(root).as_posix() for folder in folders for path in folder.rglob("*.py")
    )


def targets(root: Path) -> list[Target]:
    """The targets that the tree asks for, sorted by name."""
    files = python_files(root)
    owned: dict[str, list[str]] = {}
    for file in files:
        owned.setdefault(_owner(file), []).append(file)
    found = []
    for name, srcs in sorted(owned.items()):
        used = {_owner(module) for file in srcs for module in _imports(root, file, set(files))}
        rule = "py_test" if name.startswith("test_") else "py_library"
        if rule == "py_test":
            used.add("testing")
        found.append(Target(rule, name, tuple(srcs), tuple(sorted(used - {name}))))
    return found


def render(root: Path) -> str:
    """The text of `BUILD`."""
    commands = [Path(file).stem for file in python_files(root) if file.startswith("tools/moirai_")]
    rules = [*map(_library_or_test, targets(root)), *map(_binary, commands)]
    return "\n".join([_HEADER, *rules])


def _owner(file: str) -> str:
    """The target that lists a file."""
    folder, *inner = file.split("/")
    stem = Path(file).stem
    if folder == "moirai_tf":
        return inner[0] if len(inner) > 1 else stem.replace("__init__", "moirai_tf")
    if folder in ("laboratory", "tools"):
        return folder
    if stem.startswith("test_"):
        return "_".join([stem, *inner[:-1]])
    return "zoo" if inner[0] == "zoo" else "testing"


def _imports(root: Path, file: str, known: set[str]) -> Iterator[str]:
    """The files of this repository that a file imports."""
    package = file.split("/")[:-1]
    for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            anchor = package[: len(package) - node.level + 1] if node.level else []
            module = [*anchor, *(node.module.split(".") if node.module else [])]
            modules = [[*module, alias.name] for alias in node.names]
        else:
            continue
        for parts in modules:
            yield from _file_of(parts, known)


def _file_of(parts: list[str], known: set[str]) -> Iterator[str]:
    """The file that holds a module, or the module that holds a name."""
    if parts[0] == "moirai_tf_tools":
        parts = ["tools", *parts[1:]]
    for length in (len(parts), len(parts) - 1):
        stem = "/".join(parts[:length])
        for candidate in (f"{stem}.py", f"{stem}/__init__.py"):
            if candidate in known:
                yield candidate
                return


def _library_or_test(target: Target) -> str:
    srcs = list(target.srcs)
    more: list[str] = []
    if target.rule == "py_test":
        more = [
            '    size = "large",',
            '    main = "pytest_main.py",',
            f'    args = ["{srcs[0]}"],',
            '    data = [":files"],',
        ]
        srcs.append(":pytest_main.py")
    lines = [
        f"{target.rule}(",
        f'    name = "{target.name}",',
        *_list("srcs", srcs),
        *more,
        *_list("deps", [f":{name}" for name in target.deps]),
        ")",
        "",
    ]
    return "\n".join(lines)


def _binary(command: str) -> str:
    """A command: it starts inside a package, which a binary's own file cannot."""
    return f'''genrule(
    name = "{command}_main",
    outs = ["{command}_main.py"],
    cmd = "echo 'from tools.{command} import entry; entry()' > $@",
)

py_binary(
    name = "{command}",
    srcs = [":{command}_main.py"],
    main = "{command}_main.py",
    deps = [":tools"],
)
'''


def _list(attribute: str, items: list[str]) -> list[str]:
    if len(items) < 2:
        return [f'    {attribute} = ["{item}"],' for item in items]
    return [f"    {attribute} = [", *(f'        "{item}",' for item in items), "    ],"]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.build_file --write")
    (ROOT / "BUILD").write_text(render(ROOT), encoding="utf-8")

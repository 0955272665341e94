"""Libraries that add ops to TensorFlow: loading them, and knowing which ones a process has.

TensorFlow keeps no list of the libraries that it loaded. Those of a process are the shared objects
in its memory that register ops or kernels, beyond TensorFlow's own.
"""

from __future__ import annotations

import importlib
import mmap
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tensorflow as tf

from moirai_tf.errors import MoiraiError

_MAPS = Path("/proc/self/maps")
_LINKED, _PLUGIN = b"libtensorflow_framework", b"SE_InitPlugin"
"""What a library of ops names; what makes it one of devices, which TensorFlow loads by itself."""
_REGISTERS = (
    b"OpDefBuilder", b"OpKernelRegistrar", b"TF_RegisterOpDefinition", b"TF_RegisterKernelBuilder",
)  # fmt: skip

_PACKAGES = (
    (
        r"TFText>.*|Sentencepiece\w*Op|CaseFoldUTF8|NormalizeUTF8\w*|ConstrainedSequence"
        r"|Fast(Bert|Wordpiece)\w+|FindSourceOffsets|MaxSpanningTree|PhraseTokenize|RougeL"
        r"|SentenceFragments(V2)?|TokenizerFromLogits"
        r"|(RegexSplit|(SplitMerge|UnicodeScript|Whitespace|Wordpiece)Tokenize)WithOffsets",
        "tensorflow_text",
        "tensorflow-text",
    ),
    (r"Addons>.*", "tensorflow_addons", "tensorflow-addons"),
    (r"SimpleML\w*", "tensorflow_decision_forests", "tensorflow-decision-forests"),
    (r"IO>.*", "tensorflow_io", "tensorflow-io"),
    (r"Sentencepiece((En|De)code|\w*Piece)\w*", "tf_sentencepiece", "tf-sentencepiece"),
    (r"TFRA>.*", "tensorflow_recommenders_addons", "tensorflow-recommenders-addons"),
    (r"Tfq\w+", "tensorflow_quantum", "tensorflow-quantum"),
    (r"Scann>.*", "scann", "scann"),
    (r"Horovod\w+", "horovod.tensorflow", "horovod"),
)  # fmt: skip
"""Names of ops, the module that registers them, and the package that has it."""

_named: list[str] = []
"""What was loaded by name in this process, for its children."""


@dataclass(frozen=True)
class OpLibraries:
    """The libraries of a process."""

    files: tuple[str, ...]
    """Shared objects, in the order of their addresses."""
    named: tuple[str, ...]
    """Modules and files as `op_library` names them."""
    packages: Mapping[str, str]
    """File -> the imported package that it is a part of."""
    path: tuple[str, ...]
    """Where modules are found."""

    def load(self) -> None:
        """Loads them into another process.

        A file that cannot be loaded alone comes with its package.

        Raises:
          MoiraiError: as `load_op_libraries`.
        """
        sys.path.extend(place for place in self.path if place not in sys.path)
        for file in self.files:
            try:
                load_op_libraries([file])
            except MoiraiError:
                if file not in self.packages:
                    raise
                load_op_libraries([self.packages[file]])
        load_op_libraries(self.named)


def load_op_libraries(names: Iterable[str]) -> None:
    """Imports modules and loads shared objects; what is there already stays.

    Raises:
      MoiraiError: naming the library that is missing or that cannot be loaded.
    """
    for given in names:
        name = os.path.abspath(given) if is_file(given) else given
        try:
            tf.load_op_library(name) if is_file(name) else importlib.import_module(name)
        except Exception as error:  # modules run any code
            raise _unloadable(given, error) from error
        if name not in _named:
            _named.append(name)


def op_libraries() -> OpLibraries:
    """The libraries that this process has, however they were loaded."""
    own = os.path.realpath(os.path.dirname(tf.__file__)) + os.sep
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    mapped = dict.fromkeys(line.split(maxsplit=5)[-1] for line in lines if ".so" in line)
    files = [p for p in mapped if not os.path.realpath(p).startswith(own) and _registers(p)]
    return OpLibraries(
        tuple(files),
        tuple(name for name in _named if name not in files),
        {file: package for file in files if (package := _package_of(file))},
        tuple(sys.path),
    )


def _package_of(file: str) -> str:
    """The imported package in whose directory a file is; empty if there is none."""
    for name, module in list(sys.modules.items()):
        for place in getattr(module, "__path__", ()) if "." not in name else ():
            if file.startswith(os.path.realpath(place) + os.sep):
                return name
    return ""


def is_file(name: str) -> bool:
    """Whether a library is a shared object, not a module."""
    return os.sep in name or name.endswith(".so")


def advice(ops: Sequence[str]) -> str:
    """What to do about ops that TensorFlow does not know."""
    known = dict.fromkeys(found for op in ops if (found := _package(op)))
    if not known:
        return (
            "import the Python module that defines them first, or name it or its shared object: "
            "op_library=('module',), --op_library=module or --op_library=path/to/ops.so"
        )
    modules = tuple(module for module, _ in known)
    flags = " ".join(f"--op_library={module}" for module in modules)
    packages = " ".join(package for _, package in known)
    return (
        f"import {', '.join(modules)} first, or give op_library={modules!r} or {flags} "
        f"(pip install {packages}, in the version for this TensorFlow)"
    )


def _package(op: str) -> tuple[str, str] | None:
    for pattern, module, package in _PACKAGES:
        if re.fullmatch(pattern, op):
            return module, package
    return None


@cache
def _registers(path: str) -> bool:
    """Whether a shared object registers ops or kernels when it is loaded."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(_LINKED) < 0 or data.find(_PLUGIN) >= 0:
                return False
            return any(data.find(symbol) >= 0 for symbol in _REGISTERS)
    except (OSError, ValueError):  # gone since it was mapped, or empty
        return False


def _unloadable(name: str, error: Exception) -> MoiraiError:
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if is_file(name):
        missing = not os.path.exists(name)
        fix = "give the path of the file" if missing else "use a build of it for this TensorFlow"
    else:
        packages = {module: package for _, module, package in _PACKAGES}
        fix = f"install it (pip install {packages.get(name, name)}), or put it on PYTHONPATH"
        if not isinstance(error, ModuleNotFoundError):
            fix = f"make `import {name}` work: its version must suit this TensorFlow"
    return MoiraiError(
        f"op library {name!r} cannot be loaded: {said}",
        why=f"it defines ops that a model uses; this is TensorFlow {tf.__version__}",
        fix=fix,
    )

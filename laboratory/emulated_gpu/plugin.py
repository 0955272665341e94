"""Compiles the device plugin once for each TensorFlow and keeps it."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from laboratory.emulated_gpu.kernel_table import kernel_table
from moirai_tf.errors import MoiraiError

_SOURCE = Path(__file__).resolve().parent / "source"
_NAME = "libemulated_gpu.so"


def built_plugin() -> Path:
    """The plugin's file, compiled if it is not there yet.

    It lies in the user's cache (`XDG_CACHE_HOME`), or in the directory for temporary files, under a
    hash of its sources and of the TensorFlow that it belongs to. `CC` names the compiler, by
    default `cc`; it has to know C++ too.

    Raises:
      MoiraiError: there is no compiler, or it fails.
    """
    import tensorflow as tf

    library = Path(tf.sysconfig.get_lib())
    folder = _cache() / _fingerprint(library, tf.__version__)
    if not (folder / _NAME).exists():
        _build(folder, library, [*tf.sysconfig.get_compile_flags()])
    return folder / _NAME


def _cache() -> Path:
    for root in (os.environ.get("XDG_CACHE_HOME"), Path.home() / ".cache", tempfile.gettempdir()):
        if not root:
            continue
        folder = Path(root) / "moirai_tf" / "emulated_gpu"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise _fault("no directory can be written to", "set XDG_CACHE_HOME to one that can")


def _fingerprint(library: Path, version: str) -> str:
    digest = hashlib.sha256(version.encode())
    sources = [path for path in _SOURCE.rglob("*") if path.is_file()]
    for path in sorted([*sources, *Path(__file__).parent.glob("*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    # The wheels tensorflow and tensorflow-cpu have the same version and other kernels.
    for path in sorted(library.glob("libtensorflow_*.so.2")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
    digest.update(_compiler()[0].encode())
    return digest.hexdigest()[:24]


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def _build(folder: Path, library: Path, flags: list[str]) -> None:
    """Compiles beside the folder and renames: of two processes that build, one is too late."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        work = Path(partial) / "built"
        work.mkdir()
        table = Path(partial) / "kernel_table.c"
        table.write_text(kernel_table(), encoding="utf-8")
        includes = [f"-I{_SOURCE}", *(flag for flag in flags if "std=" not in flag)]
        libraries = [f"-L{library}", "-l:libtensorflow_framework.so.2", "-l:libtensorflow_cc.so.2"]
        common = ["-O2", "-fPIC", "-fvisibility=hidden", "-pthread", "-w", *includes]
        objects = []
        for source in sorted(_SOURCE.glob("*.cc")):  # C++ has another standard than C
            objects.append(str(Path(partial) / f"{source.stem}.o"))
            _run(["-std=c++17", *common, "-c", str(source), "-o", objects[-1]])
        sources = [str(path) for path in sorted(_SOURCE.glob("*.c"))]
        target = ["-shared", "-o", str(work / _NAME), *sources, str(table), *objects]
        _run(["-std=gnu11", *common, *target, *libraries, "-lstdc++", "-lm"])
        _build_cudart(work, common, library)
        try:
            work.rename(folder)
        except OSError:
            if not (folder / _NAME).exists():
                shutil.rmtree(folder, ignore_errors=True)
                work.rename(folder)


def _build_cudart(work: Path, common: list[str], library: Path) -> None:
    """The stand-in for CUDA's runtime, under the name by which this TensorFlow opens it."""
    import tensorflow as tf

    major = str(tf.sysconfig.get_build_info()["cuda_version"]).partition(".")[0]
    headers = library / "include/third_party/gpus/cuda/include"
    sources = [str(_SOURCE / "cudart/cudart.c"), str(_SOURCE / "description.c")]
    target = ["-shared", "-o", str(work / f"libcudart.so.{major}"), *sources]
    _run(["-std=gnu11", *common, f"-I{headers}", *target, f"-Wl,-soname,libcudart.so.{major}"])


def _run(arguments: list[str]) -> None:
    command = [*_compiler(), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise _fault(f"{command[0]}: {error.strerror}", "install gcc, or name one by CC") from error
    if done.returncode:
        said = " | ".join(done.stderr.strip().splitlines()[:3]) or "it said nothing"
        raise _fault(f"{command[0]} failed: {said}", "name another compiler for C and C++ by CC")


def _fault(what: str, fix: str) -> MoiraiError:
    return MoiraiError(
        f"the plugin of the emulated GPUs cannot be compiled: {what}",
        why="emulated GPUs are a plugin that TensorFlow loads, compiled for the TensorFlow here",
        fix=fix,
    )

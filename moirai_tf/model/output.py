"""Writes a SavedModel directory whole or not at all; the input is only ever read."""

from __future__ import annotations

import atexit
import ctypes
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow.core.protobuf import fingerprint_pb2
from tensorflow.python.saved_model import fingerprinting_utils

from moirai_tf.errors import MoiraiError
from moirai_tf.model.saved_model import CPB, PB, PBTXT, SavedModel

FINGERPRINT = "fingerprint.pb"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2."""


@dataclass(frozen=True)
class Staged:
    """A directory that is complete but not yet in its place."""

    directory: Path
    output: Path
    overwrite: bool
    lock: int = field(default=-1, compare=False)
    """Descriptor that says to others that the directory is in use; -1 where there are no locks."""


_unfinished: dict[Path, int] = {}
"""Staged directories that are neither published nor discarded, and the process that made them."""


def stage(output: Path, *, overwrite: bool) -> Staged:
    """Makes an empty directory beside the output, to be filled and published.

    Raises:
      MoiraiError: the output exists and `overwrite` is not set, or its parent cannot be written.
    """
    output = real_path(output)
    check_output(output, overwrite=overwrite)
    work = output.with_name(f"{_prefix(output)}{uuid.uuid4().hex}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with alone(output.parent):
            _remove_abandoned(output)
            _unfinished[work] = os.getpid()
            work.mkdir()
            lock = _locked(work)
    except OSError as error:
        raise MoiraiError(
            f"{output.parent} cannot be written: {error.strerror}",
            why="the output is prepared beside its final place",
            fix="choose an output directory in a place that you can write",
        ) from error
    work.chmod(0o755)
    return Staged(work, output, overwrite, lock)


def publish(staged: Staged) -> Path:
    """Renames a staged directory into its place; an old one is gone only when it stands there.

    Raises:
      MoiraiError: the output has appeared meanwhile, or the file system refuses.
    """
    check_output(staged.output, overwrite=staged.overwrite)
    try:
        _put_in_place(staged.directory, staged.output)
        _finish(staged)
    except OSError as error:
        raise MoiraiError(
            f"{staged.output} cannot be put in its place: {error}",
            why="the complete model stands beside its place until then",
            fix="choose an output directory in a place that you can write",
        ) from error
    return staged.output


def _put_in_place(directory: Path, output: Path) -> None:
    if not output.exists():
        directory.rename(output)
        return
    if _exchanged(directory, output):
        shutil.rmtree(directory, ignore_errors=True)
        return
    old = output.with_name(f"{_prefix(output)}{uuid.uuid4().hex}")
    output.rename(old)
    try:
        directory.rename(output)
    except OSError:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, two: Path) -> bool:
    """Swaps two directories at once, so that at no moment one is missing; whether that worked.

    Raises:
      OSError: the file system refuses.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(two)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(two))


def discard(staged: Staged) -> None:
    """Removes a staged directory that will not be published."""
    if staged.directory in _unfinished:
        shutil.rmtree(staged.directory, ignore_errors=True)
        _finish(staged)


def _finish(staged: Staged) -> None:
    _unfinished.pop(staged.directory, None)
    if staged.lock >= 0:
        os.close(staged.lock)


@atexit.register
def _discard_unfinished() -> None:
    """An exception may come between making a directory and noting that it is to be removed."""
    for directory, process in _unfinished.items():
        if process == os.getpid():
            shutil.rmtree(directory, ignore_errors=True)


def _prefix(output: Path) -> str:
    return f".{output.name}.moirai-staged-"


@contextmanager
def alone(parent: Path) -> Iterator[None]:
    """Keeps other processes that ask for the same directory waiting meanwhile."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _locked(directory: Path) -> int:
    """A descriptor that locks a directory; -1 if another process has it, or there are no locks."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _remove_abandoned(output: Path) -> None:
    """Removes what processes that were killed have staged for the same output."""
    for path in output.parent.iterdir():
        if path.name.startswith(_prefix(output)) and path not in _unfinished:
            lock = _locked(path)
            if lock >= 0:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


@contextmanager
def whole_directory(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new directory that takes the output's place when the block ends without an error."""
    staged = stage(output, overwrite=overwrite)
    try:
        yield staged.directory
        publish(staged)
    finally:
        discard(staged)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuses an output that exists.

    Raises:
      MoiraiError: it is a file, or a directory with content and either `overwrite` is not set or
        the content is no SavedModel.
    """
    if output.exists() and not output.is_dir():
        raise MoiraiError(
            f"the output {output} is a file",
            why="a SavedModel is a directory",
            fix="choose another output directory",
        )
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise MoiraiError(
            f"the output {output} exists and is not empty",
            why="it may hold a model that is being served",
            fix="choose another directory, or ask for overwrite",
        )
    if not any((output / name).is_file() for name in (PB, PBTXT, CPB)):
        raise MoiraiError(
            f"the output {output} exists and is not a SavedModel",
            why="overwriting would delete files that are not a model's",
            fix="choose another directory, or empty this one",
        )


def check_apart(source: Path, output: Path) -> None:
    """Refuses an output that is the input, holds it, or lies inside it.

    Raises:
      MoiraiError: the directories overlap.
    """
    one, two = real_path(source), real_path(output)
    if one == two or one in two.parents or two in one.parents:
        raise MoiraiError(
            f"the output {output} and the input {source} overlap",
            why="the input model is never modified",
            fix="choose an output directory outside the input",
        )


def write_saved_model(
    model: SavedModel,
    proto: Any,
    directory: Path,
    extra: Mapping[Path, str],
    fingerprint: bytes | None = None,
    *,
    copy: bool = False,
) -> None:
    """Writes a changed protobuf, with the files of the model it came from, into a directory.

    Weights are never read: files of `variables/` become hard links, or copies where the file
    system cannot link.

    Args:
      model: where every other file comes from.
      proto: the `SavedModel` protobuf to write.
      directory: an empty directory.
      extra: relative path -> text; such files replace or, when empty, remove those of the model.
      fingerprint: what `fingerprint.pb` shall hold; made anew if None and the model has one.
      copy: whether to copy weights too.

    Raises:
      MoiraiError: a link or an asset leads out of the model's directory, TensorFlow cannot
        fingerprint the model, or a file cannot be read or written.
    """
    _check_assets(model)
    try:
        _copy_files(model, directory, extra, copy=copy)
        _write_proto(model, proto, directory)
        if fingerprint is not None:
            (directory / FINGERPRINT).write_bytes(fingerprint)
        elif read_fingerprint(model) and (directory / PB).is_file():
            _write_fingerprint(directory)
    except OSError as error:
        raise MoiraiError(
            f"the model cannot be written: {error}",
            why="an incomplete model must not take the output's place",
            fix="make the input readable and the output's file system writable, with space left",
        ) from error


def written(model: SavedModel, directory: Path, extra: Mapping[Path, str] | None = None) -> Path:
    """A directory that was made, or is empty, with the model in it as it is now; to be run."""
    directory.mkdir(exist_ok=True)
    write_saved_model(model, model.proto, directory, extra or {})
    return directory


def _copy_files(
    model: SavedModel, directory: Path, extra: Mapping[Path, str], *, copy: bool
) -> None:
    """Every file but the protobuf and its fingerprint."""
    skipped = {Path(PB), Path(PBTXT), Path(FINGERPRINT), *extra}
    for relative in _files(model.path):
        if relative not in skipped:
            place = _link if relative.parts[0] == "variables" and not copy else _copy
            _place(model.path / relative, directory / relative, place)
    for relative, text in extra.items():
        if text:
            (directory / relative).parent.mkdir(parents=True, exist_ok=True)
            (directory / relative).write_text(text, encoding="utf-8")


def read_fingerprint(model: SavedModel) -> bytes:
    """The bytes of the model's `fingerprint.pb`, empty if it has none."""
    file = model.path / FINGERPRINT
    return file.read_bytes() if file.is_file() else b""


def _files(root: Path) -> Iterator[Path]:
    """Every file below a directory, relative to it, in a stable order.

    Raises:
      MoiraiError: a symbolic link leads out of the directory, to another directory or to nothing;
        or something is no file: a pipe, a socket, a device.
      OSError: a directory cannot be read.
    """
    inside = real_path(root)
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders.sort()
        for name in sorted([*names, *(f for f in folders if (Path(folder) / f).is_symlink())]):
            path = Path(folder) / name
            if path.is_dir() or not real_path(path).is_relative_to(inside):
                raise MoiraiError(
                    f"{path} is a link to a directory or to a place outside the model",
                    why="a model must not bring files of its reader into the output",
                    fix="replace the link by what it leads to",
                )
            if not path.is_file():
                raise MoiraiError(
                    f"{path} is no file: a pipe, a socket, a device, or a link to nothing",
                    why="the output is to have everything that the model has",
                    fix="remove it from the model's directory, or put a file in its place",
                )
            yield path.relative_to(root)


def _raise(error: OSError) -> None:
    raise error


def real_path(path: Path) -> Path:
    """The path without symbolic links; of links in a circle as far as it goes."""
    return Path(os.path.realpath(path))


def _check_assets(model: SavedModel) -> None:
    for meta_graph in model.proto.meta_graphs:
        for asset in meta_graph.asset_file_def:
            name = Path(asset.filename)
            if name.is_absolute() or ".." in name.parts:
                raise MoiraiError(
                    f"the asset {asset.filename!r} lies outside the model",
                    why="loading the model would read a file that is not part of it",
                    fix="export the model again with its assets inside",
                )


def _place(source: Path, target: Path, place: Callable[[Path, Path], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    place(source, target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(real_path(source), target)
    except OSError:  # another file system, or one without hard links
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _write_proto(model: SavedModel, proto: Any, directory: Path) -> None:
    if (model.path / PB).is_file():
        (directory / PB).write_bytes(proto.SerializeToString(deterministic=True))
    else:
        (directory / PBTXT).write_text(text_format.MessageToString(proto), encoding="utf-8")


def _write_fingerprint(directory: Path) -> None:
    """TensorFlow's fingerprint with a reproducible identifier in place of a random one."""
    try:
        fingerprinting_utils.write_fingerprint(str(directory))
    except ValueError as error:
        raise MoiraiError(
            f"TensorFlow cannot fingerprint the model: {error}",
            why="the fingerprint of the input does not hold for a model with other devices",
            fix=f"remove {FINGERPRINT} from the input, or export the model again",
        ) from error
    file = directory / FINGERPRINT
    fingerprint = fingerprint_pb2.FingerprintDef.FromString(file.read_bytes())
    if "uuid" not in fingerprint.DESCRIPTOR.fields_by_name:  # TensorFlow 2.18
        return
    fingerprint.uuid = ""
    content = fingerprint.SerializeToString(deterministic=True).hex()
    fingerprint.uuid = str(uuid.uuid5(uuid.NAMESPACE_OID, content))
    file.write_bytes(fingerprint.SerializeToString(deterministic=True))

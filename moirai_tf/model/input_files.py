"""Files with values for a signature's inputs: `.npz` archives, or TFRecords for models of examples.

NumPy pads strings with NUL and has no bfloat16, so an archive of `save_inputs` holds what NumPy
cannot as the bytes of `tf.io.serialize_tensor`.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from google.protobuf import message
from tensorflow.core.framework import tensor_pb2
from tensorflow.python.framework import dtypes, tensor_util

from moirai_tf.errors import MoiraiError
from moirai_tf.records import open_regular

Array = npt.NDArray[Any]

_ZIP, _GZIP = b"PK", b"\x1f\x8b"
_MOST_BYTES = 1 << 33
"""A few bytes of an archive can stand for more than any memory holds."""
_HEAD, _FOOT_BYTES, _CHUNK_BYTES = struct.Struct("<QI"), 4, 1 << 20
_NUMPY_KINDS = "biufc"
"""Kinds of arrays that an archive holds as they are: booleans and numbers."""


def read_inputs(path: str | Path, types: Mapping[str, int]) -> dict[str, Array]:
    """One array per input of a signature, strings as `bytes` in an array of objects.

    Args:
      path: an `.npz` archive with one array per input; or TFRecords, one per string of the only
        input.
      types: input -> its `DataType`.

    Raises:
      MoiraiError: the file cannot be read, or an array is missing, unknown or of another type.
    """
    try:
        with open_regular(path) as file:
            start = file.read(len(_ZIP))
        arrays = _archive(path) if start == _ZIP else _records(path, start, types)
    except Exception as error:  # what readers of archives raise for damaged ones has no end
        raise _bad_file(path, f"cannot be read: {_first_line(error)}") from error
    missing = [name for name in types if name not in arrays]
    unknown = [name for name in arrays if name not in types]
    if missing or unknown:
        what = f"has no {missing[0]!r}" if missing else f"has {unknown[0]!r}, which is no input"
        raise _bad_file(path, f"{what}; the inputs are {', '.join(types) or 'none'}")
    return {name: _typed(path, name, arrays[name], dtype) for name, dtype in types.items()}


def save_inputs(path: str | Path, inputs: Mapping[str, Any]) -> None:
    """Writes an `.npz` file that `--inputs` reads back exactly, strings and bfloat16 included.

    Args:
      path: where to write.
      inputs: input -> an array, a tensor, or what `np.asarray` makes one of. A part of a composite
        is called `name/0`, `name/1`, as `moirai_inspect` shows it.
    """
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    with Path(path).open("wb") as file:
        np.savez(file, **{name: _storable(array) for name, array in arrays.items()})  # type: ignore[arg-type]


def _archive(path: str | Path) -> dict[str, Array]:
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        if sum(info.file_size for info in archive.zip.infolist()) > _MOST_BYTES:
            raise ValueError(f"its arrays have more than {_MOST_BYTES} bytes")
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                raise ValueError(f"{name!r} has pickled objects, which could run code") from error
            if not isinstance(arrays[name], np.ndarray):
                raise ValueError(f"{name!r} is no array")
    return arrays


def _records(path: str | Path, start: bytes, types: Mapping[str, int]) -> dict[str, Array]:
    """The records of a TFRecord file as the only input."""
    if [dtypes.as_dtype(dtype) for dtype in types.values()] != [dtypes.string]:
        raise ValueError("not an .npz archive, and TFRecords suit one input of strings only")
    try:
        records = read_records(path, zipped=start == _GZIP)
    except (tf.errors.OpError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"neither an .npz archive nor TFRecords: {error}") from error
    if not records:
        raise ValueError("it is empty")
    return {name: np.array(records, dtype=object) for name in types}


def read_records(path: str | Path, *, zipped: bool = False) -> list[bytes]:
    """The records of a TFRecord file.

    Raises:
      ValueError: a record says that it is longer than the file.
      tf.errors.OpError: the file is damaged, or cannot be read.
      OSError, EOFError, zlib.error: the same, as Python's own readers say it.
    """
    with gzip.open(path) if zipped else Path(path).open("rb") as file:
        _check_lengths(file)
    dataset = tf.data.TFRecordDataset(str(path), "GZIP" if zipped else "")
    return list(dataset.as_numpy_iterator())


def _check_lengths(file: gzip.GzipFile | IO[bytes]) -> None:
    """Refuses records that say they are longer than the file: TensorFlow makes room for them first.

    The format is that of tensorflow/core/lib/io/record_writer.h: length, its checksum, data, its
    checksum.
    """
    total = 0
    while len(header := file.read(_HEAD.size)) == _HEAD.size:
        left = _HEAD.unpack(header)[0] + _FOOT_BYTES
        total += left
        if total > _MOST_BYTES:
            raise ValueError(f"its records have more than {_MOST_BYTES} bytes")
        while left:
            skipped = len(file.read(min(left, _CHUNK_BYTES)))
            if not skipped:
                raise ValueError("a record is longer than what is there of it")
            left -= skipped


def _storable(array: Array) -> Array:
    if array.dtype.kind in _NUMPY_KINDS:
        return array
    tensor = tensor_util.make_tensor_proto(array)
    return np.frombuffer(tensor.SerializeToString(), np.uint8)


def _typed(path: str | Path, name: str, array: Array, dtype: int) -> Array:
    """An array in the type of its input."""
    kind = dtypes.as_dtype(dtype).base_dtype
    if array.dtype == np.uint8 and array.ndim == 1 and kind != dtypes.uint8:
        array = _deserialized(path, name, array)
    if kind == dtypes.string and array.dtype.kind in "SU":
        return _strings(path, name, array)
    wanted = np.dtype(kind.as_numpy_dtype)
    if array.dtype.kind == "V" and array.dtype.names is None and wanted.kind not in _NUMPY_KINDS:
        array = array.view(wanted) if array.dtype.itemsize == wanted.itemsize else array
    if array.dtype != wanted:
        raise _bad_file(path, f"{name!r} has the type {array.dtype}, the input is {kind.name}")
    return array


def _deserialized(path: str | Path, name: str, array: Array) -> Array:
    try:
        tensor = tensor_pb2.TensorProto.FromString(array.tobytes())
        return np.asarray(tensor_util.MakeNdarray(tensor))
    except (message.DecodeError, TypeError, ValueError, KeyError, MemoryError) as error:
        raise _bad_file(
            path, f"{name!r} has the type uint8, but is no serialized tensor: {_first_line(error)}"
        ) from error


def _strings(path: str | Path, name: str, array: Array) -> Array:
    """NumPy's fixed-size strings; it cannot tell a NUL at their end from padding."""
    width = array.dtype.itemsize // (4 if array.dtype.kind == "U" else 1)
    if array.size and int(np.char.str_len(array).max()) < width and width > 1:
        raise _bad_file(path, f"{name!r} has strings that end in NUL, or that NumPy padded with it")
    array = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array
    return array.astype(object)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _bad_file(path: str | Path, what: str) -> MoiraiError:
    return MoiraiError(
        f"{path}: {what}",
        why="the model is run on these inputs, so they must be those of its signature, exactly",
        fix="write the file with moirai_tf.save_inputs(path, {name: array, ...}), which keeps "
        "strings and every type as they are; a model that reads tf.train.Examples takes a "
        "TFRecord file of them",
    )

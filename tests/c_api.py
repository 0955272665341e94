"""Loads and runs SavedModels through TensorFlow's C API: the loader that TensorFlow Serving uses.

The shared libraries are those inside the TensorFlow wheel, called with `ctypes`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

_STRING_BYTES = 24
"""Size of a `TF_TString`."""


class _Output(ctypes.Structure):
    """`TF_Output`: a node and one of its output ports."""

    _fields_ = (("oper", ctypes.c_void_p), ("index", ctypes.c_int))


class _Buffer(ctypes.Structure):
    """`TF_Buffer`: bytes of a serialized protobuf."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class CRun:
    """One inference through the C API."""

    outputs: Mapping[str, np.ndarray]
    metadata: Any
    """`RunMetadata` with partition graphs and step statistics."""


def run_saved_model(
    directory: Path,
    tags: Sequence[str],
    signature: str,
    inputs: Mapping[str, np.ndarray],
    config: Any,
) -> CRun:
    """Loads a SavedModel with a `ConfigProto` and runs one of its signatures, fully traced."""
    with ExitStack() as stack:
        status = stack.enter_context(_owned("Status"))
        graph = stack.enter_context(_owned("Graph"))
        described = stack.enter_context(_buffer())
        session = stack.enter_context(_session(directory, tags, config, graph, described, status))
        content = ctypes.string_at(described.contents.data, described.contents.length)
        definition = meta_graph_pb2.MetaGraphDef.FromString(content).signature_def[signature]
        return _run(stack, session, graph, definition, inputs, status)


def _run(
    stack: ExitStack,
    session: int,
    graph: int,
    definition: Any,
    inputs: Mapping[str, np.ndarray],
    status: int,
) -> CRun:
    options = config_pb2.RunOptions(
        trace_level=config_pb2.RunOptions.FULL_TRACE, output_partition_graphs=True
    )
    run_options = stack.enter_context(_buffer(options.SerializeToString()))
    metadata = stack.enter_context(_buffer())
    fed, fetched = sorted(definition.inputs), sorted(definition.outputs)
    feeds = (_Output * len(fed))(*(_output(graph, definition.inputs[n].name) for n in fed))
    fetches = (_Output * len(fetched))(
        *(_output(graph, definition.outputs[n].name) for n in fetched)
    )
    given = (ctypes.c_void_p * len(fed))(
        *(stack.enter_context(_tensor(inputs[name])) for name in fed)
    )
    results = (ctypes.c_void_p * len(fetched))()
    _library().TF_SessionRun(
        ctypes.c_void_p(session), run_options,
        feeds, given, len(fed), fetches, results, len(fetched),
        None, 0, metadata, ctypes.c_void_p(status),
    )  # fmt: skip
    _check(status)
    outputs = {name: _array(result) for name, result in zip(fetched, results, strict=True)}
    for result in results:
        _library().TF_DeleteTensor(ctypes.c_void_p(result))
    content = ctypes.string_at(metadata.contents.data, metadata.contents.length)
    return CRun(outputs, config_pb2.RunMetadata.FromString(content))


@cache
def _library() -> Any:
    library = ctypes.CDLL(str(Path(tf.__file__).parent / "libtensorflow_cc.so.2"))
    pointers = (
        "TF_NewStatus", "TF_NewGraph", "TF_NewSessionOptions", "TF_LoadSessionFromSavedModel",
        "TF_GraphOperationByName", "TF_AllocateTensor", "TF_TensorData", "TF_StringGetDataPointer",
    )  # fmt: skip
    for name in pointers:
        getattr(library, name).restype = ctypes.c_void_p
    for name in ("TF_NewBuffer", "TF_NewBufferFromString"):
        getattr(library, name).restype = ctypes.POINTER(_Buffer)
    library.TF_Message.restype = ctypes.c_char_p
    for name in ("TF_TensorByteSize", "TF_StringGetSize"):
        getattr(library, name).restype = ctypes.c_size_t
    library.TF_Dim.restype = ctypes.c_int64
    return library


def _check(status: int) -> None:
    code = _library().TF_GetCode(ctypes.c_void_p(status))
    if code:
        message = _library().TF_Message(ctypes.c_void_p(status)).decode()
        raise RuntimeError(f"TensorFlow's C API: code {code}: {message}")


@contextmanager
def _owned(kind: str) -> Iterator[int]:
    """A `TF_Status`, `TF_Graph` or `TF_SessionOptions`."""
    made = getattr(_library(), f"TF_New{kind}")()
    try:
        yield made
    finally:
        getattr(_library(), f"TF_Delete{kind}")(ctypes.c_void_p(made))


@contextmanager
def _buffer(content: bytes | None = None) -> Iterator[Any]:
    """A `TF_Buffer` with bytes, or an empty one for bytes to come."""
    if content is None:
        made = _library().TF_NewBuffer()
    else:
        made = _library().TF_NewBufferFromString(content, ctypes.c_size_t(len(content)))
    try:
        yield made
    finally:
        _library().TF_DeleteBuffer(made)


@contextmanager
def _session(
    directory: Path, tags: Sequence[str], config: Any, graph: int, described: Any, status: int
) -> Iterator[int]:
    names = (ctypes.c_char_p * len(tags))(*(tag.encode() for tag in tags))
    text = config.SerializeToString()
    with _owned("SessionOptions") as options:
        _library().TF_SetConfig(
            ctypes.c_void_p(options), text, ctypes.c_size_t(len(text)), ctypes.c_void_p(status)
        )
        _check(status)
        session = _library().TF_LoadSessionFromSavedModel(
            ctypes.c_void_p(options), None, str(directory).encode(), names, len(tags),
            ctypes.c_void_p(graph), described, ctypes.c_void_p(status),
        )  # fmt: skip
    _check(status)
    try:
        yield session
    finally:
        _library().TF_CloseSession(ctypes.c_void_p(session), ctypes.c_void_p(status))
        _library().TF_DeleteSession(ctypes.c_void_p(session), ctypes.c_void_p(status))


def _output(graph: int, tensor: str) -> _Output:
    node, _, port = tensor.partition(":")
    found = _library().TF_GraphOperationByName(ctypes.c_void_p(graph), node.encode())
    assert found, f"the loaded graph has no node {node!r}"
    return _Output(found, int(port or 0))


@contextmanager
def _tensor(array: np.ndarray) -> Iterator[int]:
    dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    size = array.size * _STRING_BYTES if dtype == tf.string else array.nbytes
    dims = (ctypes.c_int64 * array.ndim)(*array.shape)
    tensor = _library().TF_AllocateTensor(
        dtype.as_datatype_enum, dims, array.ndim, ctypes.c_size_t(size)
    )
    data = _library().TF_TensorData(ctypes.c_void_p(tensor))
    if dtype == tf.string:
        for i, text in enumerate(array.flat):
            place = ctypes.c_void_p(data + i * _STRING_BYTES)
            _library().TF_StringInit(place)
            _library().TF_StringCopy(place, text, ctypes.c_size_t(len(text)))
    else:
        ctypes.memmove(data, np.ascontiguousarray(array).ctypes.data, size)
    try:
        yield tensor
    finally:
        _library().TF_DeleteTensor(ctypes.c_void_p(tensor))


def _array(tensor: int) -> np.ndarray:
    handle = ctypes.c_void_p(tensor)
    library = _library()
    shape = tuple(library.TF_Dim(handle, i) for i in range(library.TF_NumDims(handle)))
    dtype = tf.as_dtype(library.TF_TensorType(handle))
    data = library.TF_TensorData(handle)
    if dtype != tf.string:
        content = ctypes.string_at(data, library.TF_TensorByteSize(handle))
        return np.frombuffer(content, dtype.as_numpy_dtype).reshape(shape)
    texts = np.empty(shape, dtype=object)
    for i in range(texts.size):
        place = ctypes.c_void_p(data + i * _STRING_BYTES)
        start, length = library.TF_StringGetDataPointer(place), library.TF_StringGetSize(place)
        texts.flat[i] = ctypes.string_at(start, length)
    return texts

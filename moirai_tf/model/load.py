"""Loading and serving a placed model with the options that make its placement happen."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.framework import device as device_lib
from tensorflow.python.saved_model import loader_impl
from tensorflow.python.trackable.base import OBJECT_GRAPH_PROTO_KEY
from tensorflow.python.training import py_checkpoint_reader

from moirai_tf.errors import MoiraiError
from moirai_tf.model.validate import tensor_names

SESSION_CONFIG_FILE = Path("assets.extra") / "session_config.pbtxt"


def load_with_devices(directory: str | Path, tags: Iterable[str] | None = None) -> Any:
    """Loads a SavedModel whose variables go to the devices that it names for them.

    Soft placement must be on, as it is by default, or TensorFlow ignores the variables' devices.

    Raises:
      MoiraiError: soft placement is off.
    """
    if not tf.config.get_soft_device_placement():
        raise MoiraiError(
            "soft device placement is off",
            why="TensorFlow then ignores the devices of variables and copies weights every time",
            fix="call tf.config.set_soft_device_placement(True) before loading",
        )
    options = tf.saved_model.LoadOptions(experimental_variable_policy="save_variable_devices")
    return tf.saved_model.load(str(directory), tags=list(tags) if tags else None, options=options)


def logical_cpus(devices: Iterable[str]) -> int:
    """How many logical CPU devices a process needs to have all of these devices."""
    parsed = [device_lib.DeviceSpec.from_string(name) for name in devices]
    return 1 + max((d.device_index or 0 for d in parsed if d.device_type == "CPU"), default=0)


def configure_logical_cpus(count: int) -> None:
    """Splits the CPU of this process into logical devices; call it before TensorFlow is used.

    Raises:
      MoiraiError: TensorFlow has already started with fewer.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu) or [None]
    if len(configured) >= count:
        return
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError as error:
        raise MoiraiError(
            f"this process has {len(configured)} logical CPU devices, but the plan needs {count}",
            why="an operator on a device that does not exist silently runs elsewhere",
            fix="call moirai_tf.configure_logical_cpus(n) before TensorFlow is used",
        ) from error


def session_config(devices: Iterable[str]) -> Any:
    """A `ConfigProto` for a Session or TensorFlow Serving that has the CPU devices of a plan.

    Without soft placement: with it a GPU that is missing would be replaced by a CPU, silently.
    """
    config = config_pb2.ConfigProto(allow_soft_placement=False)
    config.device_count["CPU"] = logical_cpus(devices)
    return config


def session_config_text(devices: Iterable[str]) -> str:
    """The same as text, for `--tensorflow_session_config_file` of TensorFlow Serving."""
    config = text_format.MessageToString(session_config(devices))
    return f"allow_soft_placement: false\n{config}"  # TensorFlow leaves out what is the default


class SessionGraph:
    """A SavedModel's main graph, read once for any number of Sessions."""

    def __init__(self, directory: str | Path, tags: Iterable[str]) -> None:
        self._directory = directory
        self._tags = list(tags)

    @cached_property
    def _loader(self) -> Any:
        return loader_impl.SavedModelLoader(str(self._directory))

    @cached_property
    def _imported(self) -> tuple[tf.Graph, Any]:
        graph = tf.Graph()
        saver, _ = self._loader.load_graph(graph, self._tags)
        return graph, saver

    @property
    def graph(self) -> tf.Graph:
        """The graph; a Session of it has no values yet."""
        return self._imported[0]

    def restore(self, session: Any) -> Mapping[str, Any]:
        """Gives a Session of the graph its variables and tables; returns the signatures."""
        return _restored(self._loader, self._imported[1], session, self._tags)


def load_in_session(directory: str | Path, session: Any, tags: Iterable[str]) -> Mapping[str, Any]:
    """Loads a SavedModel into a TF1 Session; returns its signatures."""
    loader, names = loader_impl.SavedModelLoader(str(directory)), list(tags)
    saver, _ = loader.load_graph(session.graph, names)
    return _restored(loader, saver, session, names)


def _restored(loader: Any, saver: Any, session: Any, tags: list[str]) -> Mapping[str, Any]:
    """Restores and initialises, each only if there is something to do.

    For each step TensorFlow copies and optimises the whole graph, with all constants that it holds.
    """
    meta_graph = loader.get_meta_graph_def_from_tags(tags)
    with session.graph.as_default():
        init = loader_impl.get_init_op(meta_graph)
    if saver is None or not holds_nothing(loader.variables_path):
        loader.restore_variables(session, saver)
    if init is not None and (init.type != "NoOp" or init.control_inputs):
        loader.run_init_ops(session, tags)
    signatures: Mapping[str, Any] = meta_graph.signature_def
    return signatures


def holds_nothing(checkpoint: str) -> bool:
    """Whether a checkpoint says only which objects the model has."""
    if not Path(f"{checkpoint}.index").is_file():
        return False
    names = py_checkpoint_reader.NewCheckpointReader(checkpoint).get_variable_to_dtype_map()
    return set(names) <= {OBJECT_GRAPH_PROTO_KEY}


def give_memory_back() -> None:
    """Frees what nobody holds: graphs are cycles, and the C library keeps memory that it gets."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def tensors(infos: Mapping[str, Any]) -> dict[str, str]:
    """Input or output -> tensor; the parts of a composite are numbered `name/0`, `name/1`."""
    found: dict[str, str] = {}
    for key in sorted(infos):
        names = tensor_names(infos[key])
        found.update(
            {key if len(names) == 1 else f"{key}/{i}": name for i, name in enumerate(names)}
        )
    return found


def all_dense(infos: Mapping[str, Any]) -> bool:
    """Whether every input or output is one tensor: none is sparse, ragged or another composite."""
    return set(tensors(infos)) == set(infos)


def fetched(value: Any) -> Any:
    """What a step returned as a NumPy array: TensorFlow gives a scalar string as plain bytes."""
    return np.array(value, dtype=object) if isinstance(value, bytes) else np.asarray(value)

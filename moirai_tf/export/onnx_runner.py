"""Plays an exported model: one ONNX Runtime session per part, devices in parallel.

with moirai_tf.OnnxRunner("exported") as model:
    outputs = model(image=array)

It needs onnxruntime (with CUDA: onnxruntime-gpu) and no TensorFlow.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from moirai_tf.cluster.cluster import within_task
from moirai_tf.errors import MoiraiError
from moirai_tf.export.onnx_manifest import ManifestPart, read_manifest

Array = npt.NDArray[Any]
Provider = str | tuple[str, Mapping[str, Any]]
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"


class OnnxRunner:
    """The parts of an exported model, loaded; calls may come from several threads.

    Every device has a thread, which runs the device's parts in the order of the manifest, each as
    soon as its inputs are there. Tensors between parts of one device stay on it.

    Attributes:
      manifest: what was exported.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        providers: Mapping[str, Sequence[Provider]] | None = None,
        intra_op_threads: int = 0,
    ) -> None:
        """Loads all parts.

        Args:
          directory: what `export_onnx` wrote.
          providers: device of the plan -> ONNX Runtime's execution providers for it; by default
            CUDA with the GPU's number, or the CPU.
          intra_op_threads: threads of one operator; 0 is ONNX Runtime's choice.

        Raises:
          MoiraiError: onnxruntime is not installed, has no provider for a device, or cannot load a
            part; or the manifest is broken.
        """
        self.manifest = read_manifest(directory)
        self._ort = _onnxruntime()
        chosen = {
            device: list((providers or {}).get(device) or self._providers(device))
            for device in self.manifest.devices
        }
        self._memory = {device: _memory_of(chosen[device]) for device in chosen}
        self._sessions = [
            self._session(Path(directory) / part.file, chosen[part.device], intra_op_threads)
            for part in self.manifest.parts
        ]
        self._lock = threading.Lock()
        self._threads = {device: ThreadPoolExecutor(1) for device in self.manifest.devices}

    def __call__(
        self, inputs: Mapping[str, Any] | None = None, /, **named: Any
    ) -> dict[str, Array]:
        """Runs the model once.

        Args:
          inputs: input -> array; for names that are none in Python.
          **named: the same as keywords.

        Returns:
          Output -> array.

        Raises:
          MoiraiError: an input is missing or unknown, or a part fails.
        """
        given = {**(inputs or {}), **named}
        for name in sorted(given.keys() ^ set(self.manifest.inputs)):
            raise MoiraiError(
                f"input {name!r} is {'unknown' if name in given else 'missing'}",
                why="the model takes its inputs by name",
                fix=f"give exactly {', '.join(self.manifest.inputs) or 'no inputs'}",
            )
        tensors: dict[str, Future[Any]] = {name: Future() for name in self.manifest.tensors}
        for name, value in given.items():
            tensors[name].set_result(onnx_array(value))
        with self._lock:  # the same order of calls on every device, or they would wait in a circle
            done = [
                thread.submit(self._run_device, device, tensors)
                for device, thread in self._threads.items()
            ]
        for future in done:
            future.result()
        return {name: _array(tensors[name].result()) for name in self.manifest.outputs}

    def placed(self) -> dict[str, tuple[str, ...]]:
        """Part -> execution providers that ONNX Runtime itself says it gave nodes to."""
        found = {}
        for part, session in zip(self.manifest.parts, self._sessions, strict=True):
            if hasattr(session, "get_provider_graph_assignment_info"):
                info = session.get_provider_graph_assignment_info()
                found[part.file] = tuple(sorted({entry.ep_name for entry in info}))
        return found

    def close(self) -> None:
        """Ends the threads and lets go of the sessions."""
        for thread in self._threads.values():
            thread.shutdown()
        self._sessions = []

    def __enter__(self) -> OnnxRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _providers(self, device: str) -> list[Provider]:
        kind, index = within_task(device).split(":")
        if kind == "CPU":
            return [_CPU]
        if kind == "GPU" and _CUDA in self._ort.get_available_providers():
            return [(_CUDA, {"device_id": int(index)}), _CPU]
        raise MoiraiError(
            f"this onnxruntime has no execution provider for {device}",
            why="the part would run elsewhere, without a word",
            fix="pip install onnxruntime-gpu, or name providers for the device (providers=...)",
        )

    def _session(self, file: Path, providers: list[Provider], threads: int) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            return self._ort.InferenceSession(str(file), options, providers=providers)
        except Exception as error:  # it has exceptions of its own, and any for a damaged file
            raise MoiraiError(
                f"ONNX Runtime cannot load {file}: {str(error).splitlines()[0]}",
                why="every part of the model is needed",
                fix="export the model again; if it says that something is not implemented, this "
                "ONNX Runtime has no kernel for it",
            ) from error

    def _bindable(self, value: Any) -> Any:
        """A tensor of ONNX Runtime's; of an array it is a view that does not keep the array."""
        if not isinstance(value, np.ndarray):
            return value
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))

    def _run_device(self, device: str, tensors: Mapping[str, Future[Any]]) -> None:
        """Runs the parts of a device; if one fails, whoever waits for it fails too."""
        todo = [
            (part, session)
            for part, session in zip(self.manifest.parts, self._sessions, strict=True)
            if part.device == device
        ]
        try:
            for part, session in todo:
                values = {name: tensors[name].result() for name in part.inputs}
                for name, value in self._run_part(part, session, values).items():
                    tensors[name].set_result(value)
        except BaseException as error:
            for part, _ in todo:
                for name in part.outputs:
                    if not tensors[name].done():
                        tensors[name].set_exception(error)
            raise

    def _run_part(
        self, part: ManifestPart, session: Any, values: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        try:
            if any(
                self.manifest.tensors[name].dtype == "string"
                for name in (*part.inputs, *part.outputs)
            ):  # they cannot be bound
                feeds = {name: _array(value) for name, value in values.items()}
                results = session.run(list(part.outputs), feeds)
                return dict(zip(part.outputs, results, strict=True))
            binding = session.io_binding()
            bound = {name: self._bindable(value) for name, value in values.items()}
            for name, value in bound.items():
                binding.bind_ortvalue_input(name, value)
            for name in part.outputs:
                binding.bind_output(name, *self._home(part, name))
            session.run_with_iobinding(binding)
            return dict(zip(part.outputs, binding.get_outputs(), strict=True))
        except Exception as error:  # exceptions of ONNX Runtime have no class in common
            raise MoiraiError(
                f"{part.file} on {part.device} fails: {str(error).splitlines()[0]}",
                why="every part of the model is needed",
                fix="give inputs that the model accepts",
            ) from error

    def _home(self, part: ManifestPart, tensor: str) -> tuple[str, int]:
        """Where a tensor is left: on the device if nobody else wants it, else in host memory."""
        if tensor in self.manifest.outputs or self.manifest.users(tensor) != {part.device}:
            return "cpu", 0
        return self._memory[part.device]


def onnx_array(value: Any) -> Array:
    """An array; strings as ONNX Runtime has them."""
    array: Array = np.asarray(value)
    if array.dtype.kind not in "OSU":
        return array
    texts = [t.decode() if isinstance(t, bytes) else str(t) for t in array.reshape(-1)]
    return np.array(texts, dtype=object).reshape(array.shape)


def _memory_of(providers: Sequence[Provider]) -> tuple[str, int]:
    first = providers[0]
    if isinstance(first, tuple) and first[0] == _CUDA:
        return "cuda", int(first[1].get("device_id", 0))
    return "cpu", 0


def _array(value: Any) -> Array:
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy())


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MoiraiError(
            "onnxruntime is not installed",
            why="it runs the parts of the model",
            fix="pip install 'moirai_tf[onnx]'",
        ) from error
    return onnxruntime

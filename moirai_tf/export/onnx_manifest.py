"""`manifest.json` of an exported model: its parts in order, and the tensors between them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moirai_tf.cluster.cluster import device_type
from moirai_tf.records import Format

MANIFEST = "manifest.json"
WHOLE = "model.onnx"
_SCHEMA = 1

_FORMAT = Format(
    why="it says which file runs on which device, and what flows between them",
    fix=f"export the model again; {MANIFEST} was changed",
)


@dataclass(frozen=True, slots=True)
class TensorType:
    """What a tensor is."""

    dtype: str
    """ONNX Runtime's name, such as `float`."""
    shape: tuple[int | None, ...]
    """None where the size is not known before."""


@dataclass(frozen=True, slots=True)
class ManifestPart:
    """A file that one device runs."""

    file: str
    """Relative to the manifest."""
    device: str
    """As in the plan."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """An exported signature."""

    schema: int
    signature: str
    opset: int
    devices: tuple[str, ...]
    """Those that have parts."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[ManifestPart, ...]
    """Each after those whose outputs it reads."""
    tensors: Mapping[str, TensorType]
    """Inputs, outputs, and what flows between parts."""

    def users(self, tensor: str) -> set[str]:
        """Devices of the parts that read a tensor."""
        return {part.device for part in self.parts if tensor in part.inputs}


def manifest_of(
    signature: str,
    opset: int,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    parts: tuple[ManifestPart, ...],
    tensors: Mapping[str, TensorType],
) -> Manifest:
    """A manifest of this version of the format."""
    devices = tuple(sorted({part.device for part in parts}))
    return Manifest(_SCHEMA, signature, opset, devices, inputs, outputs, parts, dict(tensors))


def manifest_text(manifest: Manifest) -> str:
    """Deterministic JSON."""
    return json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n"


def read_manifest(directory: str | Path) -> Manifest:
    """The manifest of an exported model.

    Raises:
      MoiraiError: there is none, it is broken, or a part cannot be run in this order.
    """
    manifest = _FORMAT.record(_FORMAT.read_json(Path(directory) / MANIFEST), Manifest)
    if manifest.schema != _SCHEMA:
        raise _FORMAT.fault("schema", f"{manifest.schema} is not {_SCHEMA}, that of this version")
    there = set(manifest.inputs)
    for i, part in enumerate(manifest.parts):
        device_type(part.device)
        missing = [name for name in part.inputs if name not in there]
        if missing:
            raise _FORMAT.fault(f"parts[{i}].inputs", f"nothing before makes {missing[0]!r}")
        if ".." in Path(part.file).parts or Path(part.file).is_absolute():
            raise _FORMAT.fault(f"parts[{i}].file", f"{part.file!r} lies outside")
        there.update(part.outputs)
    missing = [name for name in manifest.outputs if name not in there]
    missing += [name for name in there if name not in manifest.tensors]
    if missing:
        raise _FORMAT.fault("tensors", f"{missing[0]!r} is missing")
    return manifest
